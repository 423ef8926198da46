"""The order in which loops over a sparse convolution's weights find them.

Non-zeros keep their order in memory, row by row of the weight matrix [O, C * taps], and
once more transposed, for the input gradient. Blocks of channels, whose part of a tile
stays in the first-level cache, are found through `starts`, see `conv.Rows`.
"""

import math

import numpy as np
from numba import njit

from sparsekit.execution.kernels.starts import Integers, row_starts
from sparsekit.execution.kernels.tiles import VECTOR, largest_tile

NEAR = 32 * 1024  # bytes of input that stay in the first-level cache beside the rest
NONZEROS = 11  # of a row in a block, at least; fewer do not pay for the sum's transport


def channels_of_a_block(nnz: int, rows: int, channels: int, taps: int) -> int:
    """A power of two: as many as stay near, or more where non-zeros are few."""
    side = 2 if taps > 1 else 0
    tile = largest_tile()
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


def row_order(crow: Integers, col: Integers, taps: int, channels: int) -> Integers:
    """The `starts` of a weight matrix in rows, whose columns stay as they are."""
    block = channels_of_a_block(len(col), len(crow) - 1, channels, taps)
    starts = row_starts(crow, col, block * taps, -(-channels // block))
    return starts.reshape(1, *starts.shape)  # [None] would have a stride of 0


def column_order(
    crow: Integers, col: Integers, taps: int, channels: int, stride: int
) -> tuple[Integers, Integers, Integers]:
    """The transposed weights, a row an input channel, for the input gradient.

    Returns:
        columns: (nnz,) int32, output channel * taps + tap.
        starts: see `Rows`.
        permutation: (nnz,) int32; transposed value t is values[permutation[t]].
    """
    rows = len(crow) - 1
    parity = _parities(taps, stride)
    _, shape = shapes_of_starts(len(col), rows, channels, taps, stride)
    starts = np.empty(shape, np.int32)
    columns, permutation = np.empty_like(col), np.empty_like(col)
    block = channels_of_a_block(len(col), channels, rows, taps // shape[0])
    _transpose(crow, col, parity, block, starts, columns, permutation)
    return columns, starts, permutation


def _parities(taps: int, stride: int) -> Integers:
    """(taps,) class of the input pixels that a tap takes the gradient to."""
    if stride == 1 or taps == 1:
        return np.zeros(taps, np.int32)
    odd = np.array([1, 0, 1], np.int32)  # row 2h + kh - 1
    return (2 * odd[:, None] + odd[None, :]).ravel()


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
