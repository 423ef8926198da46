"""Batch norm, residual and ReLU in one pass over blocked arrays, and their gradients.

A task is a channel. Of the last chunk, only `lanes` images exist; they alone count.
"""

import numpy as np
from numba import njit

from sparsekit.execution.kernels.layout import LANES
from sparsekit.execution.kernels.memory import doubles, floats, long_integers
from sparsekit.execution.kernels.micro import prefetch

AHEAD = 2  # rows: so early one is asked for that comes from afar
FAST = {"reassoc", "nsz", "contract"}  # sums in vectors; NaN and inf stay what they are


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def statistics(
    begin: int,
    end: int,
    x: int,
    stats: int,
    groups: int,
    channels: int,
    height: int,
    width: int,
    lanes: int,
) -> None:
    """stats: (2, channels) float64, mean and biased variance over existing images.

    Rows are joined by the update of Chan, Golub and LeVeque (1979), each by two passes
    in the first-level cache: no cancellation, whatever the mean.
    """
    result = doubles(stats, 2 * channels)
    row = 4 * (width + 2) * LANES
    plane = (height + 2) * row
    for channel in range(begin, end):
        count, mean, squares = 0.0, np.float64(0), np.float64(0)
        for group in range(groups):
            existing = lanes if group == groups - 1 else LANES
            place = x + (group * channels + channel) * plane + row + 4 * LANES
            for h in range(height):
                line = floats(place + h * row, width * LANES)
                for w in range(0, width, 4):
                    ahead = place + (h + AHEAD) * row + 64 * w
                    prefetch(1, 4, 64, 0, ahead, 0)
                total, rest, spread = np.float32(0), np.float32(0), np.float32(0)
                n = float(width * existing)
                if existing == LANES:
                    for j in range(width * LANES):
                        total += line[j]
                    center = np.float32(total / n)
                    for j in range(width * LANES):
                        rest += line[j] - center
                        spread += (line[j] - center) * (line[j] - center)
                else:
                    for w in range(width):
                        for j in range(w * LANES, w * LANES + existing):
                            total += line[j]
                    center = np.float32(total / n)
                    for w in range(width):
                        for j in range(w * LANES, w * LANES + existing):
                            rest += line[j] - center
                            spread += (line[j] - center) * (line[j] - center)
                beside = rest / n  # what rounding the sum lost
                off = np.float64(center) + beside - mean
                squares += spread - n * beside * beside
                squares += off * off * count * n / (count + n)
                mean += off * n / (count + n)
                count += n
        result[channel] = mean
        result[channels + channel] = squares / count


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def forward(
    begin: int,
    end: int,
    x: int,
    residual: int,
    out: int,
    weight: int,
    bias: int,
    stats: int,
    epsilon: float,
    own: bool,
    relu: bool,
    groups: int,
    channels: int,
    height: int,
    width: int,
    lanes: int,
) -> None:
    """out = relu((x - mean) / sqrt(variance + epsilon) * weight + bias + residual).

    residual, weight, bias: 0 = none. All lanes are computed.
    own: stats are those of x, and are written; else they are given.
    """
    row = 4 * (width + 2) * LANES
    plane = (height + 2) * row
    low = np.float32(0) if relu else np.float32(-np.inf)
    for channel in range(begin, end):
        if own:  # here, so that x is still in the second-level cache
            statistics(
                channel, channel + 1, x, stats, groups, channels, height, width, lanes
            )
        center, scale, start = _line(weight, bias, stats, channels, channel, epsilon)
        for group in range(groups):
            place = (group * channels + channel) * plane + row + 4 * LANES
            for h in range(height):
                source = floats(x + place + h * row, width * LANES)
                target = floats(out + place + h * row, width * LANES)
                if residual:
                    other = floats(residual + place + h * row, width * LANES)
                    for w in range(0, width, 4):
                        ahead = residual + place + (h + AHEAD) * row + 64 * w
                        prefetch(1, 4, 64, 0, ahead, 0)
                    for j in range(width * LANES):
                        y = (source[j] - center) * scale + start + other[j]
                        target[j] = low if y < low else y
                else:
                    for j in range(width * LANES):
                        y = (source[j] - center) * scale + start
                        target[j] = low if y < low else y


@njit(nogil=True, inline="always")
def _line(
    weight: int, bias: int, stats: int, channels: int, channel: int, epsilon: float
) -> tuple[np.float32, np.float32, np.float32]:
    """center, scale, start: a channel's result is (x - center) * scale + start."""
    moments = doubles(stats, 2 * channels)
    mean = moments[channel]
    slope = 1 / np.sqrt(moments[channels + channel] + epsilon)
    if weight:
        slope *= floats(weight, channels)[channel]
    shift = (np.float64(np.float32(mean)) - mean) * slope  # what rounding mean lost
    if bias:
        shift += floats(bias, channels)[channel]
    return np.float32(mean), np.float32(slope), np.float32(shift)


@njit(nogil=True, cache=True)
def follow(
    stats: int, running_mean: int, running_variance: int, calls: int, channels: int,
    rate: float, bessel: float,
) -> None:  # fmt: skip
    """Moves float32 running statistics towards the mean and `bessel` * variance.

    calls: address of how often that happened, int64.
    """
    long_integers(calls, 1)[0] += 1
    moments = doubles(stats, 2 * channels)
    means, variances = (
        floats(running_mean, channels),
        floats(running_variance, channels),
    )
    for channel in range(channels):
        variance = bessel * moments[channels + channel]
        means[channel] += rate * (moments[channel] - means[channel])
        variances[channel] += rate * (variance - variances[channel])


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def backward(
    begin: int,
    end: int,
    grad: int,
    out: int,
    x: int,
    grad_x: int,
    grad_residual: int,
    grad_weight: int,
    grad_bias: int,
    weight: int,
    bias: int,
    stats: int,
    epsilon: float,
    relu: bool,
    training: bool,
    groups: int,
    channels: int,
    height: int,
    width: int,
    lanes: int,
) -> None:
    """Gradients of `forward`, from that of out.

    The gradient passes a ReLU where the result was positive. That is computed again,
    unless there was a residual: one array less to read.

    out: 0 unless there were a residual and a ReLU.
    grad_x, grad_residual: 0 = not wanted; that of the residual needs `out`.
    grad: zero in lanes that do not exist.
    training: the statistics are those of x, and the gradient goes through them too.
    """
    moments = doubles(stats, 2 * channels)
    scales = floats(weight, channels)
    to_weight, to_bias = floats(grad_weight, channels), floats(grad_bias, channels)
    row = 4 * (width + 2) * LANES
    plane = (height + 2) * row
    length = width * LANES
    count = float(height * width * ((groups - 1) * LANES + lanes))
    zero = np.float32(0)
    for channel in range(begin, end):
        mean, scale, start = _line(weight, bias, stats, channels, channel, epsilon)
        if not relu:
            start = np.float32(np.inf)  # all results are positive
        inverse = 1 / np.sqrt(moments[channels + channel] + epsilon)
        whole, against = np.float64(0), np.float64(0)  # of gradient, and * (x - mean)
        for group in range(groups):
            place = (group * channels + channel) * plane + row + 4 * LANES
            for h in range(height):
                source = floats(x + place + h * row, length)
                given = floats(grad + place + h * row, length)
                ahead = place + (h + AHEAD) * row
                for w in range(0, width, 4):
                    prefetch(1, 4, 64, 0, x + ahead + 64 * w, 0)
                    if out:
                        prefetch(1, 4, 64, 0, out + ahead + 64 * w, 0)
                a, b = zero, zero
                if grad_residual:
                    result = floats(out + place + h * row, length)
                    other = floats(grad_residual + place + h * row, length)
                    for j in range(length):
                        g = given[j] if result[j] > zero else zero
                        other[j] = g
                        a += g
                        b += g * (source[j] - mean)
                elif out:
                    result = floats(out + place + h * row, length)
                    for j in range(length):
                        g = given[j] if result[j] > zero else zero
                        a += g
                        b += g * (source[j] - mean)
                else:
                    for j in range(length):
                        y = (source[j] - mean) * scale + start
                        g = given[j] if y > zero else zero
                        a += g
                        b += g * (source[j] - mean)
                whole += a
                against += b
        # The mean in x - mean was rounded: `against` is put right here.
        against -= (moments[channel] - np.float64(mean)) * whole
        to_weight[channel] = against * inverse
        to_bias[channel] = whole
        if not grad_x:
            continue
        slope = inverse * scales[channel] if weight else inverse
        bend = slope * inverse * inverse * against / count if training else 0.0
        level = slope * whole / count if training else 0.0
        level -= bend * (moments[channel] - np.float64(mean))
        k, k1, k2 = np.float32(slope), np.float32(bend), np.float32(level)
        for group in range(groups):
            place = (group * channels + channel) * plane + row + 4 * LANES
            for h in range(height):
                source = floats(x + place + h * row, length)
                given = floats(grad + place + h * row, length)
                target = floats(grad_x + place + h * row, length)
                if grad_residual:
                    passed = floats(grad_residual + place + h * row, length)
                    for j in range(length):
                        target[j] = k * passed[j] - k1 * (source[j] - mean) - k2
                elif out:
                    result = floats(out + place + h * row, length)
                    for j in range(length):
                        g = given[j] if result[j] > zero else zero
                        target[j] = k * g - k1 * (source[j] - mean) - k2
                else:
                    for j in range(length):
                        y = (source[j] - mean) * scale + start
                        g = given[j] if y > zero else zero
                        target[j] = k * g - k1 * (source[j] - mean) - k2
                if group == groups - 1:
                    for w in range(width):
                        for j in range(w * LANES + lanes, (w + 1) * LANES):
                            target[j] = zero
