"""Depthwise convolutions, 3x3 and 5x5, in explicit vectors and without a padded copy.

A block of rows x 16 output pixels stays in registers. For one column of taps, each
input row is loaded once, at its unaligned place, and feeds every output row that it
reaches. Columns outside of the image are switched off in the load, rows outside are
read from zeros. With stride 2, two vectors are loaded and their even and odd lanes
taken apart.
"""

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils
from numba.extending import intrinsic

from sparsekit.execution.kernels.memory import aligned, floats, integers
from sparsekit.execution.kernels.micro import multiply_add_finish
from sparsekit.execution.kernels.vectors import (
    FLOAT,
    I32,
    I64,
    LANES,
    VECTORS,
    binary,
    element,
    fused_multiply_add,
    load,
    pointer,
    shuffle,
    splat,
    typed,
)

ROWS = min(14, VECTORS)  # of a block: sums, beside a column of weights
KERNELS, STRIDES = (3, 5), (1, 2)


@intrinsic(prefer_literal=True)
def depthwise_block(  # type: ignore[no-untyped-def]
    context,
    kernel,
    stride,
    rows,
    x,
    x_row,
    first_row,
    height,
    first_column,
    width,
    zeros,
    weights,
    y,
    y_row,
    residual,
    start,
    low,
    high,
):
    """rows x 16 pixels of y = clip(conv(x) + start + residual).

    Args:
        kernel, stride, rows: constants.
        x: address of the input plane; x_row: bytes of a row of it.
        first_row, first_column: of the input that tap (0, 0) of the first pixel reads.
        height, width: of the input. What is outside counts as 0.
        zeros: address of `width` zeros, at least 16.
        weights: address of kernel x kernel floats.
        y, y_row: address of the first pixel, bytes from a row to the next; whole
            vectors are written, from top to bottom.
        residual: as y, or 0 for none.
    """
    return typed(_emit, 3, (kernel, stride, rows), 11, 3)


def _emit(
    b: Any,
    kernel: int,
    stride: int,
    rows: int,
    x: Any,
    x_row: Any,
    first_row: Any,
    height: Any,
    first_column: Any,
    width: Any,
    zeros: Any,
    weights: Any,
    y: Any,
    y_row: Any,
    residual: Any,
    start: Any,
    low: Any,
    high: Any,
) -> None:
    vector = ir.VectorType(FLOAT, LANES)
    fma = fused_multiply_add(b, vector)
    places = []
    for i in range((rows - 1) * stride + kernel):
        row = b.add(first_row, I64(i))
        exists = b.icmp_unsigned("<", row, height)
        place = b.select(exists, b.add(x, b.mul(row, x_row)), zeros)
        places.append(b.add(place, b.shl(first_column, I64(2))))
    sums = [splat(b, start, vector)] * rows
    for left in range(0, kernel, stride):
        taps = range(left, min(left + stride, kernel))
        masks = [
            inside(b, first_column, left + LANES * k, width) for k in range(stride)
        ]
        column = {
            (top, tap): splat(
                b,
                load(b, element(b, weights, I64(top * kernel + tap)), FLOAT),
                vector,
            )
            for top in range(kernel)
            for tap in taps
        }
        for i, place in enumerate(places):
            loaded = [
                masked_load(b, b.add(place, I64(4 * (left + LANES * k))), mask, vector)
                for k, mask in enumerate(masks)
            ]
            for tap in taps:
                lanes = [stride * lane + tap - left for lane in range(LANES)]
                value = loaded[0]
                if stride == 2:
                    value = shuffle(b, loaded[0], loaded[1], lanes)
                for top in range(kernel):
                    out, rest = divmod(i - top, stride)
                    if rest == 0 and 0 <= out < rows:
                        sums[out] = b.call(fma, [column[top, tap], value, sums[out]])
    store_clipped(b, vector, sums, y, y_row, residual, zeros, low, high)


def store_clipped(
    b: Any, vector: Any, sums: list[Any], y: Any, y_row: Any, residual: Any, zeros: Any,
    low: Any, high: Any,
) -> None:  # fmt: skip
    smaller, larger = (
        binary(b, "llvm.minnum", vector),
        binary(b, "llvm.maxnum", vector),
    )
    bounds = splat(b, low, vector), splat(b, high, vector)
    shift = I64(0)
    none = b.icmp_signed("==", residual, I64(0))
    for total in sums:
        # Lanes that are switched off are slow where there is no memory: no address 0.
        place = b.select(none, zeros, b.add(residual, shift))
        clipped = b.fadd(total, load(b, place, vector))
        clipped = b.call(larger, [clipped, bounds[0]])
        clipped = b.call(smaller, [clipped, bounds[1]])
        b.store(clipped, pointer(b, b.add(y, shift), vector), align=4)
        shift = b.add(shift, y_row)


def inside(b: Any, first: Any, shift: int, width: Any) -> Any:
    """Which of 16 columns from first + shift on are in the image."""
    lanes = ir.VectorType(I32, LANES)
    start = b.trunc(b.add(first, I64(shift)), I32)
    count = ir.Constant(lanes, list(range(LANES)))
    columns = b.add(splat(b, start, lanes), count)
    return b.icmp_unsigned("<", columns, splat(b, b.trunc(width, I32), lanes))


def masked_load(b: Any, address: Any, mask: Any, vector: Any) -> Any:
    """A vector whose lanes are loaded where the mask is set, 0 elsewhere."""
    pointer = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(vector, [pointer, I32, mask.type, vector])
    name = f"llvm.masked.load.v{LANES}f32.p0"
    load = cgutils.get_or_insert_function(b.module, kind, name)
    nothing = ir.Constant(vector, [0.0] * LANES)
    return b.call(load, [b.inttoptr(address, pointer), I32(4), mask, nothing])


@cache
def depthwise_loop(kernel: int, stride: int, rows: int) -> Any:
    """A task is (image, channel); see `sparsekit.execution.kernels.pixels`."""

    @njit(nogil=True, cache=True)
    def depthwise_blocks(
        begin: int, end: int, channels: int, x: int, x_channel: int, x_height: int,
        x_width: int, top: int, left: int, height: int, width: int, zeros: int,
        weights: int, y: int, y_channel: int, bias: int, residual: int,
        low: float, high: float,
    ) -> None:  # fmt: skip
        starts = floats(bias, channels)
        tiles = (width + 15) // 16
        for task in range(begin, end):
            o = task % channels
            for first in range(0, height, rows):
                h = min(first, height - rows)
                for tile in range(tiles - 1, -1, -1):
                    w = tile * 16
                    target = task * y_channel + 4 * (h * width + w)
                    depthwise_block(
                        kernel, stride, rows, x + task * x_channel, 4 * x_width,
                        h * stride - top, x_height, w * stride - left, x_width, zeros,
                        weights + 4 * o * kernel * kernel, y + target, 4 * width,
                        residual + target if residual else 0, starts[o], low, high,
                    )  # fmt: skip

    return depthwise_blocks


@cache
def expanded_loop(kernel: int, stride: int, rows: int, vectors: int) -> Any:
    """`depthwise_loop` of a 1x1 convolution, whose channels are made one by one."""

    @njit(nogil=True, cache=True)
    def expanded_blocks(
        begin: int, end: int, channels: int, pixels: int, x: int, x_image: int,
        x_channel: int, offsets: int, values: int, crow: int, x_bias: int,
        x_low: float, x_high: float, x_height: int, x_width: int, top: int, left: int,
        height: int, width: int, zeros: int, weights: int, y: int, y_channel: int,
        bias: int, residual: int, low: float, high: float,
    ) -> None:  # fmt: skip
        ends = integers(crow, channels + 1)
        x_starts, starts = floats(x_bias, channels), floats(bias, channels)
        vector_tiles = (pixels + 16 * vectors - 1) // (16 * vectors)
        room = np.empty(vector_tiles * vectors * 16 + 48, np.float32)
        plane = aligned(room.ctypes.data) + 64
        tiles = (width + 15) // 16
        for task in range(begin, end):
            image = task // channels
            o = task - image * channels
            for tile in range(vector_tiles):
                multiply_add_finish(
                    16, 1, vectors, 64, 64, x + image * x_image + tile * vectors * 64,
                    0, offsets, x_channel, values, np.int64(ends[o]),
                    np.int64(ends[o + 1]), plane + tile * vectors * 64, 0, 0, 1, 0,
                    x_starts[o], x_low, x_high,
                )  # fmt: skip
            for first in range(0, height, rows):
                h = min(first, height - rows)
                for tile in range(tiles - 1, -1, -1):
                    w = tile * 16
                    target = task * y_channel + 4 * (h * width + w)
                    depthwise_block(
                        kernel, stride, rows, plane, 4 * x_width, h * stride - top,
                        x_height, w * stride - left, x_width, zeros,
                        weights + 4 * o * kernel * kernel, y + target, 4 * width,
                        residual + target if residual else 0, starts[o], low, high,
                    )  # fmt: skip

    return expanded_blocks


def rows_of_block(height: int) -> int:
    """As equal as can be, no more than fit the registers."""
    return -(-height // -(-height // ROWS))
