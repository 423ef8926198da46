"""Structures of a linear layer, against sorting by what defines them."""

import numpy as np
import pytest

from sparsekit.execution.kernels import linear_structure as structure


def matrix(rows: int, columns: int, density: float, seed: int = 0):
    mask = np.random.default_rng(seed).random((rows, columns)) < density
    crow = np.r_[0, mask.sum(1).cumsum()].astype(np.int32)
    return crow, mask.nonzero()[1].astype(np.int32)


CASES = [(13, 640, 0.3), (1100, 40, 0.1), (520, 513, 0.12), (5, 3, 1.0), (6, 7, 0.0),
         (0, 4, 0.5), (4, 0, 0.5), (2, 512, 1.0), (3, 1, 1.0)]  # fmt: skip


@pytest.mark.parametrize(("nnz", "rows", "columns", "expected"), [
    (0, 5, 7, 1), (47, 1, 99, 1), (49, 1, 99, 2), (81, 1, 99, 3), (32 * 50, 10, 99, 5),
    (32 * 50, 10, 3, 3), (10, 0, 0, 1), (32 * 6, 0, 9, 6), (5, 2, 0, 1),
])  # fmt: skip
def test_about_32_non_zeros_of_a_row_in_a_block(nnz, rows, columns, expected) -> None:
    by_rows, by_columns = structure.shapes_of_starts(nnz, rows, columns)
    assert by_rows == (expected + 1, rows)
    other = min(max(1, round(nnz / max(1, columns) / 32)), max(1, rows))
    assert by_columns == (columns * other + 1,)


@pytest.mark.parametrize(
    ("columns", "blocks", "width"),
    [(10, 1, 10), (10, 3, 4), (9, 3, 3), (0, 1, 1), (1, 1, 1), (7, 7, 1)],
)
def test_widths(columns: int, blocks: int, width: int) -> None:
    assert structure.block_width(columns, blocks) == width


@pytest.mark.parametrize("case", CASES)
def test_rows(case) -> None:
    rows, columns, _ = case
    crow, col = matrix(*case)
    starts = structure.index_rows(crow, col, columns)
    assert starts.shape == structure.shapes_of_starts(len(col), rows, columns)[0]
    width = structure.block_width(columns, len(starts) - 1)
    for r in range(rows):
        edges = np.arange(len(starts)) * width
        before = np.searchsorted(col[crow[r] : crow[r + 1]], edges)
        assert (starts[:, r] == crow[r] + before).all()


@pytest.mark.parametrize("case", CASES)
def test_columns(case) -> None:
    """By group of 512 columns, block of rows, column and row."""
    rows, columns, _ = case
    crow, col = matrix(*case)
    starts, row, perm = structure.index_columns(crow, col, columns)
    assert starts.shape == structure.shapes_of_starts(len(col), rows, columns)[1]
    blocks = (len(starts) - 1) // max(1, columns)
    width = structure.block_width(rows, max(1, blocks))
    of = np.repeat(np.arange(rows), np.diff(crow))
    order = np.lexsort((of, col, of // width, col // 512))
    assert (perm == order).all()
    assert (row == of[order]).all()
    group, block = col[order] // 512, of[order] // width
    size = np.minimum(512, columns - 512 * group)
    cells = 512 * group * blocks + block * size + col[order] % 512
    assert (starts == np.searchsorted(cells, np.arange(len(starts)))).all()
