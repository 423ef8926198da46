"""Products of a sparse matrix with a dense one, and the gradient at its non-zeros.

With W (rows, columns) sparse, x (batch, columns) and g (batch, rows):

    multiply              x W^T     through the rows of W
    multiply_transposed   g W       through its columns
    weight_gradient       g^T x     at the non-zeros of W only

The batch is innermost: a feature of all samples lies side by side, so that one weight
multiplies whole vectors of samples. Arrays are [batch, features] with strides
(1, batch); any other is packed first (`samples`).

Loops go over blocks of columns, so narrow that the inputs that they read stay in the
first cache levels, and in a block over a group of rows, so few that their sums do
(`linear_structure`). Values of the transposed structure are gathered cell by cell, as
they are needed: a cell's values come from few rows, so they come from the cache.

Indices are cast to unsigned types where plain loops read through them: numba tests
signed ones for being negative, and then does not vectorise (5x for one sample).
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import njit

from sparsekit.execution import threads
from sparsekit.execution.kernels.linear_structure import GROUP, Integers, block_width
from sparsekit.execution.kernels.memory import floats
from sparsekit.execution.kernels.micro import dot_products, multiply_add
from sparsekit.execution.kernels.samples import Floats, Tiles

CHUNK = 2048  # values that are gathered at a time
RATE = 50.0  # floating-point operations a nanosecond, to guess what is worth threads
ZERO = np.float32(0)


def multiply(
    x: Floats,
    values: Floats,
    starts: Integers,
    col: Integers,
    bias: Floats | None,
    y: Floats,
) -> None:
    """y = x W^T + bias.

    Args:
        x: [batch, columns], any strides.
        values, col: (nnz,), row by row.
        starts: from `index_rows`.
        bias: (rows,) or None.
        y: [batch, rows] with strides (1, batch), in floats; overwritten.
    """
    rows, batch = starts.shape[1], len(x)
    start = np.zeros(rows, np.float32) if bias is None else bias
    work = 2.0 * len(values) * batch / RATE
    if batch == 1:
        threads.run(
            _vector, rows, _contiguous(x), values, starts, col, start, y.ctypes.data,
            nanoseconds=work,
        )  # fmt: skip
        return
    tiles = Tiles(batch)
    source, target = tiles.read(x, "x"), tiles.write(y, "y")
    groups = -(-rows // GROUP)
    threads.run(
        _product(tiles.lanes, tiles.vectors), tiles.count * groups, groups, *source,
        values, starts, col, start, *target.place, nanoseconds=work,
    )  # fmt: skip
    target.finish()


def multiply_transposed(
    g: Floats, values: Floats, starts: Integers, row: Integers, perm: Integers,
    rows: int, y: Floats,
) -> None:  # fmt: skip
    """y = g W.

    Args:
        g: [batch, rows], any strides.
        values: (nnz,), row by row.
        starts, row, perm: from `index_columns`.
        y: [batch, columns] with strides (1, batch), in floats; overwritten.
    """
    batch, columns = y.shape
    blocks = (len(starts) - 1) // max(1, columns)
    width = block_width(rows, blocks)
    work = 2.0 * len(values) * batch / RATE
    groups = -(-columns // GROUP)
    if batch == 1:
        threads.run(
            _vector_transposed, groups, columns, blocks, _contiguous(g), values,
            starts, row, perm, y.ctypes.data, nanoseconds=work,
        )  # fmt: skip
        return
    tiles = Tiles(batch)
    source, target = tiles.read(g, "x"), tiles.write(y, "y")
    threads.run(
        _product_transposed(tiles.lanes, tiles.vectors), tiles.count * groups, groups,
        columns, blocks, width, *source, values, starts, row, perm, *target.place,
        nanoseconds=work,
    )  # fmt: skip
    target.finish()


def weight_gradient(
    g: Floats, x: Floats, starts: Integers, col: Integers, out: Floats
) -> None:
    """out[t] = sum over samples of g[:, r] x[:, c], for non-zero t at (r, c).

    Args:
        g: [batch, rows]; x: [batch, columns]; any strides.
        starts, col: as for `multiply`.
        out: (nnz,), overwritten.
    """
    rows, batch = starts.shape[1], len(x)
    work = 2.0 * len(col) * batch / RATE
    if batch == 1:
        threads.run(
            _outer, rows, _contiguous(g), _contiguous(x), starts, col, out,
            nanoseconds=work,
        )  # fmt: skip
        return
    tiles = Tiles(batch)
    threads.run(
        _dots(tiles.lanes, tiles.vectors), -(-rows // GROUP), tiles.count,
        *tiles.read(x, "x"), starts, col, out, *tiles.read(g, "y"), nanoseconds=work,
    )  # fmt: skip


@cache
def _product(lanes: int, vectors: int) -> Callable[..., None]:
    step = 4 * lanes

    @njit(nogil=True, cache=True)
    def kernel(  # type: ignore[no-untyped-def]
        begin, end, groups, x, x_tile, x_row, values, starts, col, bias, y, y_tile,
        y_row,
    ):  # fmt: skip
        blocks, rows = starts.shape[0] - 1, starts.shape[1]
        weights, columns = values.ctypes.data, col.ctypes.data
        for task in range(begin, end):
            tile = task // groups
            first = (task - tile * groups) * GROUP
            for b in range(blocks):
                for r in range(first, min(rows, first + GROUP)):
                    low, high = np.int64(starts[b, r]), np.int64(starts[b + 1, r])
                    if low < high or b == 0:
                        multiply_add(
                            lanes, 1, vectors, step, step,
                            x + tile * x_tile, 0, columns, x_row, weights, low, high,
                            y + tile * y_tile + r * y_row, 0, b, bias[r],
                        )  # fmt: skip

    return kernel


@cache
def _product_transposed(lanes: int, vectors: int) -> Callable[..., None]:
    step = 4 * lanes

    @njit(nogil=True, cache=True)
    def kernel(  # type: ignore[no-untyped-def]
        begin, end, groups, columns, blocks, width, x, x_tile, x_row, values, starts,
        row, perm, y, y_tile, y_row,
    ):  # fmt: skip
        gathered = np.empty(CHUNK + width, np.float32)
        weights, rows = gathered.ctypes.data, row.ctypes.data
        for task in range(begin, end):
            tile = task // groups
            first = (task - tile * groups) * GROUP
            size = min(GROUP, columns - first)
            for b in range(blocks):
                cells = first * blocks + b * size
                last = 0
                while last < size:
                    begun = last
                    origin = np.int64(starts[cells + begun])
                    last += 1
                    while last < size and starts[cells + last] - origin < CHUNK:
                        last += 1
                    count = np.uint64(starts[cells + last] - origin)
                    for k in range(count):
                        place = np.uint32(perm[np.uint64(origin) + k])
                        gathered[k] = values[place]
                    for c in range(begun, last):
                        low = np.int64(starts[cells + c])
                        high = np.int64(starts[cells + c + 1])
                        if low < high or b == 0:
                            multiply_add(
                                lanes, 1, vectors, step, step,
                                x + tile * x_tile, 0, rows + 4 * origin, x_row, weights,
                                low - origin, high - origin,
                                y + tile * y_tile + (first + c) * y_row, 0, b, ZERO,
                            )  # fmt: skip

    return kernel


@cache
def _dots(lanes: int, vectors: int) -> Callable[..., None]:
    step = 4 * lanes

    @njit(nogil=True, cache=True)
    def kernel(  # type: ignore[no-untyped-def]
        begin, end, tiles, x, x_tile, x_row, starts, col, out, g, g_tile, g_row,
    ):  # fmt: skip
        blocks, rows = starts.shape[0] - 1, starts.shape[1]
        sums, columns = out.ctypes.data, col.ctypes.data
        for task in range(begin, end):
            first, last = task * GROUP, min(rows, (task + 1) * GROUP)
            out[starts[0, first] : starts[blocks, last - 1]] = 0
            for tile in range(tiles):
                for b in range(blocks):
                    for r in range(first, last):
                        low, high = np.int64(starts[b, r]), np.int64(starts[b + 1, r])
                        dot_products(
                            lanes, 1, vectors, step, step,
                            x + tile * x_tile, 0, columns, x_row, sums, low, high,
                            g + tile * g_tile + r * g_row, 0,
                        )  # fmt: skip

    return kernel


# ---- one sample ----------------------------------------------------------------------


@njit(nogil=True, cache=True, fastmath=True)
def _vector(begin, end, x, values, starts, col, bias, y):  # type: ignore[no-untyped-def]
    out = floats(y, starts.shape[1])
    last = starts.shape[0] - 1
    for r in range(begin, end):
        total = bias[r]
        for t in range(np.uint64(starts[0, r]), np.uint64(starts[last, r])):
            total += values[t] * x[np.uint32(col[t])]
        out[r] = total


@njit(nogil=True, cache=True, fastmath=True)
def _vector_transposed(begin, end, columns, blocks, g, values, starts, row, perm, y):  # type: ignore[no-untyped-def]
    out = floats(y, columns)
    for group in range(begin, end):
        first = group * GROUP
        size = min(GROUP, columns - first)
        out[first : first + size] = 0
        for b in range(blocks):
            cells = first * blocks + b * size
            for c in range(size):
                total = ZERO
                end_of_cell = np.uint64(starts[cells + c + 1])
                for t in range(np.uint64(starts[cells + c]), end_of_cell):
                    total += values[np.uint32(perm[t])] * g[np.uint32(row[t])]
                out[first + c] += total


@njit(nogil=True, cache=True)
def _outer(begin, end, g, x, starts, col, out):  # type: ignore[no-untyped-def]
    last = starts.shape[0] - 1
    for r in range(begin, end):
        for t in range(np.uint64(starts[0, r]), np.uint64(starts[last, r])):
            out[t] = g[r] * x[np.uint32(col[t])]


def _contiguous(x: Floats) -> Floats:
    """The only sample of a batch."""
    return np.ascontiguousarray(x[0])
