"""Products of a sparse matrix by themselves, guarded, in float64."""

import numpy as np
import pytest

from sparsekit.execution.kernels import linear, linear_structure
from tests.sparsekit.execution.kernels.guarded import Room, in_parts, runs

BATCHES = [1, 2, 4, 7, 8, 9, 15, 16, 17, 33, 64]
SHAPES = [(5, 7, 0.5), (530, 13, 0.4), (13, 530, 0.4), (520, 516, 0.15), (6, 600, 0.0),
          (3, 2100, 1.0), (2100, 3, 1.0)]  # fmt: skip


class Case:
    def __init__(self, batch: int, shape: tuple[int, int, float]):
        rows, columns, density = shape
        rng, self.room = np.random.default_rng(0), Room()
        mask = rng.random((rows, columns)) < density
        mask[rows // 2] = False
        weight = rng.standard_normal(mask.shape).astype(np.float32) * mask
        self.mask, self.weight = mask, weight.astype(np.float64)
        self.crow = np.r_[0, mask.sum(1).cumsum()].astype(np.int32)
        self.col = mask.nonzero()[1].astype(np.int32)
        self.values = self.room.copy(weight[mask])
        self.x = self.array(rng.standard_normal((batch, columns)))
        self.g = self.array(rng.standard_normal((batch, rows)))
        self.bias = self.array(rng.standard_normal(rows))
        self.work = 2 * len(self.col) * batch / 50

    def array(self, values: np.ndarray) -> np.ndarray:
        return self.room.copy(values.astype(np.float32))

    def feature_major(self, batch: int, features: int) -> np.ndarray:
        return self.room.array(features, batch).T

    @property
    def by_rows(self) -> np.ndarray:
        return linear_structure.index_rows(self.crow, self.col, self.mask.shape[1])


def near(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def guess(made: list) -> float:
    """Of the product; what packs its operands comes besides."""
    (options,) = [o for name, _, o in made if "copy" not in name and name[-2:] != "in"]
    return options["nanoseconds"]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", SHAPES)
def test_products(batch: int, shape: tuple[int, int, float]) -> None:
    case, (rows, columns, _) = Case(batch, shape), shape
    x, g, weight = (a.astype(np.float64) for a in (case.x, case.g, case.weight))
    starts = case.by_rows

    y = case.feature_major(batch, rows)
    for bias in (None, case.bias):
        with runs() as made:
            linear.multiply(case.x, case.values, starts, case.col, bias, y)
        near(y, x @ weight.T + (0 if bias is None else bias))
        assert guess(made) == pytest.approx(case.work)
        tasks = {name: n for name, n, _ in made}
        tiles = linear.Tiles(batch)
        if batch == 1:
            assert tasks == {"_vector": rows}
        else:
            assert tasks["kernel"] == tiles.count * -(-rows // 512)

    transposed = linear_structure.index_columns(case.crow, case.col, columns)
    y = case.feature_major(batch, columns)
    with runs() as made:
        linear.multiply_transposed(case.g, case.values, *transposed, rows, y)
    near(y, g @ weight)
    assert guess(made) == pytest.approx(case.work)
    tasks = {name: n for name, n, _ in made}
    groups = -(-columns // 512)
    name, copies = ("_vector_transposed", 1) if batch == 1 else ("kernel", tiles.count)
    assert tasks[name] == copies * groups

    out = case.room.array(len(case.col), fill=3.0)
    with runs() as made:
        linear.weight_gradient(case.g, case.x, starts, case.col, out)
    near(out, (g.T @ x)[case.mask])
    assert guess(made) == pytest.approx(case.work)
    tasks = {name: n for name, n, _ in made}
    assert tasks["_outer" if batch == 1 else "kernel"] == (
        rows if batch == 1 else -(-rows // 512)
    )
    case.room.check()


@pytest.mark.parametrize("batch", [1, 16, 40])
def test_parts_of_tasks_in_any_order(monkeypatch, batch: int) -> None:
    def run(kernel, tasks, *args, nanoseconds=None) -> None:
        in_parts(kernel, tasks, *args)

    monkeypatch.setattr(linear.threads, "run", run)
    rows, columns = 1100, 1030
    case = Case(batch, (rows, columns, 0.05))
    starts = case.by_rows
    y = case.feature_major(batch, rows)
    linear.multiply(case.x, case.values, starts, case.col, case.bias, y)
    near(y, case.x @ case.weight.T + case.bias)
    transposed = linear_structure.index_columns(case.crow, case.col, columns)
    y = case.feature_major(batch, columns)
    linear.multiply_transposed(case.g, case.values, *transposed, rows, y)
    near(y, case.g @ case.weight)
    out = case.room.array(len(case.col))
    linear.weight_gradient(case.g, case.x, starts, case.col, out)
    near(out, (case.g.T @ case.x)[case.mask])
    case.room.check()


def test_a_column_of_more_non_zeros_than_are_gathered_at_a_time() -> None:
    """The others are so few that all of its 3,000 lie in one block of rows."""
    case = Case(16, (3000, 121, 0.003))
    case.mask[:, 7] = True
    case.weight = np.random.default_rng(1).standard_normal(case.mask.shape) * case.mask
    case.crow = np.r_[0, case.mask.sum(1).cumsum()].astype(np.int32)
    case.col = case.mask.nonzero()[1].astype(np.int32)
    case.values = case.array(case.weight[case.mask])
    starts, *rest = linear_structure.index_columns(case.crow, case.col, 121)
    assert np.diff(starts).max() > linear.CHUNK
    y = case.feature_major(16, 121)
    linear.multiply_transposed(case.g, case.values, starts, *rest, 3000, y)
    near(y, case.g.astype(np.float64) @ case.weight)
    case.room.check()
