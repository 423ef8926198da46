"""Orders of a convolution's weights, against sorting by what defines them."""

import itertools

import numpy as np
import pytest

from sparsekit.execution.kernels import conv_structure as structure
from sparsekit.execution.kernels.vectors import VECTORS

KINDS = list(itertools.product((9, 1), (1, 2)))


def weights(rows: int, channels: int, taps: int, density: float, seed: int = 0):
    mask = np.random.default_rng(seed).random((rows, channels * taps)) < density
    crow = np.r_[0, mask.sum(1).cumsum()].astype(np.int32)
    return crow, mask.nonzero()[1].astype(np.int32)


def nearest_power(x: float) -> int:
    """Of two, at least 1; nearest as a ratio."""
    return min((1 << k for k in range(20)), key=lambda p: max(p / x, x / p))


@pytest.mark.parametrize("taps", [9, 1])
@pytest.mark.parametrize("channels", [1, 3, 64, 300, 2000])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.1, 1.0])
@pytest.mark.parametrize("sizes", [(None, None), (6000, 1), (20_000, 3), (90_000, 0)])
def test_channels_of_a_block(monkeypatch, taps, channels, share, sizes) -> None:
    """As many as 32 KiB hold of a tile and its border, or as have 11 non-zeros."""
    for name, size in zip(("NEAR", "NONZEROS"), sizes, strict=True):
        if size is not None:
            monkeypatch.setattr(structure, name, size)
    near, few = (32768, 11) if sizes == (None, None) else sizes
    rows = 37
    nnz = int(share * rows * channels * taps)
    sides = {16: (2, 8), 4: (2, 2)}[VECTORS]
    more = 2 if taps > 1 else 0
    near //= (sides[0] + more) * (sides[1] + more) * 64
    sparse = few * rows * channels / max(nnz, 1)
    expected = nearest_power(max(1, min(channels, max(near, sparse))))
    assert structure.channels_of_a_block(nnz, rows, channels, taps) == expected


@pytest.mark.parametrize(("taps", "stride"), KINDS)
@pytest.mark.parametrize(("rows", "channels", "density"), [
    (7, 5, 0.4), (70, 61, 0.3), (130, 150, 0.5), (30, 20, 0.0), (1, 1, 1.0),
])  # fmt: skip
def test_orders(taps, stride, rows, channels, density) -> None:
    crow, col = weights(rows, channels, taps, density)
    nnz = len(col)
    shapes = structure.shapes_of_starts(nnz, rows, channels, taps, stride)

    starts = structure.row_order(crow, col, taps, channels)
    width = structure.channels_of_a_block(nnz, rows, channels, taps)
    assert starts.shape == shapes[0] == (1, -(-channels // width) + 1, rows)
    edges = np.arange(shapes[0][1]) * width * taps
    for r in range(rows):
        before = np.searchsorted(col[crow[r] : crow[r + 1]], edges)
        assert (starts[0, :, r] == crow[r] + before).all()

    classes = 4 if (taps, stride) == (9, 2) else 1
    width = structure.channels_of_a_block(nnz, channels, rows, taps // classes)
    columns, starts, permutation = structure.column_order(
        crow, col, taps, channels, stride
    )
    assert starts.shape == shapes[1] == (classes, -(-rows // width) + 1, channels)
    row = np.repeat(np.arange(rows), np.diff(crow))
    channel, tap = col // taps, col % taps
    kind = (tap // 3 != 1) * 2 + (tap % 3 != 1) if classes == 4 else 0 * tap
    block = row // width
    order = np.lexsort((tap, row, block, kind, channel))
    assert (permutation == order).all()
    assert (columns == (row * taps + tap)[order]).all()
    blocks = starts.shape[1]
    cells = ((channel * classes + kind) * blocks + block)[order]
    for c in range(channels):
        for k in range(classes):
            first = (c * classes + k) * blocks
            before = np.searchsorted(cells, first + np.arange(blocks))
            assert (starts[k, :, c] == before).all()
