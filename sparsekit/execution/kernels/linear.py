"""Products of a sparse matrix with a dense one, and the gradient at its non-zeros.

With W (rows, columns) sparse, x (batch, columns) and g (batch, rows):

    multiply              x W^T     through the rows of W
    multiply_transposed   g W       through its columns
    weight_gradient       g^T x     at the non-zeros of W only

The batch is innermost: a feature of all samples lies side by side, so that one weight
multiplies whole vectors of samples. Arrays are [batch, features] with strides
(1, batch); any other is packed first, in tiles of `lanes * vectors` samples.

Loops go over blocks of columns, so narrow that the inputs that they read stay in the
first cache levels, and in a block over a group of rows, so few that their sums do.
Columns ascend within a row, so a block needs no copy of the row, only where it begins
there (`starts`). The transposed structure is our own and lies in the order in which the
loops read it; its values are gathered cell by cell, as they are needed: a cell's values
come from few rows, so they come from the cache.

Indices are cast to unsigned types where plain loops read through them: numba tests
signed ones for being negative, and then does not vectorise (5x for one sample).
"""

import threading
from collections.abc import Callable
from functools import cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsekit.execution import threads
from sparsekit.execution.kernels.memory import floats
from sparsekit.execution.kernels.micro import VECTORS, dot_products, multiply_add

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]

PER_BLOCK = 32  # non-zeros of a row in a block
GROUP = 512  # rows
CHUNK = 2048  # values that are gathered at a time
FEW = 4  # samples that fit a short vector
LANES = 16
SIZES = tuple(n for n in (1, 2, 3, 4, 6, 8, 12, 16) if n <= VECTORS)
RATE = 50.0  # floating-point operations a nanosecond, to guess what is worth threads
ZERO = np.float32(0)


# ---- the structure -------------------------------------------------------------------


def index_rows(crow: Integers, col: Integers, columns: int) -> Integers:
    """starts: (blocks + 1, rows); block b of row r begins at starts[b, r]."""
    blocks = _blocks(len(col), len(crow) - 1, columns)
    starts = np.empty((blocks + 1, len(crow) - 1), np.int32)
    _find_blocks(crow, col, _width(columns, blocks), starts)
    return starts


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
    _transpose(crow, col, columns, _width(rows, blocks), blocks, starts, row, perm)
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


def _width(columns: int, blocks: int) -> int:
    return max(1, -(-columns // blocks))


@njit(nogil=True, cache=True)
def _find_blocks(crow: Integers, col: Integers, width: int, starts: Integers) -> None:
    blocks = starts.shape[0] - 1
    for r in range(starts.shape[1]):
        t = crow[r]
        for b in range(blocks):
            while t < crow[r + 1] and col[t] < b * width:
                t += 1
            starts[b, r] = t
        starts[blocks, r] = crow[r + 1]


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


# ---- products ------------------------------------------------------------------------


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
    source, target = tiles.read(x, 0), tiles.write(y, 1)
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
    width = _width(rows, blocks)
    work = 2.0 * len(values) * batch / RATE
    groups = -(-columns // GROUP)
    if batch == 1:
        threads.run(
            _vector_transposed, groups, columns, blocks, _contiguous(g), values,
            starts, row, perm, y.ctypes.data, nanoseconds=work,
        )  # fmt: skip
        return
    tiles = Tiles(batch)
    source, target = tiles.read(g, 0), tiles.write(y, 1)
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
        *tiles.read(x, 0), starts, col, out, *tiles.read(g, 1), nanoseconds=work,
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


# ---- tiles ---------------------------------------------------------------------------


class Tiles:
    """A batch cut into tiles of `vectors` vectors of `lanes` samples.

    Attributes:
        count: of tiles; the last may hold samples that do not exist.
    """

    def __init__(self, batch: int):
        self.batch = batch
        self.lanes = FEW if batch <= FEW else LANES
        needed = -(-batch // self.lanes)
        # a vector more costs less than a tile more, whose non-zeros are read again
        self.vectors = min(SIZES, key=lambda size: -(-needed // size) * (size + 1.5))
        self.count = -(-needed // self.vectors)
        self.samples = self.lanes * self.vectors

    def fits(self, x: Floats) -> bool:
        """Does a kernel read and write it where it is?"""
        return x.strides[0] == 4 and self.batch == self.samples

    def read(self, x: Floats, slot: int) -> tuple[int, int, int]:
        """Address, bytes to the next tile, bytes to the next feature."""
        if self.fits(x):
            return x.ctypes.data, 0, x.strides[1]
        place = self.scratch(x.shape[1], slot)
        sample, feature = (stride // 4 for stride in x.strides)
        pack = _copy_in if sample == 1 else _transpose_in
        tasks = self.count * -(-x.shape[1] // LANES)
        threads.run(
            pack, tasks, x.ctypes.data, *x.shape, sample, feature, self.samples,
            place[0], nanoseconds=x.size / 2,
        )  # fmt: skip
        return place

    def write(self, y: Floats, slot: int) -> "_Target":
        if self.fits(y):
            return _Target(self, y, (y.ctypes.data, 0, y.strides[1]), False)
        return _Target(self, y, self.scratch(y.shape[1], slot), True)

    def scratch(self, features: int, slot: int) -> tuple[int, int, int]:
        row = 4 * self.samples
        return _scratch(self.count * features * row, slot), features * row, row


class _Target:
    """Where a kernel writes, and how it gets from there to where it belongs."""

    def __init__(
        self, tiles: Tiles, y: Floats, place: tuple[int, int, int], packed: bool
    ):
        self.tiles, self.y, self.place, self.packed = tiles, y, place, packed

    def finish(self) -> None:
        if self.packed:
            threads.run(
                _copy_out, self.y.shape[1], self.place[0], *self.y.shape,
                self.tiles.samples, self.y.ctypes.data, nanoseconds=self.y.size / 2,
            )  # fmt: skip


@njit(nogil=True, cache=True)
def _copy_in(begin, end, x, batch, features, per_sample, per_feature, samples, out):  # type: ignore[no-untyped-def]
    """Tiles of samples that lie side by side; those that do not exist are 0."""
    parts = (features + LANES - 1) // LANES
    for task in range(begin, end):
        tile = task // parts
        first = (task - tile * parts) * LANES
        count = min(samples, batch - tile * samples)
        for f in range(first, min(features, first + LANES)):
            source = floats(x + 4 * (f * per_feature + tile * samples), count)
            target = floats(out + 4 * samples * (tile * features + f), samples)
            target[:count] = source
            target[count:] = 0


@njit(nogil=True, cache=True)
def _transpose_in(  # type: ignore[no-untyped-def]
    begin, end, x, batch, features, per_sample, per_feature, samples, out
):  # fmt: skip
    """Tiles of an array of any strides."""
    parts = (features + LANES - 1) // LANES
    for task in range(begin, end):
        tile = task // parts
        first = (task - tile * parts) * LANES
        width = min(LANES, features - first)
        count = min(samples, batch - tile * samples)
        target = floats(out + 4 * samples * (tile * features + first), width * samples)
        if count < samples:
            target[:] = 0
        for s in range(count):
            place = x + 4 * ((tile * samples + s) * per_sample + first * per_feature)
            source = floats(place, (width - 1) * per_feature + 1)
            for f in range(width):
                target[f * samples + s] = source[f * per_feature]


@njit(nogil=True, cache=True)
def _copy_out(begin, end, y, batch, features, samples, out):  # type: ignore[no-untyped-def]
    for f in range(begin, end):
        target = floats(out + 4 * f * batch, batch)
        for tile in range((batch + samples - 1) // samples):
            count = min(samples, batch - tile * samples)
            source = floats(y + 4 * samples * (tile * features + f), count)
            target[tile * samples : tile * samples + count] = source


class _Slots(threading.local):
    """Memory of this thread that is used again: fresh pages cost more than the copy."""

    def __init__(self) -> None:
        self.arrays: dict[int, NDArray[np.uint8]] = {}


_slots = _Slots()


def _scratch(size: int, slot: int) -> int:
    """Address of at least `size` bytes, a multiple of 64."""
    array = _slots.arrays.get(slot)
    if array is None or len(array) < size + 64:
        array = _slots.arrays[slot] = np.empty(size + 64, np.uint8)
    address = array.ctypes.data
    return address + -address % 64
