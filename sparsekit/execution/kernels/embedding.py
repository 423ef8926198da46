"""Rows of a sparse matrix as dense vectors, and the gradient of what was read."""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsekit.execution import threads

Array = NDArray[Any]


def first_outside(indices: Array, rows: int) -> int:
    """Position of the first index that is not in [0, rows); -1 if all are."""
    return int(_first_outside(indices, rows))


def gather(indices: Array, values: Array, crow: Array, col: Array, out: Array) -> None:
    """out[i] = row indices[i] of the matrix, absent entries 0.

    Args:
        indices: (n,) int64 in [0, rows).
        values, col: (nnz,), row by row; values of any type.
        crow: (rows + 1,).
        out: (n, columns), overwritten.
    """
    tasks, work = len(indices), float(out.size)
    threads.run(_gather, tasks, indices, values, crow, col, out, nanoseconds=work)


def accumulate(
    indices: Array, grad: Array, crow: Array, col: Array, skip: int, out: Array
) -> None:
    """out[t] = sum over i of grad[i, col[t]], for the non-zeros t of row indices[i].

    Args:
        grad: (n, columns).
        skip: an index that gets no gradient; -1 for none.
        out: (nnz,), overwritten.
    """
    out[:] = 0
    _accumulate(indices, grad, crow, col, skip, out)


@njit(nogil=True, cache=True)
def _first_outside(indices: Array, rows: int) -> int:
    for i in range(len(indices)):
        if indices[i] < 0 or indices[i] >= rows:
            return i
    return -1


@njit(nogil=True, cache=True)
def _gather(
    begin: int, end: int, indices: Array, values: Array, crow: Array, col: Array,
    out: Array,
) -> None:  # fmt: skip
    for i in range(begin, end):
        row = out[i]
        row[:] = 0
        for t in range(crow[indices[i]], crow[indices[i] + 1]):
            row[col[t]] = values[t]


@njit(nogil=True, cache=True)
def _accumulate(
    indices: Array, grad: Array, crow: Array, col: Array, skip: int, out: Array
) -> None:
    for i in range(len(indices)):
        if indices[i] != skip:
            row = grad[i]
            for t in range(crow[indices[i]], crow[indices[i] + 1]):
                out[t] += row[np.int64(col[t])]
