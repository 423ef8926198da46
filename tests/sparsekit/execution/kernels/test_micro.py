"""Blocks of every shape: few vectors, whose sums take turns, and several rows."""

from functools import cache

import numpy as np
import pytest
from numba import njit

from sparsekit.execution.kernels import micro
from tests.sparsekit.execution.kernels.guarded import Room

FLOAT = np.float32
SHAPES = [(16, 1, 1), (8, 1, 3), (4, 2, 1), (2, 1, 2), (16, 3, 2)]  # lanes first
COUNTS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 16]
STEP, ROW = 80, 400  # bytes


@cache
def kernels(lanes: int, rows: int, columns: int):
    @njit
    def plain(x, index, values, begin, end, y, resume, start):
        micro.multiply_add(
            lanes, rows, columns, 80, 96, x, 400, index, 24, values, begin, end, y, 320,
            resume, start,
        )  # fmt: skip

    @njit
    def finish(x, index, values, begin, end, y, resume, last, residual, ends):
        micro.multiply_add_finish(
            lanes, rows, columns, 80, 96, x, 400, index, 24, values, begin, end, y, 320,
            resume, last, residual, ends[0], ends[1], ends[2],
        )  # fmt: skip

    @njit
    def dots(x, index, out, begin, end, g):
        micro.dot_products(
            lanes, rows, columns, 80, 96, x, 400, index, 24, out, begin, end, g, 320
        )

    return plain, finish, dots


class Case:
    def __init__(self, shape: tuple[int, int, int], count: int):
        rng, self.room, self.shape = np.random.default_rng(count), Room(), shape
        self.begin, self.end = 2, 2 + count
        self.index = rng.permutation(np.arange(30, dtype=np.int32))[: count + 4]
        self.values = self.room.copy(rng.standard_normal(count + 4))
        self.x = self.room.copy(rng.standard_normal(30 * 6 + 3 * 100 + 60))
        self.y = self.room.copy(rng.standard_normal(3 * 80 + 60))
        self.residual = self.room.copy(rng.standard_normal(3 * 80 + 60))

    def block(self, array: np.ndarray, first: int, row: int, step: int) -> np.ndarray:
        """(rows, columns, lanes) of an array; distances in bytes."""
        lanes, rows, columns = self.shape
        strides = row, step, 4
        return np.lib.stride_tricks.as_strided(
            array[first:], (rows, columns, lanes), strides
        )

    def of_y(self, array: np.ndarray) -> np.ndarray:
        return self.block(array, 0, 320, 96)

    def terms(self) -> list[tuple[int, np.ndarray]]:
        return [(t, self.block(self.x, 6 * self.index[t], ROW, STEP).astype(float))
                for t in range(self.begin, self.end)]  # fmt: skip

    def sum(self) -> np.ndarray:
        zero = np.zeros(self.of_y(self.y).shape)
        return sum((self.values[t] * block for t, block in self.terms()), zero)

    @property
    def inputs(self) -> tuple[int, ...]:
        arrays = self.x, self.index, self.values
        return *(a.ctypes.data for a in arrays), self.begin, self.end

    def check(self, before: np.ndarray, expected: np.ndarray) -> None:
        """The block is as expected; nothing else was written."""
        found = self.of_y(self.y)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        found[:] = self.of_y(before)
        np.testing.assert_array_equal(self.y, before)
        self.room.check()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", COUNTS)
def test_sums(shape: tuple[int, int, int], count: int) -> None:
    case = Case(shape, count)
    plain, finish, _ = kernels(*shape)
    before = case.y.copy()
    old = case.of_y(before).astype(float)
    for resume in (0, 1, 5):
        y = case.y.ctypes.data
        plain(*case.inputs, y, resume, FLOAT(0.75))
        case.check(before, case.sum() + (old if resume else 0.75))
        for last, residual in ((0, 0), (0, 1), (1, 0), (1, 1), (3, 1)):
            place = residual and case.residual.ctypes.data
            ends = np.array([0.75, -0.5, 1.5], FLOAT)
            finish(*case.inputs, y, resume, last, place, ends)
            expected = case.sum() + (old if resume else 0.75)
            if last and residual:
                expected = expected + case.of_y(case.residual)
            case.check(before, expected.clip(-0.5, 1.5) if last else expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", COUNTS)
def test_products(shape: tuple[int, int, int], count: int) -> None:
    case = Case(shape, count)
    _, _, dots = kernels(*shape)
    out = case.room.copy(case.values)
    grad = case.of_y(case.y).astype(float)
    x, index, _, begin, end = case.inputs
    dots(x, index, out.ctypes.data, begin, end, case.y.ctypes.data)
    expected = case.values.astype(float)
    for t, block in case.terms():
        expected[t] += (grad * block).sum()
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    case.room.check()


def test_not_a_number_is_not_clipped() -> None:
    case = Case((16, 3, 2), 3)
    case.x[:] = np.nan
    _, finish, _ = kernels(16, 3, 2)
    ends = np.array([0, -1, 1], FLOAT)
    finish(*case.inputs, case.y.ctypes.data, 0, 1, 0, ends)
    assert np.isnan(case.of_y(case.y)).all()


def test_memory_ahead_may_lie_anywhere() -> None:
    @njit
    def ask(address, row):
        micro.prefetch(2, 3, 64, 0, address, row)
        micro.prefetch(1, 1, 64, 1, address, row)

    for address in (0, -64, 1 << 60, np.zeros(9).ctypes.data):
        ask(address, 1 << 20)
    (assembly,) = ask.inspect_asm().values()
    body = assembly[: assembly.find("cpython")]
    if "prefetch" in body:  # two rows of three lines, and one to be written
        assert body.count("prefetch") == 7
