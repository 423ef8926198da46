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

Where the non-zeros of a row and block are is in `starts`, see `conv_structure`. A
column becomes the place of its input vector, which depends on the image's size, in each
call: 0.14 ns a non-zero.

Activations of a training step do not fit the caches together: a tile's vectors are
asked for while the tile before it is computed.

Arrays come as addresses of contiguous float32 or int32; nothing is checked.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from sparsekit.execution import threads
from sparsekit.execution.kernels.layout import LANES
from sparsekit.execution.kernels.memory import floats, integers, scratch
from sparsekit.execution.kernels.micro import (
    dot_products,
    multiply_add,
    multiply_add_finish,
    prefetch,
)
from sparsekit.execution.kernels.tiles import VECTOR, pieces, steps

LARGEST = 2**31 - 1  # of int32
AHEAD = 2  # channels: so early a block is asked for that comes from afar
RATE = 150.0  # floating-point operations a nanosecond, to guess what is worth threads

INSIDE, INPUT, EVERY_SECOND = range(3)  # what is read there, see _fill_offsets


class Rows(NamedTuple):
    """Non-zeros of a weight matrix, or of its transpose, as the loops take them.

    Attributes:
        columns: address of (nnz,) int32, channel * taps + tap; channels ascend within a
            row and class.
        starts: address of (classes, blocks + 1, rows) int32; the non-zeros of a class,
            block of channels and row are starts[class, block, row] .. starts[class,
            block + 1, row]. Classes are parities of pixels, see the module; else there
            is one.
        nnz: how many.
        shape: of starts.
    """

    columns: int
    starts: int
    nnz: int
    shape: tuple[int, ...]


class Images(NamedTuple):
    """A blocked array [groups, channels, height + 2, width + 2, 16]."""

    address: int
    groups: int
    channels: int
    height: int
    width: int


# ---- the three products --------------------------------------------------------------


def forward(
    x: Images,
    values: int,
    rows: Rows,
    y: int,
    taps: int,
    stride: int,
    bias: int = 0,
    residual: int = 0,
    clip: tuple[float, float] | None = None,
) -> None:
    """y = clip(conv(x) + bias + residual), the inside of y.

    Args:
        x: 3x3 kernels pad by its border, 1x1 ones skip it.
        y: [G, O, H' + 2, W' + 2, 16], H' = ceil(H / stride). Its border is not written.
        taps: 9 or 1.
        bias: of (O,), or 0.
        residual: of an array like y, or 0.
        clip: (0, inf) is ReLU, (0, 6) ReLU6.
    """
    offsets = _offsets(rows, x, taps, INSIDE)
    finish = bool(residual) or clip is not None
    low, high = clip or (-math.inf, math.inf)
    target = Images(
        y, x.groups, rows.shape[2], -(-x.height // stride), -(-x.width // stride)
    )
    _spread(
        x, target, (stride, 1, finish), (0, 1), offsets, values, rows, bias, residual,
        low, high,
    )  # fmt: skip


def input_gradient(
    grad: Images,
    values: int,
    rows: Rows,
    permutation: int,
    out: Images,
    taps: int,
    stride: int,
    base: int = 0,
) -> None:
    """out = base + gradient of the input of `forward`, its inside.

    Args:
        grad: of y; zero in the border.
        rows, permutation: of `conv_structure.column_order`.
        out: like x. Its border is not written.
        base: of an array like x, or 0.
    """
    transposed = scratch("values", 4 * rows.nnz)
    _gather(values, permutation, transposed, rows.nnz)
    offsets = _offsets(rows, grad, taps, INPUT if stride == 1 else EVERY_SECOND)
    parities: list[tuple[int, int]] = [(0, 1)]
    if stride == 2 and out.height % 2 == out.width % 2 == 0:
        parities = [(0, 4)]  # all of them while the tile is near
    elif stride == 2 and taps == 1:
        _fill(out.address, base, _length(out))  # three of four pixels were not read
    elif stride == 2:
        parities = [(parity, 1) for parity in range(4)]
    for which in parities:
        how = 1, stride, bool(base)
        clip = -math.inf, math.inf
        _spread(grad, out, how, which, offsets, transposed, rows, 0, base, *clip)


def weight_gradient(
    x: Images, grad: Images, rows: Rows, out: int, taps: int, stride: int
) -> None:
    """out = gradient of the values of `forward`; grad is zero in spare lanes."""
    offsets = _offsets(rows, x, taps, INSIDE)
    _fill(out, 0, rows.nnz)
    blocks, outputs = rows.shape[1] - 1, rows.shape[2]
    _, x_channel, x_row = steps(*x[1:])
    for piece in pieces(x[1:], grad[1:], stride, 1, 0):
        threads.run(
            _weight_gradient(*piece.tile, VECTOR * stride), outputs,
            x.address + piece.x, *piece.x_steps, offsets, out, rows.starts, blocks,
            outputs, grad.address + piece.y, *piece.y_steps, x.groups, piece.down,
            piece.across, x.channels, x_channel, 2 * (x_row + VECTOR),
            nanoseconds=2 * LANES * piece.pixels * rows.nnz / RATE,
            pieces=max(1, min(threads.PIECES, outputs // 64)),
        )  # fmt: skip


def _spread(
    x: Images,
    y: Images,
    how: tuple[int, int, bool],
    parities: tuple[int, int],
    offsets: int,
    values: int,
    rows: Rows,
    bias: int,
    residual: int,
    low: float,
    high: float,
) -> None:
    """Runs the forward loop.

    Args:
        how: strides of x and of y; whether a residual or a clip follows.
        parities: of the pixels of y, the first of them and how many.
    """
    x_stride, y_stride, finish = how
    parity, count = parities
    blocks, outputs = rows.shape[1] - 1, rows.shape[2]
    starts = rows.starts + 4 * parity * (blocks + 1) * outputs
    _, x_channel, x_row = steps(*x[1:])
    for piece in pieces(x[1:], y[1:], x_stride, y_stride, parity):
        threads.run(
            _forward(*piece.tile, VECTOR * x_stride, VECTOR * y_stride, finish),
            x.groups * piece.parts * piece.down,
            x.address + piece.x, *piece.x_steps, offsets, values,
            starts, min(count, rows.shape[0]), blocks, outputs,
            y.address + piece.y, *piece.y_steps,
            count, piece.parts, piece.down, piece.across,
            bias, residual and residual + piece.y, low, high,
            x.channels, x_channel, 2 * (x_row + VECTOR),
            nanoseconds=2 * LANES * piece.pixels * rows.nnz / RATE,
        )  # fmt: skip


@cache
def _forward(rows: int, columns: int, x_step: int, y_step: int, finish: bool) -> Any:
    """The loop for tiles of rows x columns pixels; a task is (chunk, outputs, row)."""

    @njit(nogil=True, cache=True)
    def conv_forward(
        begin: int, end: int,
        x: int, x_group: int, x_row: int, x_down: int, x_across: int,
        offsets: int, values: int,
        starts: int, classes: int, blocks: int, outputs: int,
        y: int, y_group: int, y_row: int, y_down: int, y_across: int, y_channel: int,
        parities: int, parts: int, down: int, across: int,
        bias: int, residual: int, low: float, high: float,
        channels: int, x_channel: int, x_new: int,
    ) -> None:  # fmt: skip
        firsts = integers(starts, classes * (blocks + 1) * outputs)
        start = floats(bias, outputs)
        for task in range(begin, end):
            group = task // (parts * down)
            part = task // down - group * parts
            row = task - (group * parts + part) * down
            o_begin = part * outputs // parts
            o_end = (part + 1) * outputs // parts
            for parity in range(parities):
                corner = group * y_group + row * y_down
                corner += parity // 2 * (y_row // 2) + parity % 2 * VECTOR
                exists = parity < classes  # else zeros are written
                for column in range(across):
                    source = x + group * x_group + row * x_down + column * x_across
                    shift = corner + column * y_across
                    following = source + x_across
                    if column + 1 == across:
                        following = x + group * x_group + (row + 1) * x_down
                        if row + 1 == down:
                            following = x + (group + 1) * x_group
                    for block in range(blocks if exists else 1):
                        first = (parity * (blocks + 1) + block) * outputs
                        for o in range(o_begin, o_end):
                            t0 = np.int64(firsts[first + o]) if exists else 0
                            t1 = np.int64(firsts[first + outputs + o]) if exists else 0
                            target = shift + o * y_channel
                            begins = start[o] if bias else np.float32(0)
                            if block == 0:
                                ahead = y + target + AHEAD * y_channel
                                prefetch(rows, columns, y_step, 1, ahead, y_row)
                                if o < channels:
                                    ahead = following + x_new + o * x_channel
                                    prefetch(rows, columns, x_step, 0, ahead, x_row)
                            if finish:
                                multiply_add_finish(
                                    16, rows, columns, x_step, y_step,
                                    source, x_row, offsets, 64, values, t0, t1,
                                    y + target, y_row, block,
                                    block == blocks - 1 or not exists,
                                    residual + target if residual else 0,
                                    begins, low, high,
                                )  # fmt: skip
                            else:
                                multiply_add(
                                    16, rows, columns, x_step, y_step,
                                    source, x_row, offsets, 64, values, t0, t1,
                                    y + target, y_row, block, begins,
                                )  # fmt: skip

    return conv_forward


@cache
def _weight_gradient(rows: int, columns: int, x_step: int) -> Any:
    """The loop for tiles of rows x columns pixels; a task is an output channel."""

    @njit(nogil=True, cache=True)
    def conv_weight_gradient(
        begin: int, end: int,
        x: int, x_group: int, x_row: int, x_down: int, x_across: int,
        offsets: int, out: int, starts: int, blocks: int, outputs: int,
        g: int, g_group: int, g_row: int, g_down: int, g_across: int, g_channel: int,
        groups: int, down: int, across: int, channels: int, x_channel: int,
        x_new: int,
    ) -> None:  # fmt: skip
        first = integers(starts, (blocks + 1) * outputs)
        for group in range(groups):
            for row in range(down):
                for column in range(across):
                    source = x + group * x_group + row * x_down + column * x_across
                    grad = g + group * g_group + row * g_down + column * g_across
                    following = source + x_across
                    if column + 1 == across:
                        following = x + group * x_group + (row + 1) * x_down
                        if row + 1 == down:
                            following = x + (group + 1) * x_group
                    for block in range(blocks):
                        for o in range(begin, end):
                            t0 = np.int64(first[block * outputs + o])
                            t1 = np.int64(first[(block + 1) * outputs + o])
                            if block == 0:
                                ahead = grad + (o + AHEAD) * g_channel
                                prefetch(rows, columns, 64, 0, ahead, g_row)
                                if o < channels:
                                    ahead = following + x_new + o * x_channel
                                    prefetch(rows, columns, x_step, 0, ahead, x_row)
                            dot_products(
                                16, rows, columns, x_step, 64,
                                source, x_row, offsets, 64, out, t0, t1,
                                grad + o * g_channel, g_row,
                            )  # fmt: skip

    return conv_weight_gradient


# ---- where things are ----------------------------------------------------------------


def _length(images: Images) -> int:
    """Floats of a blocked array."""
    return images.groups * steps(*images[1:])[0] // 4


def _offsets(rows: Rows, x: Images, taps: int, where: int) -> int:
    """Address of (nnz,) int32: where the first vector of each lies, in vectors."""
    _, channel, row = steps(*x[1:])
    if x.channels * channel // VECTOR > LARGEST:
        raise ValueError(f"images are too large for 32-bit offsets: {x}")
    out = scratch("offsets", 4 * rows.nnz)
    fill = _fill_offsets(taps, where)
    fill(rows.columns, channel // VECTOR, row // VECTOR, out, rows.nnz)
    return out


@cache
def _fill_offsets(taps: int, where: int) -> Any:
    """Column -> vectors from a tile's padded corner to what its tap reads first.

    The output reads INSIDE the padded input, from row kh on. Its gradient goes back the
    same way: x[h] went to y[h + 1 - kh], so that kernels are flipped; with stride 2,
    x[2h] went to y[h] by kh = 1, x[2h + 1] to y[h + 1] by 0 and to y[h] by 2.
    """

    @njit(nogil=True, cache=True)
    def fill_offsets(columns: int, channel: int, row: int, out: int, n: int) -> None:
        column, place = integers(columns, n), integers(out, n)
        for t in range(n):
            whole = np.int64(column[t])
            index, h, w = whole, np.int64(1), np.int64(1)
            if taps > 1:
                index = whole * 954437177 >> 33  # // 9, as vectors; whole < 2 ** 31
                tap = whole - index * 9
                h = tap * 11 >> 5  # // 3
                w = tap - h * 3
                if where == INPUT:
                    h, w = 2 - h, 2 - w
                elif where == EVERY_SECOND:
                    h, w = np.int64(1 + (h == 0)), np.int64(1 + (w == 0))
            place[t] = index * channel + h * row + w

    return fill_offsets


@njit(nogil=True, cache=True)
def _gather(values: int, permutation: int, out: int, n: int) -> None:
    source, index, target = floats(values, n), integers(permutation, n), floats(out, n)
    for t in range(n):
        target[t] = source[index[t]]


@njit(nogil=True, cache=True)
def _fill(out: int, source: int, n: int) -> None:
    """n floats of `source`, or zeros if it is 0."""
    if source:
        floats(out, n)[:] = floats(source, n)
    else:
        floats(out, n)[:] = 0
