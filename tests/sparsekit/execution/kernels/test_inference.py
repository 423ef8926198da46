"""Pooling and products of one sample, against torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparsekit.execution.kernels import inference
from tests.sparsekit.execution.kernels.guarded import Room, in_parts, runs

WINDOWS = [
    ((2, 2), (2, 2), (0, 0)), ((3, 3), (2, 2), (1, 1)), ((3, 2), (1, 2), (1, 0)),
    ((1, 3), (2, 1), (0, 1)), ((5, 4), (3, 2), (2, 2)),
]  # fmt: skip


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("lanes", [1, 16])
def test_pool(window, average: bool, lanes: int) -> None:
    torch.manual_seed(0)
    planes, height, width = 5, 7, 6
    x = torch.randn(planes, height, width, lanes) - 50  # a padding of 0 would win
    channels_first = x.permute(0, 3, 1, 2)
    if average:
        y = F.avg_pool2d(channels_first, *window)
    else:
        y = F.max_pool2d(channels_first, *window)
    room = Room()
    wide = room.array(planes, height, 2 * width, lanes, fill=np.nan)
    wide[:, :, ::2] = x.numpy()
    out = room.array(planes, *y.shape[2:], lanes)
    (kernel, stride, padding) = window
    source = wide[:, :, ::2]
    in_parts(inference._pool, planes, source, out, *kernel, *stride, *padding, average)
    np.testing.assert_allclose(out, y.permute(0, 2, 3, 1), rtol=1e-5)
    again = room.array(*out.shape)
    with runs() as made:
        inference.pool(source, again, *window, average)
    np.testing.assert_array_equal(again, out)
    assert made == [("_pool", planes, {})]
    room.check()


@pytest.mark.parametrize("pixels", [1, 15, 16, 49])
def test_global_average(pixels: int) -> None:
    room = Room()
    x = room.array(3, 5, 64, fill=np.nan)  # the spare room holds anything
    values = np.random.default_rng(0).standard_normal((3, 5, pixels))
    x[:, :, :pixels] = values
    y = room.array(3, 5)
    with runs() as made:
        inference.global_average(x, y, pixels)
    np.testing.assert_allclose(y, values.mean(2), rtol=1e-5, atol=1e-6)
    assert made == [("_average", 15, {"nanoseconds": 15 * pixels / 16})]
    y[:] = 0
    in_parts(inference._average, 15, x.ctypes.data, 4 * 64, pixels, y.ctypes.data)
    np.testing.assert_allclose(y, values.mean(2), rtol=1e-5, atol=1e-6)
    room.check()


def test_vector_product() -> None:
    rng, room = np.random.default_rng(0), Room()
    weight = rng.standard_normal((9, 13)) * (rng.random((9, 13)) < 0.4)
    weight[3] = 0
    weight = weight.astype(np.float32)
    crow = np.r_[0, (weight != 0).sum(1).cumsum()].astype(np.int32)
    col = weight.nonzero()[1].astype(np.int32)
    x, bias = (rng.standard_normal(n).astype(np.float32) for n in (13, 9))
    y = room.array(9)
    given = room.copy(x), room.copy(weight[weight != 0]), crow, col, room.copy(bias)
    with runs() as made:
        inference.vector_product(*given, y)
    np.testing.assert_allclose(y, weight @ x + bias, rtol=1e-5, atol=1e-5)
    assert made == [("_vector_product", 9, {"nanoseconds": len(col) / 2})]
    y[:] = 0
    in_parts(inference._vector_product, 9, *given, y)
    np.testing.assert_allclose(y, weight @ x + bias, rtol=1e-5, atol=1e-5)
    room.check()
