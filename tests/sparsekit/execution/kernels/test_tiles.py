"""Tiles cover each pixel once, and their addresses are those of the pixels."""

import numpy as np
import pytest

from sparsekit.execution.kernels import tiles
from sparsekit.execution.kernels.vectors import VECTORS

CHUNK = (3, 40, 70)  # groups and two numbers of channels


def places(groups: int, channels: int, height: int, width: int):
    """Bytes from a group, channel to the next, and to each pixel of the first."""
    pixel = 64
    row = pixel * (width + 2)
    channel = row * (height + 2)
    grid = row * np.arange(height + 2)[:, None] + pixel * np.arange(width + 2)
    return channel * channels, channel, grid


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (8, 8), (13, 19), (2, 33), (17, 1)])
@pytest.mark.parametrize(
    ("x_stride", "y_stride", "parity"),
    [(1, 1, 0), (2, 1, 0), (1, 2, 0), (1, 2, 1), (1, 2, 2), (1, 2, 3)],
)
def test_pieces(size, x_stride, y_stride, parity) -> None:
    groups, inputs, outputs = CHUNK
    height, width = size
    first = divmod(parity, 2)
    if y_stride == 1:  # a forward pass: y is smaller by x_stride
        large = height * x_stride, width * x_stride
    else:  # a gradient: x is smaller by y_stride
        large = -(-height // 2), -(-width // 2)
    x_group, _, x_places = places(groups, inputs, *large)
    y_group, y_channel, y_places = places(groups, outputs, height, width)
    assert tiles.steps(groups, outputs, height, width)[:2] == (y_group, y_channel)
    seen = []
    for piece in tiles.pieces(
        (groups, inputs, *large), (groups, outputs, *size), x_stride, y_stride, parity
    ):
        tall, wide = piece.tile
        assert tall * wide <= VECTORS
        assert piece.pixels == groups * tall * wide * piece.down * piece.across
        room = outputs // 32, 8 // (groups * piece.down)
        assert piece.parts == max(1, min(room))
        assert piece.x_steps[0] == x_group
        assert (piece.y_steps[0], piece.y_steps[4]) == (y_group, y_channel)
        _, x_row, x_down, x_across = piece.x_steps
        _, y_row, y_down, y_across, _ = piece.y_steps
        for d, a, i, j in np.ndindex(piece.down, piece.across, tall, wide):
            y = piece.y + d * y_down + a * y_across + i * y_row + j * 64 * y_stride
            x = piece.x + d * x_down + a * x_across + i * x_row + j * 64 * x_stride
            (pixel,) = np.argwhere(y_places == y)
            h, w = pixel - 1
            seen.append((h, w))
            assert h % y_stride == first[0] % y_stride
            assert w % y_stride == first[1] % y_stride
            corner = (h // y_stride * x_stride, w // y_stride * x_stride)
            assert x == x_places[corner]
    wanted = [(h, w) for h in range(first[0], height, y_stride)
              for w in range(first[1], width, y_stride)]  # fmt: skip
    assert sorted(seen) == wanted


@pytest.mark.parametrize("groups", [0, 1, 2, 8, 9])
@pytest.mark.parametrize("outputs", [1, 31, 32, 63, 64, 300])
def test_parts_give_eight_tasks_of_32_channels(groups: int, outputs: int) -> None:
    (piece,) = tiles.pieces((groups, 1, 2, 2), (groups, outputs, 2, 2), 1, 1, 0)
    tasks = 8 if groups == 0 else 8 // groups
    assert piece.parts == max(1, min(outputs // 32, tasks))


@pytest.mark.parametrize("vectors", [16, 4])
def test_largest_tile(monkeypatch, vectors: int) -> None:
    monkeypatch.setattr(tiles, "VECTORS", vectors)
    half = vectors // 2
    assert tiles.largest_tile() == (2, half)
    assert tiles.largest_tile(1, 100) == (1, half)
    for width in range(1, 40):
        rows, columns = tiles.largest_tile(50, width)
        count = -(-width // half)  # tiles beside each other, as few as can be
        assert columns == -(-width // count)
        assert rows == vectors // columns


@pytest.mark.parametrize("most", [1, 2, 5, 8])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 16, 33])
def test_cuts(length: int, most: int) -> None:
    pieces = tiles._cut(length, most)
    covered = [begin + k * size + i for begin, size, count in pieces
               for k in range(count) for i in range(size)]  # fmt: skip
    assert covered == list(range(length))
    sizes = [size for _, size, count in pieces for _ in range(count)]
    assert len(sizes) == -(-length // most)
    assert max(sizes) - min(sizes) <= 1


def test_nothing_to_cut() -> None:
    assert tiles.pieces((1, 1, 0, 4), (1, 1, 0, 4), 1, 1, 0) == []
    assert tiles.pieces((1, 1, 4, 1), (1, 1, 4, 1), 1, 2, 1) == []  # no odd column
