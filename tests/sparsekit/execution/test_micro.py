"""The two loops against the sums they stand for, written out in float64."""

import json
import os
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from sparsekit.execution.kernels.micro import (
    dot_products,
    multiply_add,
    multiply_add_finish,
)
from sparsekit.execution.kernels.vectors import VECTORS

ROOT = Path(__file__).parents[3]
FLOAT = np.float32


@cache
def kernels(lanes, rows, columns, x_step, y_step):
    @njit
    def plain(x, x_row, index, scale, values, begin, end, y, y_row, resume, start):
        multiply_add(
            lanes, rows, columns, x_step, y_step,
            x, x_row, index, scale, values, begin, end, y, y_row, resume, start,
        )  # fmt: skip

    @njit
    def dots(x, x_row, index, scale, out, begin, end, g, g_row):
        dot_products(
            lanes, rows, columns, x_step, y_step,
            x, x_row, index, scale, out, begin, end, g, g_row,
        )  # fmt: skip

    return plain, dots


def subject(count, positions=13, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(4096).astype(FLOAT)
    y = rng.standard_normal(4096).astype(FLOAT)
    index = np.sort(rng.integers(0, positions, count)).astype(np.int32)
    return x, y, index, rng.standard_normal(count).astype(FLOAT)


def block(array, first, lanes, rows, columns, row, step):
    """View (rows, columns, lanes); distances in floats."""
    strides = [4 * row, 4 * step, 4]
    return np.lib.stride_tricks.as_strided(
        array[first:], (rows, columns, lanes), strides
    )


SHAPES = [(16, 1, VECTORS, 16, 16), (16, 2, 2, 32, 16), (4, 3, 1, 4, 8)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [0, 1, 3, 4, 11])
def test_multiply_add(shape, count):
    lanes, rows, columns, x_step, y_step = shape
    x, y, index, values = subject(count + 2)
    before = y.copy()
    plain, _ = kernels(lanes, rows, columns, 4 * x_step, 4 * y_step)
    for resume in (0, 1):
        y[:] = before
        plain(
            x.ctypes.data + 12, 4 * 331, index.ctypes.data, 4 * 17,
            values.ctypes.data, 1, 1 + count, y.ctypes.data + 8, 4 * 401, resume,
            FLOAT(0.5),
        )  # fmt: skip
        target = block(before, 2, lanes, rows, columns, 401, y_step)
        total = target.astype(np.float64) if resume else np.full(target.shape, 0.5)
        for t in range(1, 1 + count):
            first = 3 + 17 * index[t]
            piece = block(x, first, lanes, rows, columns, 331, x_step)
            total = total + values[t] * piece.astype(np.float64)
        got = block(y, 2, lanes, rows, columns, 401, y_step)
        np.testing.assert_allclose(got, total, rtol=1e-5, atol=1e-5)
        got[:] = target  # nothing else was written
        np.testing.assert_array_equal(y, before)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [0, 1, 3, 4, 11])
def test_dot_products(shape, count):
    lanes, rows, columns, x_step, y_step = shape
    x, g, index, out = subject(count + 2)
    before = out.copy()
    _, dots = kernels(lanes, rows, columns, 4 * x_step, 4 * y_step)
    dots(
        x.ctypes.data + 12, 4 * 331, index.ctypes.data, 4 * 17,
        out.ctypes.data, 1, 1 + count, g.ctypes.data + 8, 4 * 401,
    )  # fmt: skip
    grad = block(g, 2, lanes, rows, columns, 401, y_step).astype(np.float64)
    for t in range(1, 1 + count):
        piece = block(x, 3 + 17 * index[t], lanes, rows, columns, 331, x_step)
        expected = before[t] + (grad * piece).sum()
        np.testing.assert_allclose(out[t], expected, rtol=1e-4, atol=1e-4)
    assert out[0] == before[0]
    assert out[-1] == before[-1]


@njit
def finish(x, index, values, count, y, resume, last, residual, start, low, high):
    multiply_add_finish(
        8, 1, 2, 32, 32,
        x, 0, index, 4, values, 0, count, y, 0, resume,
        last, residual, start, low, high,
    )  # fmt: skip


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(("low", "high"), [(-np.inf, np.inf), (0, np.inf), (0, 1)])
def test_finish(with_residual, low, high):
    x, y, index, values = subject(7)
    residual = x[2048:].copy()
    place = residual.ctypes.data if with_residual else 0
    first = x.ctypes.data, index.ctypes.data, values.ctypes.data, 3, y.ctypes.data
    finish(*first, 0, 0, place, FLOAT(0.3), FLOAT(low), FLOAT(high))
    expected = np.full(16, 0.3)
    for t in range(3):
        expected += values[t] * x[index[t] : index[t] + 16].astype(np.float64)
    np.testing.assert_allclose(y[:16], expected, rtol=1e-5, atol=1e-5)  # not last
    second = x.ctypes.data, index[3:].ctypes.data, values[3:].ctypes.data, 4
    bounds = FLOAT(low), FLOAT(high)
    finish(*second, y.ctypes.data, 1, 1, place, FLOAT(9), *bounds)
    for t in range(3, 7):
        expected += values[t] * x[index[t] : index[t] + 16].astype(np.float64)
    if with_residual:
        expected += residual[:16]
    expected = expected.clip(low, high)
    np.testing.assert_allclose(y[:16], expected, rtol=1e-5, atol=1e-5)


def test_accumulators_stay_in_registers():
    """As many multiply-adds with a memory operand as vectors, and no more loads."""
    plain, _ = kernels(16, 1, VECTORS, 64, 64)
    if not plain.signatures:
        test_multiply_add((16, 1, VECTORS, 16, 16), 4)
    assembly = plain.inspect_asm(plain.signatures[0])
    if "zmm" not in assembly:
        pytest.skip("looks for AVX-512 instructions")
    loop = max(assembly.split("\n.LBB"), key=lambda part: part.count("vfmadd"))
    assert loop.count("vfmadd") >= VECTORS
    assert "rsp" not in loop  # no vector on the stack


KERNEL = """
from functools import cache
from numba import njit
from sparsekit.execution.kernels.micro import multiply_add

@cache
def kernel(columns):
    @njit(nogil=True, cache=True)
    def run(begin, end, x, index, values, y, start):
        for task in range(begin, end):
            multiply_add(16, 1, columns, 64, 64, x, 0, index, 4, values, 0, 2, y, 0, 0,
                         start)
    return run
"""
SCRIPT = """
import json, time
import numpy as np
began = time.perf_counter()
from cached import kernel
x, y = np.arange(99, dtype=np.float32), np.zeros((2, 64), np.float32)
index, values = np.array([1, 3], np.int32), np.array([1, 10], np.float32)
for columns in (1, 2):
    args = (a.ctypes.data for a in (x, index, values, y[columns - 1]))
    run = kernel(columns)
    run(0, 1, *args, np.float32(0))
hits = sum(run.stats.cache_hits.values())
print(json.dumps({"y": y[:, [0, 31]].tolist(), "hits": hits,
                  "misses": sum(run.stats.cache_misses.values())}))
"""


def test_a_second_process_does_not_compile(tmp_path):
    (tmp_path / "cached.py").write_text(textwrap.dedent(KERNEL))
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}

    def process(**more):
        command = [sys.executable, "-c", SCRIPT]
        done = subprocess.run(
            command, env=env | more, check=True, capture_output=True, text=True
        )
        return json.loads(done.stdout)

    values = [[31.0, 0.0], [31.0, 372.0]]  # 1 * x[1 + i] + 10 * x[3 + i]
    assert process() == {"y": values, "hits": 0, "misses": 1}
    assert process() == {"y": values, "hits": 1, "misses": 0}
    narrow = process(NUMBA_CPU_NAME="haswell") if sys.platform == "linux" else None
    if narrow and os.uname().machine == "x86_64":  # AVX2: another machine's code
        assert narrow == {"y": values, "hits": 0, "misses": 1}
