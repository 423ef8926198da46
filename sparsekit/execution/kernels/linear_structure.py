"""Where the loops over a sparse matrix find its non-zeros: by rows and by columns.

By rows, blocks of columns are found through `starts.row_starts`. The transposed
structure is our own and lies in the order in which the loops read it.
"""

import numpy as np
from numba import njit

from sparsekit.execution.kernels.starts import Integers, row_starts

PER_BLOCK = 32  # non-zeros of a row in a block
GROUP = 512  # rows


def index_rows(crow: Integers, col: Integers, columns: int) -> Integers:
    """starts: (blocks + 1, rows); block b of row r begins at starts[b, r]."""
    blocks = _blocks(len(col), len(crow) - 1, columns)
    return row_starts(crow, col, block_width(columns, blocks), blocks)


def index_columns(
    crow: Integers, col: Integers, columns: int
) -> tuple[Integers, Integers, Integers]:
    """The transposed structure: starts, row, perm.

    Its non-zeros are sorted by group of columns, block of rows, column and row; number
    t is at row[t] and has values[perm[t]]. A cell is what a column has in a block.

    Returns:
        starts: (columns * blocks + 1,), where each cell begins.
        row, perm: (nnz,).
    """
    rows = len(crow) - 1
    blocks = _blocks(len(col), columns, rows)
    starts = np.zeros(columns * blocks + 1, np.int32)
    row, perm = np.empty_like(col), np.empty_like(col)
    _transpose(crow, col, columns, block_width(rows, blocks), blocks, starts, row, perm)
    return starts, row, perm


def shapes_of_starts(
    nnz: int, rows: int, columns: int
) -> tuple[tuple[int, int], tuple[int]]:
    """Of what `index_rows` and `index_columns` return."""
    return (
        (_blocks(nnz, rows, columns) + 1, rows),
        (columns * _blocks(nnz, columns, rows) + 1,),
    )


def _blocks(nnz: int, rows: int, columns: int) -> int:
    return min(max(1, round(nnz / max(1, rows) / PER_BLOCK)), max(1, columns))


def block_width(columns: int, blocks: int) -> int:
    return max(1, -(-columns // blocks))


@njit(nogil=True, cache=True)
def _transpose(
    crow: Integers,
    col: Integers,
    columns: int,
    width: int,
    blocks: int,
    starts: Integers,
    row: Integers,
    perm: Integers,
) -> None:
    """Counts the non-zeros of each cell, then puts them into their places."""
    for fill in range(2):
        if fill:
            total = 0
            for cell in range(len(starts)):
                count = starts[cell]
                starts[cell] = total
                total += count
        for r in range(len(crow) - 1):
            block = r // width
            for t in range(crow[r], crow[r + 1]):
                first = col[t] // GROUP * GROUP
                size = min(GROUP, columns - first)
                cell = first * blocks + block * size + col[t] - first
                if fill:
                    place = starts[cell]
                    row[place] = r
                    perm[place] = t
                starts[cell] += 1
    for cell in range(len(starts) - 1, 0, -1):  # each has moved to its end
        starts[cell] = starts[cell - 1]
    starts[0] = 0
