"""The loops of `pixels`: sums of an output channel over pixels side by side.

A function of sizes returns the kernel for them, which does tasks begin .. end-1.
Addresses and their distances are in bytes, offsets of a padded copy in floats.
"""

from functools import cache
from typing import Any

import numpy as np
from numba import njit

from sparsekit.execution.kernels.memory import aligned, floats, integers
from sparsekit.execution.kernels.micro import multiply_add_finish


@cache
def pointwise_loop(vectors: int) -> Any:
    """A task is (image, part of the outputs, tile of pixels)."""

    @njit(nogil=True, cache=True)
    def kernel(
        begin: int, end: int, tiles: int, parts: int,
        x: int, x_image: int, x_channel: int, offsets: int, values: int,
        starts: int, blocks: int, outputs: int, y: int, y_image: int, y_channel: int,
        bias: int, residual: int, low: float, high: float,
    ) -> None:  # fmt: skip
        first = integers(starts, (blocks + 1) * outputs).reshape(-1, outputs)
        start = floats(bias, outputs)
        for task in range(begin, end):
            image = task // (tiles * parts)
            tile = (task - image * tiles * parts) // parts
            part = task % parts
            source = x + image * x_image + tile * vectors * 64
            shift = image * y_image + tile * vectors * 64
            for block in range(blocks):
                for o in range(part * outputs // parts, (part + 1) * outputs // parts):
                    target = shift + o * y_channel
                    multiply_add_finish(
                        16, 1, vectors, 64, 64, source, 0, offsets, x_channel, values,
                        np.int64(first[block, o]), np.int64(first[block + 1, o]),
                        y + target, 0, block, block == blocks - 1,
                        residual + target if residual else 0, start[o], low, high,
                    )  # fmt: skip

    return kernel


@cache
def direct_loop(rows: int, columns: int) -> Any:
    """A task is (image, part of the outputs)."""

    @njit(nogil=True, cache=True)
    def kernel(
        begin: int, end: int, parts: int,
        height: int, width: int, x_row: int, phase_rows: int, tiles: int,
        x: int, x_image: int, offsets: int, values: int, starts: int, blocks: int,
        outputs: int, y: int, y_image: int, y_channel: int,
        bias: int, residual: int, low: float, high: float,
    ) -> None:  # fmt: skip
        first = integers(starts, (blocks + 1) * outputs).reshape(-1, outputs)
        start = floats(bias, outputs)
        for task in range(begin, end):
            image = task // parts
            part = task - image * parts
            for top in range(0, height, rows):
                h = min(top, height - rows)
                for tile in range(tiles - 1, -1, -1):
                    w = tile * columns * 16
                    source = x + image * x_image + 4 * (h * x_row + w)
                    shift = image * y_image + 4 * (h * width + w)
                    for block in range(blocks):
                        for o in range(
                            part * outputs // parts, (part + 1) * outputs // parts
                        ):
                            target = shift + o * y_channel
                            multiply_add_finish(
                                16, rows, columns, 64, 64, source, 4 * x_row, offsets,
                                4, values, np.int64(first[block, o]),
                                np.int64(first[block + 1, o]), y + target, 4 * width,
                                block, block == blocks - 1,
                                residual + target if residual else 0,
                                start[o], low, high,
                            )  # fmt: skip

    return kernel


@cache
def depthwise_loop(rows: int, columns: int) -> Any:
    """A task is (image, channel)."""

    @njit(nogil=True, cache=True)
    def kernel(
        begin: int, end: int, channels: int,
        height: int, width: int, x_row: int, phase_rows: int, tiles: int,
        x: int, x_channel: int, x_height: int, x_width: int, top: int, left: int,
        down: int, across: int, room: int, offsets: int, values: int,
        starts: int, blocks: int, outputs: int, y: int, y_channel: int,
        bias: int, residual: int, low: float, high: float,
    ) -> None:  # fmt: skip
        first = integers(starts, 2 * outputs).reshape(2, outputs)
        start = floats(bias, outputs)
        copy = np.empty(room + 16, np.float32)
        copy[:] = 0.0
        x_copy = aligned(copy.ctypes.data)
        for task in range(begin, end):
            o = task % channels
            copy_plane(
                x + task * x_channel, x_height, x_width, top, left, down, across,
                phase_rows, x_row, x_copy,
            )  # fmt: skip
            for row in range(0, height, rows):
                h = min(row, height - rows)
                for tile in range(tiles - 1, -1, -1):
                    w = tile * columns * 16
                    target = task * y_channel + 4 * (h * width + w)
                    multiply_add_finish(
                        16, rows, columns, 64, 64, x_copy + 4 * (h * x_row + w),
                        4 * x_row, offsets, 4, values, np.int64(first[0, o]),
                        np.int64(first[1, o]), y + target, 4 * width, 0, 1,
                        residual + target if residual else 0, start[o], low, high,
                    )  # fmt: skip

    return kernel


@njit(nogil=True, cache=True)
def copy_plane(
    x: int, height: int, width: int, top: int, left: int, down: int, across: int,
    rows: int, columns: int, out: int,
) -> None:  # fmt: skip
    """A plane -> its phase planes [down, across, rows, columns], padded by zeros."""
    for a in range(down):
        for b in range(across):
            first = max(0, (left - b + across - 1) // across)
            last = max(first, min(columns, (width - 1 + left - b) // across + 1))
            for i in range(rows):
                h = i * down + a - top
                place = out + 4 * ((a * across + b) * rows + i) * columns
                line = floats(place, columns)
                if h < 0 or h >= height:
                    line[:] = 0.0
                    continue
                begin = x + 4 * (h * width + first * across + b - left)
                source = floats(begin, (last - first) * across)
                line[:first] = 0.0
                inside = line[first:last]
                if across == 1:
                    for j in range(len(inside)):
                        inside[j] = source[j]
                elif across == 2:
                    for j in range(len(inside)):
                        inside[j] = source[2 * j]
                else:
                    for j in range(len(inside)):
                        inside[j] = source[j * across]
                line[last:] = 0.0


@njit(nogil=True, cache=True)
def copy_planes(
    begin: int, end: int, channels: int, x: int, x_image: int, x_channel: int,
    height: int, width: int, top: int, left: int, down: int, across: int,
    rows: int, columns: int, out: int, out_image: int,
) -> None:  # fmt: skip
    size = 4 * down * across * rows * columns
    for task in range(begin, end):
        image = task // channels
        channel = task - image * channels
        copy_plane(
            x + image * x_image + channel * x_channel, height, width, top, left, down,
            across, rows, columns, out + image * out_image + channel * size,
        )  # fmt: skip
