"""Tiles of pixels of blocked arrays: as many vectors as the registers hold."""

from functools import lru_cache
from typing import Any, NamedTuple

from sparsekit.execution.kernels.layout import LANES
from sparsekit.execution.kernels.vectors import VECTORS

VECTOR = 4 * LANES  # bytes
REMEMBERED = 1024  # plans of calls with the same sizes


class Piece(NamedTuple):
    """Tiles of one shape: down x across of them, each `tile` pixels of y.

    x, y: bytes to the first; steps: bytes to the next chunk, pixel row of a tile, tile
    below, tile beside (and, for y, channel).
    """

    tile: tuple[int, int]
    down: int
    across: int
    pixels: int  # of all these tiles, in all chunks
    parts: int  # that output channels are cut into, so that threads have work
    x: int
    x_steps: tuple[int, ...]
    y: int
    y_steps: tuple[int, ...]


@lru_cache(maxsize=REMEMBERED)
def pieces(
    x_sizes: tuple[int, ...],
    y_sizes: tuple[int, ...],
    x_stride: int,
    y_stride: int,
    parity: int,
) -> list[Piece]:
    """Tiles over every y_stride-th pixel of y, from `parity` on in row and column."""
    x_group, _, x_row = steps(*x_sizes)
    y_group, y_channel, y_row = steps(*y_sizes)
    groups, outputs, height, width = y_sizes
    first = divmod(parity, 2)
    rows, columns = (
        -(-(length - begin) // y_stride)
        for length, begin in zip((height, width), first, strict=True)
    )
    found = []
    for (top, tall, down), (left, wide, across) in _tiles(rows, columns):
        parts = max(1, min(outputs // 32, 8 // max(1, groups * down)))
        x = x_stride * (top * x_row + left * VECTOR)
        y = (top * y_stride + first[0] + 1) * y_row
        y += (left * y_stride + first[1] + 1) * VECTOR
        x_steps = x_stride * x_row, tall * x_stride * x_row, wide * x_stride * VECTOR
        y_steps = y_stride * y_row, tall * y_stride * y_row, wide * y_stride * VECTOR
        found.append(
            Piece(
                (tall, wide),
                down,
                across,
                groups * tall * down * wide * across,
                parts,
                x,
                (x_group, *x_steps),
                y,
                (y_group, *y_steps, y_channel),
            )
        )
    return found


def steps(groups: int, channels: int, height: int, width: int) -> tuple[int, int, int]:
    """Bytes from a chunk, channel and row of a blocked array to the next."""
    row = (width + 2) * VECTOR
    return channels * (height + 2) * row, (height + 2) * row, row


def _tiles(height: int, width: int) -> list[tuple[Any, Any]]:
    """Cuts pixels into tiles: pairs of (first, size, count) of rows and of columns."""
    if not height or not width:
        return []
    rows, columns = largest_tile(height, width)
    return [(a, b) for a in _cut(height, rows) for b in _cut(width, columns)]


def largest_tile(height: int = 1 << 20, width: int = 1 << 20) -> tuple[int, int]:
    """(rows, columns) whose vectors fit the registers: 2 x 8 of 16, or 4 x 4."""
    columns = min(VECTORS // 2, width)
    columns = -(-width // -(-width // columns))  # no wider than equal tiles need
    return min(VECTORS // columns, height), columns


def _cut(length: int, most: int) -> list[tuple[int, int, int]]:
    """(first, size, count): pieces of `length` as equal as can be, no longer than most.

    >>> _cut(32, 8), _cut(13, 5)
    ([(0, 8, 4)], [(0, 5, 1), (5, 4, 2)])
    """
    count = -(-length // most)
    size, longer = divmod(length, count)
    pieces = [(0, size + 1, longer), (longer * (size + 1), size, count - longer)]
    return [piece for piece in pieces if piece[2]]
