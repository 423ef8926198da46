"""Pooling of blocked arrays, and its gradient. A task is a channel of a chunk."""

import numpy as np
from numba import njit

from sparsekit.execution.kernels.layout import LANES
from sparsekit.execution.kernels.memory import floats, small_integers
from sparsekit.execution.kernels.norm import FAST


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def mean(
    begin: int, end: int, x: int, out: int, batch: int, channels: int, height: int,
    width: int,
) -> None:  # fmt: skip
    """out: [batch, channels], the mean over all pixels."""
    row = 4 * (width + 2) * LANES
    plane = (height + 2) * row
    sums = np.empty(LANES, np.float32)
    for task in range(begin, end):
        group = task // channels
        channel = task - group * channels
        existing = min(LANES, batch - group * LANES)
        sums[:] = 0
        for h in range(height):
            line = floats(x + task * plane + (h + 1) * row + 4 * LANES, width * LANES)
            for w in range(width):
                for lane in range(LANES):
                    sums[lane] += line[w * LANES + lane]
        target = floats(out + 4 * group * LANES * channels, existing * channels)
        for lane in range(existing):
            target[lane * channels + channel] = sums[lane] / (height * width)


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def mean_backward(
    begin: int, end: int, grad: int, out: int, batch: int, channels: int, height: int,
    width: int,
) -> None:  # fmt: skip
    """The inside of out, from grad of [batch, channels]; spare lanes are 0."""
    row = 4 * (width + 2) * LANES
    plane = (height + 2) * row
    pixel = np.zeros(LANES, np.float32)
    for task in range(begin, end):
        group = task // channels
        channel = task - group * channels
        existing = min(LANES, batch - group * LANES)
        given = floats(grad + 4 * group * LANES * channels, existing * channels)
        pixel[:] = 0
        for lane in range(existing):
            pixel[lane] = given[lane * channels + channel] / (height * width)
        for h in range(height):
            line = floats(out + task * plane + (h + 1) * row + 4 * LANES, width * LANES)
            for w in range(width):
                for lane in range(LANES):
                    line[w * LANES + lane] = pixel[lane]


@njit(nogil=True, cache=True)
def maximum(
    begin: int, end: int, x: int, out: int, places: int, height: int, width: int,
    side: int, stride: int, padding: int, out_height: int, out_width: int,
) -> None:  # fmt: skip
    """The inside of out, and which tap of its window it was: int8, without border.

    The first of equal ones, and NaN before all, as torch has it.
    """
    row, out_row = 4 * (width + 2) * LANES, 4 * (out_width + 2) * LANES
    for task in range(begin, end):
        source = x + task * (height + 2) * row + row + 4 * LANES
        target = out + task * (out_height + 2) * out_row + out_row + 4 * LANES
        chosen = places + task * out_height * out_width * LANES
        for i in range(out_height):
            for j in range(out_width):
                best = floats(target + i * out_row + 4 * j * LANES, LANES)
                tap = small_integers(chosen + (i * out_width + j) * LANES, LANES)
                best[:] = -np.inf
                tap[:] = -1
                for kh in range(side):
                    h = i * stride - padding + kh
                    if h < 0 or h >= height:
                        continue
                    for kw in range(side):
                        w = j * stride - padding + kw
                        if w < 0 or w >= width:
                            continue
                        pixel = floats(source + h * row + 4 * w * LANES, LANES)
                        index = np.int8(kh * side + kw)
                        for lane in range(LANES):
                            value = pixel[lane]
                            more = value > best[lane] or value != value
                            more = more or tap[lane] < 0
                            tap[lane] = index if more else tap[lane]
                            best[lane] = value if more else best[lane]


@njit(nogil=True, cache=True)
def maximum_backward(
    begin: int, end: int, grad: int, out: int, places: int, height: int, width: int,
    side: int, stride: int, padding: int, out_height: int, out_width: int,
) -> None:  # fmt: skip
    """out: gradient of the input, [.., height + 2, width + 2, 16], its inside."""
    row, grad_row = 4 * (width + 2) * LANES, 4 * (out_width + 2) * LANES
    for task in range(begin, end):
        target = out + task * (height + 2) * row + row + 4 * LANES
        given = grad + task * (out_height + 2) * grad_row + grad_row + 4 * LANES
        chosen = places + task * out_height * out_width * LANES
        for h in range(height):
            floats(target + h * row, width * LANES)[:] = 0
        for i in range(out_height):
            for j in range(out_width):
                step = floats(given + i * grad_row + 4 * j * LANES, LANES)
                tap = small_integers(chosen + (i * out_width + j) * LANES, LANES)
                for kh in range(side):
                    h = i * stride - padding + kh
                    if h < 0 or h >= height:
                        continue
                    for kw in range(side):
                        w = j * stride - padding + kw
                        if w < 0 or w >= width:
                            continue
                        pixel = floats(target + h * row + 4 * w * LANES, LANES)
                        index = np.int8(kh * side + kw)
                        for lane in range(LANES):
                            pixel[lane] += (
                                step[lane] if tap[lane] == index else np.float32(0)
                            )


@njit(nogil=True, cache=True, fastmath=FAST)
def average(
    begin: int, end: int, x: int, out: int, height: int, width: int, side: int,
    stride: int, out_height: int, out_width: int,
) -> None:  # fmt: skip
    """The inside of out: means of windows, without padding."""
    row, out_row = 4 * (width + 2) * LANES, 4 * (out_width + 2) * LANES
    share = np.float32(1 / (side * side))
    for task in range(begin, end):
        source = x + task * (height + 2) * row + row + 4 * LANES
        target = out + task * (out_height + 2) * out_row + out_row + 4 * LANES
        for i in range(out_height):
            for j in range(out_width):
                result = floats(target + i * out_row + 4 * j * LANES, LANES)
                result[:] = 0
                for kh in range(side):
                    for kw in range(side):
                        h, w = i * stride + kh, j * stride + kw
                        pixel = floats(source + h * row + 4 * w * LANES, LANES)
                        for lane in range(LANES):
                            result[lane] += share * pixel[lane]


@njit(nogil=True, cache=True, fastmath=FAST)
def average_backward(
    begin: int, end: int, grad: int, out: int, height: int, width: int, side: int,
    stride: int, out_height: int, out_width: int,
) -> None:  # fmt: skip
    """out: gradient of the input, its inside."""
    row, grad_row = 4 * (width + 2) * LANES, 4 * (out_width + 2) * LANES
    share = np.float32(1 / (side * side))
    for task in range(begin, end):
        target = out + task * (height + 2) * row + row + 4 * LANES
        given = grad + task * (out_height + 2) * grad_row + grad_row + 4 * LANES
        for h in range(height):
            floats(target + h * row, width * LANES)[:] = 0
        for i in range(out_height):
            for j in range(out_width):
                step = floats(given + i * grad_row + 4 * j * LANES, LANES)
                for kh in range(side):
                    for kw in range(side):
                        h, w = i * stride + kh, j * stride + kw
                        pixel = floats(target + h * row + 4 * w * LANES, LANES)
                        for lane in range(LANES):
                            pixel[lane] += share * step[lane]
