"""Pooling and one-sample products of the inference engine, in either layout."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsekit.execution import threads
from sparsekit.execution.kernels.memory import floats

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]


def pool(
    x: Floats, y: Floats, kernel: tuple[int, int], stride: tuple[int, int],
    padding: tuple[int, int], average: bool,
) -> None:  # fmt: skip
    """Maximum or mean of windows; padding is outside of every window.

    Args:
        x: [planes, H, W, lanes], y: [planes, H', W', lanes]; any strides but of lanes.
    """
    threads.run(_pool, len(y), x, y, *kernel, *stride, *padding, average)


@njit(nogil=True, cache=True)
def _pool(
    begin: int, end: int, x: Floats, y: Floats, kernel_rows: int, kernel_columns: int,
    down: int, across: int, top: int, left: int, average: bool,
) -> None:  # fmt: skip
    _, height, width, lanes = x.shape
    share = np.float32(1.0 / (kernel_rows * kernel_columns))
    for plane in range(begin, end):
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                out = y[plane, i, j]
                out[:] = 0.0 if average else -np.inf
                for h in range(
                    max(0, i * down - top), min(height, i * down - top + kernel_rows)
                ):
                    for w in range(
                        max(0, j * across - left),
                        min(width, j * across - left + kernel_columns),
                    ):
                        pixel = x[plane, h, w]
                        if average:
                            for lane in range(lanes):
                                out[lane] += pixel[lane] * share
                        else:
                            for lane in range(lanes):
                                out[lane] = max(out[lane], pixel[lane])


def global_average(x: Floats, y: Floats, pixels: int) -> None:
    """y[n, c] = mean of x[n, c, :pixels]."""
    images, channels = x.shape[:2]
    threads.run(
        _average, images * channels, x.ctypes.data, x.strides[1], pixels,
        y.ctypes.data, nanoseconds=images * channels * pixels / 16,
    )  # fmt: skip


@njit(nogil=True, cache=True, fastmath={"reassoc"})
def _average(begin: int, end: int, x: int, plane: int, pixels: int, y: int) -> None:
    out = floats(y, end)
    for task in range(begin, end):
        source = floats(x + task * plane, pixels)
        total = np.float32(0)
        for pixel in range(pixels):
            total += source[pixel]
        out[task] = total / np.float32(pixels)


def vector_product(
    x: Floats, values: Floats, crow: Integers, col: Integers, bias: Floats, y: Floats
) -> None:
    """y = W x + bias, for one sample."""
    threads.run(
        _vector_product, len(y), x, values, crow, col, bias, y,
        nanoseconds=len(values) / 2,
    )  # fmt: skip


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _vector_product(
    begin: int, end: int, x: Floats, values: Floats, crow: Integers, col: Integers,
    bias: Floats, y: Floats,
) -> None:  # fmt: skip
    for row in range(begin, end):
        total = np.float32(0)
        for t in range(crow[row], crow[row + 1]):
            total += values[t] * x[col[t]]
        y[row] = total + bias[row]
