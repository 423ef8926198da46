"""Convolutions whose work is that of the weights that exist, on the blocked layout.

An activation is [G, C, H + 2, W + 2, 16] with a border of zeros (see
`kernels.layout`); a weight at (o, c, kh, kw) multiplies vectors of 16 images. For one
tile of output pixels, the sum over the non-zeros of an output channel stays in
registers; input channels are taken in blocks, so that their part of the tile stays in
the first-level cache while all output channels pass by:

    for tile: for block of channels: for o:
        Y[o, tile] += sum over non-zeros t of (o, block): values[t] * X[tile at t]

The input gradient is the same loop over the transposed weights: rows are the input
channels. With stride 2, pixels of equal parity (row, column) get their gradient from
the same taps, so there are four such loops, of 1, 2, 2 and 4 taps. The weight gradient
holds a tile of the output gradient in registers and takes the dot product with X at
each non-zero.

Non-zeros keep their order in memory, row by row of the weight matrix [O, C * taps];
blocks of channels are found through `starts`. A column becomes the place of its input
vector, which depends on the image's size, in each call: 0.2 ns a non-zero.
"""

import math
from functools import cache
from threading import local
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsekit.execution import threads
from sparsekit.execution.kernels.micro import (
    LANES,
    VECTORS,
    dot_products,
    multiply_add,
    multiply_add_finish,
)

VECTOR = 4 * LANES  # bytes
NEAR = 32 * 1024  # bytes of input that stay in the first-level cache beside the rest
NONZEROS = 11  # of a row in a block, at least; fewer do not pay for the sum's transport
RATE = 150.0  # floating-point operations a nanosecond, to guess what is worth threads

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]


class Rows(NamedTuple):
    """Non-zeros of a weight matrix, or of its transpose, as the loops take them.

    Attributes:
        columns: (nnz,) int32, channel * taps + tap, channels ascending within a row.
        starts: (classes, blocks + 1, rows) int32; the non-zeros of a class, block of
            channels and row are starts[class, block, row] .. starts[class, block + 1,
            row]. Classes are parities of pixels, see the module; else there is one.
    """

    columns: Integers
    starts: Integers


# ---- the structure -------------------------------------------------------------------


def channels_of_a_block(nnz: int, rows: int, channels: int, taps: int) -> int:
    """A power of two: as many as stay near, or more where non-zeros are few."""
    side = 2 if taps > 1 else 0
    tile = _largest_tile()
    near = NEAR // ((tile[0] + side) * (tile[1] + side) * VECTOR)
    few = NONZEROS * rows * channels / max(nnz, 1)  # channels with so many non-zeros
    return 1 << max(0, round(math.log2(min(max(near, few), channels))))


def shapes_of_starts(
    nnz: int, rows: int, channels: int, taps: int, stride: int
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Of `row_order` and of `column_order`."""
    classes = int(_parities(taps, stride).max()) + 1
    block = channels_of_a_block(nnz, rows, channels, taps)
    transposed = channels_of_a_block(nnz, channels, rows, taps // classes)
    blocks, transposed_blocks = -(-channels // block), -(-rows // transposed)
    return (1, blocks + 1, rows), (classes, transposed_blocks + 1, channels)


def row_order(crow: Integers, col: Integers, taps: int, channels: int) -> Rows:
    """The loops' view of a weight matrix in rows, which stays as it is."""
    rows = len(crow) - 1
    block = channels_of_a_block(len(col), rows, channels, taps)
    shape, _ = shapes_of_starts(len(col), rows, channels, taps, 1)
    starts = np.empty(shape, np.int32)
    _row_starts(crow, col, block * taps, starts[0])
    return Rows(col, starts)


def column_order(
    crow: Integers, col: Integers, taps: int, channels: int, stride: int
) -> tuple[Rows, Integers]:
    """The transposed weights, a row an input channel, for the input gradient.

    Returns:
        rows: `columns` are output channel * taps + tap.
        permutation: (nnz,) int32; transposed value t is values[permutation[t]].
    """
    rows = len(crow) - 1
    parity = _parities(taps, stride)
    _, shape = shapes_of_starts(len(col), rows, channels, taps, stride)
    starts = np.empty(shape, np.int32)
    columns, permutation = np.empty_like(col), np.empty_like(col)
    block = channels_of_a_block(len(col), channels, rows, taps // shape[0])
    _transpose(crow, col, parity, block, starts, columns, permutation)
    return Rows(columns, starts), permutation


def _parities(taps: int, stride: int) -> Integers:
    """(taps,) class of the input pixels that a tap takes the gradient to."""
    if stride == 1 or taps == 1:
        return np.zeros(taps, np.int32)
    odd = np.array([1, 0, 1], np.int32)  # row 2h + kh - 1
    return (2 * odd[:, None] + odd[None, :]).ravel()


@njit(nogil=True, cache=True)
def _row_starts(crow: Integers, col: Integers, width: int, starts: Integers) -> None:
    blocks = starts.shape[0] - 1
    for row in range(starts.shape[1]):
        t = crow[row]
        for block in range(blocks):
            starts[block, row] = t
            limit = (block + 1) * width
            while t < crow[row + 1] and col[t] < limit:
                t += 1
        starts[blocks, row] = t


@njit(nogil=True, cache=True)
def _transpose(
    crow: Integers,
    col: Integers,
    parity: Integers,
    block: int,
    starts: Integers,
    columns: Integers,
    permutation: Integers,
) -> None:
    """A counting sort by (input channel, class, block of output channels)."""
    classes, ends, channels = starts.shape
    taps = len(parity)
    counts = np.zeros((channels, classes, ends - 1), np.int32)
    for row in range(len(crow) - 1):
        for t in range(crow[row], crow[row + 1]):
            channel = col[t] // taps
            counts[channel, parity[col[t] - channel * taps], row // block] += 1
    total = 0
    for channel in range(channels):
        for kind in range(classes):
            for b in range(ends - 1):
                starts[kind, b, channel] = total
                count = counts[channel, kind, b]
                counts[channel, kind, b] = (
                    total  # from here on: where the next one goes
                )
                total += count
            starts[kind, ends - 1, channel] = total
    for row in range(len(crow) - 1):
        for t in range(crow[row], crow[row + 1]):
            channel = col[t] // taps
            tap = col[t] - channel * taps
            place = counts[channel, parity[tap], row // block]
            counts[channel, parity[tap], row // block] += 1
            columns[place] = row * taps + tap
            permutation[place] = t


# ---- the three products --------------------------------------------------------------


def forward(
    x: Floats,
    values: Floats,
    rows: Rows,
    y: Floats,
    taps: int,
    stride: int,
    bias: Floats | None = None,
    residual: Floats | None = None,
    clip: tuple[float, float] | None = None,
) -> None:
    """y = clip(conv(x) + bias + residual), the inside of y; blocked arrays.

    Args:
        x: [G, C, H + 2, W + 2, 16]; 3x3 kernels pad by its border, 1x1 ones skip it.
        y: [G, O, H' + 2, W' + 2, 16], H' = ceil(H / stride). Its border is not written.
        taps: 9 or 1.
        bias: (O,).
        residual: like y.
        clip: (0, inf) is ReLU, (0, 6) ReLU6.
    """
    offsets = _offsets(rows.columns, x, _inside(taps))
    start = _nothing(len(rows.starts[0, 0])) if bias is None else bias
    finish = residual is not None or clip is not None
    low, high = clip or (-np.inf, np.inf)
    last = _address(residual) if residual is not None else 0
    kernel = (LANES * 4 * stride, VECTOR, finish)
    _spread(
        kernel, x, stride, offsets, values, rows.starts[0], y, 1, (0, 0), start,
        last, np.float32(low), np.float32(high),
    )  # fmt: skip


def input_gradient(
    grad: Floats,
    values: Floats,
    rows: Rows,
    permutation: Integers,
    out: Floats,
    taps: int,
    stride: int,
) -> None:
    """out = gradient of the input of `forward`, its inside; blocked arrays.

    Args:
        grad: of y; zero in the border.
        rows, permutation: of `column_order`.
        out: like x. Its border is not written.
    """
    transposed = _scratch("values", len(values), np.float32)
    np.take(values, permutation, out=transposed, mode="clip")
    offsets = _offsets(rows.columns, grad, _towards_input(taps, stride))
    nothing = _nothing(out.shape[1])
    if stride == 2 and taps == 1:
        out.fill(0)  # three of four pixels were not read
    for kind, starts in enumerate(rows.starts):
        _spread(
            (VECTOR, VECTOR * stride, False), grad, 1, offsets, transposed, starts,
            out, stride, divmod(kind, 2), nothing, 0, np.float32(0), np.float32(0),
        )  # fmt: skip


def weight_gradient(
    x: Floats, grad: Floats, rows: Rows, out: Floats, taps: int, stride: int
) -> None:
    """out = gradient of the values of `forward`; grad is zero in spare lanes."""
    offsets = _offsets(rows.columns, x, _inside(taps))
    out.fill(0)
    groups, outputs, height, width, _ = grad.shape
    pieces = max(1, min(threads.PIECES, outputs // 64))
    for (top, tile_rows, down), (left, tile_columns, across) in _tiles(
        height - 2, width - 2
    ):
        pixels = groups * tile_rows * down * tile_columns * across
        threads.run(
            _weight_gradient(tile_rows, tile_columns, VECTOR * stride),
            outputs,
            *_view(x, top, left, stride, tile_rows, tile_columns, 0),
            _address(offsets), _address(out), rows.starts[0],
            *_view(grad, top, left, 1, tile_rows, tile_columns, 1),
            grad.strides[1], groups, down, across,
            nanoseconds=2 * LANES * pixels * len(out) / RATE,
            pieces=pieces,
        )  # fmt: skip


def _spread(
    kernel: tuple[int, int, bool],
    x: Floats,
    x_stride: int,
    offsets: Integers,
    values: Floats,
    starts: Integers,
    y: Floats,
    y_stride: int,
    first: tuple[int, int],
    start: Floats,
    residual: int,
    low: np.float32,
    high: np.float32,
) -> None:
    """Runs the forward loop over the pixels of y from `first` on, every y_stride-th."""
    groups, outputs, height, width, _ = y.shape
    rows = -(-(height - 2 - first[0]) // y_stride)
    columns = -(-(width - 2 - first[1]) // y_stride)
    for (top, tile_rows, down), (left, tile_columns, across) in _tiles(rows, columns):
        target = _view(y, top, left, y_stride, tile_rows, tile_columns, 1)
        shift = first[0] * y.strides[2] + first[1] * VECTOR
        parts = max(1, min(outputs // 32, 8 // max(1, groups * down)))
        pixels = groups * tile_rows * down * tile_columns * across
        threads.run(
            _forward(tile_rows, tile_columns, *kernel),
            groups * parts * down,
            *_view(x, top, left, x_stride, tile_rows, tile_columns, 0),
            _address(offsets), _address(values), starts,
            target[0] + shift, *target[1:],
            y.strides[1], parts, down, across, start,
            residual and residual + target[0] + shift - _address(y), low, high,
            nanoseconds=2 * LANES * pixels * len(values) / RATE,
        )  # fmt: skip


@cache
def _forward(rows: int, columns: int, x_step: int, y_step: int, finish: bool) -> Any:
    """The loop for tiles of rows x columns pixels; a task is (chunk, outputs, row)."""

    @njit(nogil=True, cache=True)
    def conv_forward(
        begin: int, end: int,
        x: int, x_group: int, x_row: int, x_down: int, x_across: int,
        offsets: int, values: int, starts: Integers,
        y: int, y_group: int, y_row: int, y_down: int, y_across: int,
        y_channel: int, parts: int, down: int, across: int, start: Floats,
        residual: int, low: float, high: float,
    ) -> None:  # fmt: skip
        blocks = starts.shape[0] - 1
        outputs = starts.shape[1]
        for task in range(begin, end):
            group = task // (parts * down)
            part = task // down - group * parts
            row = task - (group * parts + part) * down
            for column in range(across):
                source = x + group * x_group + row * x_down + column * x_across
                shift = group * y_group + row * y_down + column * y_across
                for block in range(blocks):
                    for o in range(
                        part * outputs // parts, (part + 1) * outputs // parts
                    ):
                        t0 = np.int64(starts[block, o])
                        t1 = np.int64(starts[block + 1, o])
                        target = shift + o * y_channel
                        if finish:
                            multiply_add_finish(
                                16, rows, columns, x_step, y_step,
                                source, x_row, offsets, 64, values, t0, t1,
                                y + target, y_row, block,
                                block == blocks - 1,
                                residual + target if residual else 0,
                                start[o], low, high,
                            )  # fmt: skip
                        else:
                            multiply_add(
                                16, rows, columns, x_step, y_step,
                                source, x_row, offsets, 64, values, t0, t1,
                                y + target, y_row, block, start[o],
                            )  # fmt: skip

    return conv_forward


@cache
def _weight_gradient(rows: int, columns: int, x_step: int) -> Any:
    """The loop for tiles of rows x columns pixels; a task is an output channel."""

    @njit(nogil=True, cache=True)
    def conv_weight_gradient(
        begin: int, end: int,
        x: int, x_group: int, x_row: int, x_down: int, x_across: int,
        offsets: int, out: int, starts: Integers,
        g: int, g_group: int, g_row: int, g_down: int, g_across: int,
        g_channel: int, groups: int, down: int, across: int,
    ) -> None:  # fmt: skip
        for group in range(groups):
            for row in range(down):
                for column in range(across):
                    source = x + group * x_group + row * x_down + column * x_across
                    grad = g + group * g_group + row * g_down + column * g_across
                    for block in range(starts.shape[0] - 1):
                        for o in range(begin, end):
                            dot_products(
                                16, rows, columns, x_step, 64,
                                source, x_row, offsets, 64, out,
                                np.int64(starts[block, o]),
                                np.int64(starts[block + 1, o]),
                                grad + o * g_channel, g_row,
                            )  # fmt: skip

    return conv_weight_gradient


# ---- where things are ----------------------------------------------------------------


def _inside(taps: int) -> list[tuple[int, int]]:
    """(row, column) of the padded input that a tap reads for the first output pixel."""
    if taps == 1:
        return [(1, 1)]
    return [(row, column) for row in range(3) for column in range(3)]


def _towards_input(taps: int, stride: int) -> list[tuple[int, int]]:
    """Where the padded output gradient lies that a tap brings to the first pixel.

    For 3x3 with stride 1, x[h] went to y[h + 1 - kh]: kernels are flipped. With stride
    2, x[2h] went to y[h] by kh = 1, and x[2h + 1] to y[h + 1] by 0 and to y[h] by 2.
    """
    if taps == 1:
        return [(1, 1)]
    places = [2, 1, 0] if stride == 1 else [2, 1, 1]
    return [(row, column) for row in places for column in places]


def _offsets(columns: Integers, x: Floats, taps: list[tuple[int, int]]) -> Integers:
    """Of each non-zero: where its first vector lies, in vectors."""
    channel, row = x.strides[1] // VECTOR, x.strides[2] // VECTOR
    if x.shape[1] * channel > np.iinfo(np.int32).max:
        raise ValueError(f"images are too large for 32-bit offsets: {x.shape}")
    shifts = np.array([r * row + column for r, column in taps], np.int32)
    out = _scratch("offsets", len(columns), np.int32)
    _fill_offsets(len(taps))(columns, np.int32(channel), shifts, out)
    return out


@cache
def _fill_offsets(taps: int) -> Any:
    @njit(nogil=True, cache=True)
    def fill_offsets(
        columns: Integers, channel: int, shifts: Integers, out: Integers
    ) -> None:
        for t in range(len(columns)):
            column = np.uint32(columns[t])
            index = column // np.uint32(taps)
            out[t] = index * np.uint32(channel) + np.uint32(
                shifts[column - index * np.uint32(taps)]
            )

    return fill_offsets


def _view(
    array: Floats, top: int, left: int, stride: int, rows: int, columns: int, pad: int
) -> tuple[int, ...]:
    """Address of a first tile; bytes to the next chunk, row, tile below, beside."""
    _, _, row, pixel, _ = array.strides
    first = _address(array) + (top * stride + pad) * row + (left * stride + pad) * pixel
    down, across = rows * stride * row, columns * stride * pixel
    return first, array.strides[0], stride * row, down, across


def _tiles(height: int, width: int) -> list[tuple[Any, Any]]:
    """Cuts pixels into tiles: pairs of (first, size, count) of rows and of columns."""
    if not height or not width:
        return []
    rows, columns = _largest_tile(height, width)
    return [(a, b) for a in _cut(height, rows) for b in _cut(width, columns)]


def _largest_tile(height: int = 1 << 20, width: int = 1 << 20) -> tuple[int, int]:
    """(rows, columns) whose vectors fit the registers: 2 x 8 of 16, or 4 x 4."""
    columns = min(VECTORS // 2, width)
    columns = -(-width // -(-width // max(columns, 1)))
    return max(1, min(VECTORS // max(columns, 1), height)), columns


def _cut(length: int, most: int) -> list[tuple[int, int, int]]:
    """(first, size, count): pieces of `length` as equal as can be, no longer than most.

    >>> _cut(32, 8), _cut(13, 5)
    ([(0, 8, 4)], [(0, 5, 1), (5, 4, 2)])
    """
    count = -(-length // max(most, 1))
    if not count:
        return []
    size, longer = divmod(length, count)
    pieces = [(0, size + 1, longer), (longer * (size + 1), size, count - longer)]
    return [piece for piece in pieces if piece[2]]


def _address(array: NDArray[Any]) -> int:
    return array.ctypes.data


_memory = local()


def _scratch(name: str, length: int, dtype: Any) -> NDArray[Any]:
    """(length,), anything inside; the same memory in every call of this thread."""
    array = getattr(_memory, name, None)
    if array is None or len(array) < length:
        array = np.empty(length, dtype)
        setattr(_memory, name, array)
    return array[:length]


@cache
def _nothing(length: int) -> Floats:
    return np.zeros(length, np.float32)
