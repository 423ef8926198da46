"""Rows of a sparse table, and the gradient of what was read."""

import numpy as np
import pytest

from sparsekit.execution.kernels import embedding
from tests.sparsekit.execution.kernels.guarded import Room, in_parts, runs

ROWS, COLUMNS = 7, 11


def table() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Dense, values, crow, col; row 2 is empty."""
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((ROWS, COLUMNS)) * (rng.random((ROWS, COLUMNS)) < 0.5)
    dense[2] = 0
    dense = dense.astype(np.float32)
    crow = np.r_[0, (dense != 0).sum(1).cumsum()].astype(np.int32)
    return dense, dense[dense != 0], crow, dense.nonzero()[1].astype(np.int32)


@pytest.mark.parametrize(("indices", "place"), [
    ([], -1), ([0, 6], -1), ([-1], 0), ([7], 0), ([3, 2, 7, -1], 2), ([0, 0, -9], 2),
])  # fmt: skip
def test_first_outside(indices: list[int], place: int) -> None:
    found = embedding.first_outside(np.array(indices, np.int64), ROWS)
    assert found == place
    assert type(found) is int


@pytest.mark.parametrize("indices", [[], [2], [0, 6, 6, 2, 3, 0, 1, 5]])
def test_rows_and_their_gradient(indices: list[int]) -> None:
    dense, values, crow, col = table()
    room, index = Room(), np.array(indices, np.int64)
    out = room.array(len(indices), COLUMNS)
    given = index, room.copy(values), crow, col
    with runs() as made:
        embedding.gather(*given, out)
    np.testing.assert_array_equal(out, dense[index])
    work = {"nanoseconds": float(len(indices) * COLUMNS)}
    assert made == [("_gather", len(indices), work)]
    out[:] = 7
    in_parts(embedding._gather, len(indices), *given, out)
    np.testing.assert_array_equal(out, dense[index])

    grad = np.random.default_rng(1).standard_normal(out.shape).astype(np.float32)
    for skip in (-1, 0, 6):
        whole = np.zeros((ROWS, COLUMNS))
        for i, row in enumerate(indices):
            if row != skip:
                whole[row] += grad[i]
        sums = room.array(len(values))
        embedding.accumulate(index, room.copy(grad), crow, col, skip, sums)
        np.testing.assert_allclose(sums, whole[dense != 0], rtol=1e-5, atol=1e-6)
    room.check()
