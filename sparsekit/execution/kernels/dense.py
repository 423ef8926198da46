"""Dense convolutions of few channels, 3x3 and 5x5: the first layer of a network.

A block of 16 output channels x 16 pixels stays in registers. Every vector of the input
is loaded once for all of them; weights are broadcast as they are used.
"""

from functools import cache
from typing import Any

from llvmlite import ir
from numba import njit
from numba.extending import intrinsic

from sparsekit.execution.kernels.depthwise import inside, masked_load, store_clipped
from sparsekit.execution.kernels.vectors import (
    FLOAT,
    I64,
    LANES,
    VECTORS,
    element,
    fused_multiply_add,
    load,
    loop,
    shuffle,
    splat,
    typed,
)

OUTPUTS = VECTORS  # of a block


@intrinsic(prefer_literal=True)
def dense_block(  # type: ignore[no-untyped-def]
    context,
    kernel,
    stride,
    outputs,
    x,
    x_channel,
    x_row,
    channels,
    first_row,
    height,
    first_column,
    width,
    zeros,
    weights,
    step,
    bias,
    y,
    y_channel,
    residual,
    low,
    high,
):
    """outputs x 16 pixels of a row of y = clip(conv(x) + bias + residual).

    Args:
        kernel, stride, outputs: constants.
        x, x_channel, x_row: address of the first channel; bytes to the next, to the
            next row.
        channels: of the input; first_row ... zeros as in `depthwise_block`.
        weights: address of [channels, kernel, kernel, step] floats, the block's outputs
            first; step: bytes from a tap to the next.
        bias: address of the block's.
        y, y_channel: address of the first pixel, bytes from an output to the next.
    """
    return typed(_emit, 3, (kernel, stride, outputs), 15, 2)


def _emit(
    b: Any,
    kernel: int,
    stride: int,
    outputs: int,
    x: Any,
    x_channel: Any,
    x_row: Any,
    channels: Any,
    first_row: Any,
    height: Any,
    first_column: Any,
    width: Any,
    zeros: Any,
    weights: Any,
    step: Any,
    bias: Any,
    y: Any,
    y_channel: Any,
    residual: Any,
    low: Any,
    high: Any,
) -> None:
    vector = ir.VectorType(FLOAT, LANES)
    fma = fused_multiply_add(b, vector)
    shift = b.shl(first_column, I64(2))
    rows = [b.add(first_row, I64(top)) for top in range(kernel)]
    exist = [b.icmp_unsigned("<", row, height) for row in rows]
    shifts = [b.mul(row, x_row) for row in rows]
    masks = {
        (left, k): inside(b, first_column, left + LANES * k, width)
        for left in range(0, kernel, stride)
        for k in range(stride)
    }

    def body(channel: Any, sums: list[Any]) -> list[Any]:
        plane = b.add(x, b.mul(channel, x_channel))
        taps = b.add(weights, b.mul(channel, b.mul(step, I64(kernel * kernel))))
        for top in range(kernel):
            place = b.select(exist[top], b.add(plane, shifts[top]), zeros)
            place = b.add(place, shift)
            for left in range(0, kernel, stride):
                loaded = [
                    masked_load(
                        b, b.add(place, I64(4 * (left + LANES * k))), masks[left, k],
                        vector,
                    )
                    for k in range(stride)
                ]  # fmt: skip
                for tap in range(left, min(left + stride, kernel)):
                    lanes = [stride * lane + tap - left for lane in range(LANES)]
                    value = loaded[0]
                    if stride == 2:
                        value = shuffle(b, loaded[0], loaded[1], lanes)
                    where = b.add(taps, b.mul(step, I64(top * kernel + tap)))
                    sums = [
                        b.call(
                            fma,
                            [
                                splat(
                                    b,
                                    load(b, element(b, where, I64(o)), FLOAT),
                                    vector,
                                ),
                                value,
                                total,
                            ],
                        )
                        for o, total in enumerate(sums)
                    ]
        return sums

    start = [
        splat(b, load(b, element(b, bias, I64(o)), FLOAT), vector)
        for o in range(outputs)
    ]
    sums = loop(b, I64(0), channels, 1, start, body)
    store_clipped(b, vector, sums, y, y_channel, residual, zeros, low, high)


@cache
def dense_loop(kernel: int, stride: int, outputs: int) -> Any:
    """A task is (image, row of the output's blocks of channels)."""

    @njit(nogil=True, cache=True)
    def dense_blocks(
        begin: int, end: int, parts: int, all_outputs: int, channels: int,
        x: int, x_image: int, x_channel: int, x_height: int, x_width: int, top: int,
        left: int, height: int, width: int, zeros: int, weights: int, y: int,
        y_image: int, y_channel: int, bias: int, residual: int, low: float, high: float,
    ) -> None:  # fmt: skip
        tiles = (width + 15) // 16
        for task in range(begin, end):
            image = task // parts
            first = min((task - image * parts) * outputs, all_outputs - outputs)
            for h in range(height):
                for tile in range(tiles - 1, -1, -1):
                    w = tile * 16
                    target = image * y_image + first * y_channel + 4 * (h * width + w)
                    dense_block(
                        kernel, stride, outputs, x + image * x_image, x_channel,
                        4 * x_width, channels, h * stride - top, x_height,
                        w * stride - left, x_width, zeros, weights + 4 * first,
                        4 * all_outputs, bias + 4 * first, y + target, y_channel,
                        residual + target if residual else 0, low, high,
                    )  # fmt: skip

    return dense_blocks
