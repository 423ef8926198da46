"""Inference with few images: the pixels of a channel side by side, no torch.

An activation is [N, C, plane]: the H W pixels of a channel, and spare room behind them
up to `plane_floats(H, W)`, which holds anything. One weight multiplies vectors of 16
neighbouring pixels; sums stay in registers for all non-zeros of an output channel, then
get bias, residual and clipping, and are stored once.

    pointwise   1x1 convolutions, and linear layers with samples as the pixels
    direct      other convolutions, by taps at unaligned places of a padded copy
    depthwise   one channel each; the padded copy stays in the first-level cache

The padded copy has stride-1 access for every stride: pixels of equal (row mod s,
column mod s) lie together in a phase plane, where tap (kh, kw) of output (h, w) is in
phase (kh mod s, kw mod s) at (h + kh div s, w + kw div s).

Rows of an output are stored in whole vectors. What goes over the end of a row is
overwritten by the row after it, or lies in the spare room: rows go from top to bottom
and tiles of a row from right to left.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsekit.execution import threads
from sparsekit.execution.kernels import dense as dense_blocks
from sparsekit.execution.kernels import depthwise as depthwise_blocks
from sparsekit.execution.kernels import pixel_loops as loops
from sparsekit.execution.kernels.starts import Integers, row_starts
from sparsekit.execution.kernels.vectors import LANES, VECTORS

VECTOR = 4 * LANES  # bytes
NEAR = 32 * 1024  # bytes of input that stay in the first-level cache beside the rest
NONZEROS = 28  # of a row in a block, at least; fewer do not pay for the sum's transport
RATE = 100.0  # floating-point operations a nanosecond, to guess what a call takes
WORTH = 100_000  # nanoseconds of a call that other threads help with: many small ones
# in a row would wait for a thread whose processor is taken, each time

Floats = NDArray[np.float32]
INFINITE = (-np.inf, np.inf)


class Finish(NamedTuple):
    """What happens to a sum before it is stored: clip(sum + bias + residual)."""

    bias: Floats
    residual: Floats | None = None
    clip: tuple[float, float] = INFINITE


class Sparse(NamedTuple):
    """Non-zeros of a weight as the loops take them.

    Attributes:
        values, offsets: (nnz,); an offset says where the input of a value lies.
        starts: (blocks + 1, rows) int32; row r has starts[b, r] .. starts[b + 1, r] in
            block b of input channels.
    """

    values: Floats
    offsets: Integers
    starts: Integers


class Window(NamedTuple):
    """A convolution's geometry, and of its padded copy in phase planes."""

    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]  # top, left, bottom, right

    @property
    def out(self) -> tuple[int, int]:
        top, left, bottom, right = self.padding
        return (
            (self.height + top + bottom - self.kernel[0]) // self.stride[0] + 1,
            (self.width + left + right - self.kernel[1]) // self.stride[1] + 1,
        )

    @property
    def phase(self) -> tuple[int, int]:
        """Rows and columns of a phase plane."""
        return (
            self.out[0] + (self.kernel[0] - 1) // self.stride[0],
            self.out[1] + (self.kernel[1] - 1) // self.stride[1],
        )

    @property
    def copy_floats(self) -> int:
        """Of a channel's phase planes."""
        rows, columns = self.phase
        return self.stride[0] * self.stride[1] * rows * columns

    @property
    def spare(self) -> int:
        """Floats that whole vectors may read behind the end of a copy."""
        return LANES * (2 + _tiles(self.out[1])[0])

    def taps(self) -> Integers:
        """(kernel size,) int32: where a tap lies in a channel's copy, in floats."""
        rows, columns = self.phase
        down, across = self.stride
        return np.array(
            [
                ((kh % down) * across + kw % across) * rows * columns
                + (kh // down) * columns + kw // across
                for kh in range(self.kernel[0])
                for kw in range(self.kernel[1])
            ],
            np.int32,
        )  # fmt: skip


# ---- sizes ---------------------------------------------------------------------------


def plane_floats(height: int, width: int) -> int:
    """Floats of a channel: its pixels, room for whole tiles; no power of two apart."""
    pixels = height * width
    tiles, vectors = _tiles(pixels)
    needed = max(tiles * vectors, -(-pixels // LANES) + 1 + _tiles(width)[0]) * LANES
    return needed + LANES if needed % 512 == 0 else needed


def _tiles(pixels: int) -> tuple[int, int]:
    """(count, vectors): tiles as equal as can be that fit the registers."""
    vectors = -(-pixels // LANES)
    count = -(-vectors // VECTORS)
    return count, -(-vectors // count)


def block_width(nnz: int, rows: int, channels: int, near: int) -> int:
    """Channels of a block: as many as stay near, more where non-zeros are few."""
    few = NONZEROS * rows * channels // max(nnz, 1)
    width = min(max(near, few, 1), channels)
    return -(-channels // max(1, round(channels / width)))


def pointwise_weight(
    values: Floats, crow: Integers, col: Integers, channels: int, pixels: int
) -> Sparse:
    """A matrix (rows, channels) for `pointwise` on planes of so many pixels."""
    near = NEAR // (_tiles(pixels)[1] * VECTOR)
    width = block_width(len(col), len(crow) - 1, channels, near)
    return Sparse(values, col, row_starts(crow, col, width, -(-channels // width)))


def direct_weight(
    values: Floats, crow: Integers, col: Integers, channels: int, window: Window
) -> Sparse:
    """A weight (rows, channels * taps) for `direct`."""
    taps = window.taps()
    rows, columns = _tile(window)
    near = NEAR // ((rows + 2) * (columns * LANES + 2) * 4)
    width = block_width(len(col), len(crow) - 1, channels, near)
    starts = row_starts(crow, col, width * len(taps), -(-channels // width))
    channel, tap = np.divmod(col, np.int32(len(taps)))
    return Sparse(values, channel * np.int32(window.copy_floats) + taps[tap], starts)


def depthwise_weight(
    values: Floats, crow: Integers, col: Integers, window: Window
) -> Sparse:
    """A weight (channels, taps) for `depthwise`."""
    return Sparse(values, window.taps()[col], np.stack([crow[:-1], crow[1:]]))


def _tile(window: Window) -> tuple[int, int]:
    """(rows, columns in vectors) of output pixels that are summed together."""
    columns = _tiles(window.out[1])[1]
    return max(1, min(VECTORS // columns, window.out[0])), columns


# ---- layers --------------------------------------------------------------------------


class Call:
    """A kernel with its arguments, among them addresses of arrays that it keeps."""

    def __init__(
        self, kernel: Any, tasks: int, *arguments: Any, work: float, keep: Any
    ):
        self._keep = keep
        guess = work / RATE
        self._run = partial(
            threads.run, kernel, tasks, *arguments,
            nanoseconds=guess if guess >= WORTH else 0,
        )  # fmt: skip

    def __call__(self) -> None:
        self._run()


def pointwise(x: Floats, weight: Sparse, y: Floats, pixels: int, to: Finish) -> Call:
    """y[n, o] = clip(sum over c of W[o, c] x[n, c] + bias[o] + residual[n, o]).

    Args:
        x: [N, C, plane], y: [N, O, plane]; planes of the same `plane_floats`.
    """
    tiles, vectors = _tiles(pixels)
    images, outputs = len(y), y.shape[1]
    parts = max(1, min(outputs // 8, 8 // (images * tiles)))
    return Call(
        loops.pointwise_loop(vectors), images * tiles * parts, tiles, parts,
        _address(x), x.strides[0], x.strides[1], *_sparse(weight), _address(y),
        y.strides[0], y.strides[1], *_finishing(to),
        work=2 * len(weight.values) * images * tiles * vectors * LANES,
        keep=(x, weight, y, to),
    )  # fmt: skip


def direct(
    x: Floats, weight: Sparse, y: Floats, window: Window, copy: Floats, to: Finish
) -> list[Call]:
    """y = clip(conv(x) + bias + residual), any kernel, stride and padding, groups 1.

    Args:
        copy: [N, room of C * window.copy_floats + window.spare].
    """
    images = len(x)
    outputs = y.shape[1]
    parts = max(1, min(outputs // 8, 8 // images))
    pixels = window.out[0] * _row_floats(window)
    conv = Call(
        loops.direct_loop(*_tile(window)), images * parts, parts, *_rows(window),
        _address(copy), copy.strides[0], *_sparse(weight), _address(y), y.strides[0],
        y.strides[1], *_finishing(to), work=2 * len(weight.values) * images * pixels,
        keep=(copy, weight, y, to),
    )  # fmt: skip
    return [pad_phases(x, window, copy), conv]


def depthwise(x: Floats, weight: Sparse, y: Floats, window: Window, to: Finish) -> Call:
    """y[n, c] = clip(conv(x[n, c]) + bias[c] + residual[n, c])."""
    images, channels = x.shape[:2]
    pixels = window.out[0] * _row_floats(window)
    return Call(
        loops.depthwise_loop(*_tile(window)), images * channels, channels,
        *_rows(window), _address(x), x.strides[1], window.height, window.width,
        *window.padding[:2], *window.stride, window.copy_floats + window.spare,
        *_sparse(weight), _address(y), y.strides[1], *_finishing(to),
        work=2 * len(weight.values) * images * pixels, keep=(x, weight, y, to),
    )  # fmt: skip


def small_depthwise(
    x: Floats, weight: Floats, y: Floats, window: Window, to: Finish
) -> Call:
    """`depthwise` for windows that `is_small`; weight is (C, kernel size), dense."""
    images, channels = x.shape[:2]
    height, width = window.out
    zeros = np.zeros(window.width + 2 * LANES, np.float32)
    rows = depthwise_blocks.rows_of_block(height)
    return Call(
        depthwise_blocks.depthwise_loop(window.kernel[0], window.stride[0], rows),
        images * channels, channels, _address(x), x.strides[1], window.height,
        window.width, *window.padding[:2], height, width, _address(zeros) + VECTOR,
        _address(weight), _address(y), y.strides[1], *_finishing(to),
        work=2 * weight.size * images * height * _row_floats(window),
        keep=(x, weight, y, to, zeros),
    )  # fmt: skip


def dense(x: Floats, weight: Floats, y: Floats, window: Window, to: Finish) -> Call:
    """y = clip(conv(x) + bias + residual) for windows that `is_small`.

    Args:
        weight: (O, C, kernel, kernel).
    """
    images, channels = x.shape[:2]
    outputs = len(weight)
    block = min(outputs, dense_blocks.OUTPUTS)
    parts = -(-outputs // block)
    taps = np.ascontiguousarray(weight.transpose(1, 2, 3, 0))
    zeros = np.zeros(window.width + 2 * LANES, np.float32)
    return Call(
        dense_blocks.dense_loop(window.kernel[0], window.stride[0], block),
        images * parts, parts, outputs, channels, _address(x), x.strides[0],
        x.strides[1], window.height, window.width, *window.padding[:2], *window.out,
        _address(zeros) + VECTOR, _address(taps), _address(y), y.strides[0],
        y.strides[1], *_finishing(to),
        work=2 * weight.size * images * window.out[0] * _row_floats(window),
        keep=(x, taps, y, to, zeros),
    )  # fmt: skip


def expanded_depthwise(
    x: Floats,
    matrix: tuple[Floats, Integers, Integers],
    inner: Finish,
    weight: Floats,
    y: Floats,
    window: Window,
    to: Finish,
) -> Call:
    """`small_depthwise` of a `pointwise`, whose result only exists channel by channel.

    Args:
        matrix: values, crow and col of the 1x1 convolution; inner: how it ends.
    """
    images, channels = len(x), len(weight)
    height, width = window.out
    pixels = window.height * window.width
    tiles, vectors = _tiles(pixels)
    values, crow, col = matrix
    zeros = np.zeros(window.width + 2 * LANES, np.float32)
    rows = depthwise_blocks.rows_of_block(height)
    bias, _, *clip = _finishing(inner)
    depthwise_work = weight.size * height * _row_floats(window)
    return Call(
        depthwise_blocks.expanded_loop(
            window.kernel[0], window.stride[0], rows, vectors
        ),
        images * channels, channels, pixels, _address(x), x.strides[0], x.strides[1],
        _address(col), _address(values), _address(crow), bias, *clip, window.height,
        window.width, *window.padding[:2], height, width, _address(zeros) + VECTOR,
        _address(weight), _address(y), y.strides[1], *_finishing(to),
        work=2 * images * (depthwise_work + len(values) * tiles * vectors * LANES),
        keep=(x, matrix, inner, weight, y, to, zeros),
    )  # fmt: skip


def is_small(window: Window) -> bool:
    """Whether there are vectors for it that need no padded copy."""
    rows, columns = window.kernel
    down, across = window.stride
    return (
        rows == columns
        and down == across
        and rows in depthwise_blocks.KERNELS
        and down in depthwise_blocks.STRIDES
    )


def pad_phases(x: Floats, window: Window, copy: Floats) -> Call:
    """The padded copy of all channels, in phase planes."""
    images, channels = x.shape[:2]
    return Call(
        loops.copy_planes, images * channels, channels, _address(x), x.strides[0],
        x.strides[1], window.height, window.width, *window.padding[:2],
        *window.stride, *window.phase, _address(copy), copy.strides[0],
        work=images * channels * window.copy_floats, keep=(x, copy),
    )  # fmt: skip


def _rows(window: Window) -> tuple[int, ...]:
    """Rows of the output; floats of a row of it and of a phase; tiles of a row."""
    height, width = window.out
    return height, width, window.phase[1], window.phase[0], _tiles(width)[0]


def _row_floats(window: Window) -> int:
    tiles, vectors = _tiles(window.out[1])
    return tiles * vectors * LANES


def _sparse(weight: Sparse) -> tuple[int, ...]:
    blocks, rows = weight.starts.shape
    arrays = weight.offsets, weight.values, weight.starts
    return *map(_address, arrays), blocks - 1, rows


def _finishing(to: Finish) -> tuple[Any, ...]:
    residual = 0 if to.residual is None else _address(to.residual)
    return _address(to.bias), residual, np.float32(to.clip[0]), np.float32(to.clip[1])


def _address(array: NDArray[Any]) -> int:
    return array.ctypes.data
