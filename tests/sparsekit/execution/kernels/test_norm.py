"""Batch norm by itself: every choice of arguments, against float64."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparsekit.execution.kernels import norm
from tests.sparsekit.execution.kernels.guarded import Room, in_parts

CHANNELS = 4
EPSILON = 0.25  # large, so that it is seen
BATCHES = [1, 9, 15, 16, 17, 41]
SIZES = [(3, 5), (1, 2), (6, 9)]


def blocked(room: Room, values: torch.Tensor, spare: float) -> np.ndarray:
    """[N, C, H, W] -> [G, C, H + 2, W + 2, 16]; `spare` in lanes without an image."""
    batch, channels, height, width = values.shape
    groups = -(-batch // 16)
    array = room.array(groups, channels, height + 2, width + 2, 16, fill=0.0)
    inside = array[:, :, 1:-1, 1:-1]
    inside[:] = spare
    for image in range(batch):
        inside[image // 16, ..., image % 16] = values[image].float().numpy()
    return array


def images(array: np.ndarray, batch: int) -> torch.Tensor:
    inside = array[:, :, 1:-1, 1:-1].transpose(0, 4, 1, 2, 3)
    found = inside.reshape(-1, *inside.shape[2:])[:batch].copy()
    return torch.from_numpy(found).double()


def near(found, expected) -> None:
    found, expected = torch.as_tensor(found).double(), torch.as_tensor(expected)
    error = (found - expected).norm()
    assert error <= 3e-6 * expected.norm() + 1e-6, (error, expected.norm())


def given(batch: int, size: tuple[int, int], seed: int = 0):
    torch.manual_seed(seed)
    x = (torch.randn(batch, CHANNELS, *size) * 2 + 3).double()
    x = x * torch.arange(1, CHANNELS + 1).view(-1, 1, 1) + 1
    x = x.float().double()
    residual = torch.randn(batch, CHANNELS, *size).double()
    weight, bias = torch.tensor([1.5, -2, 0.25, 1]), torch.tensor([0.5, -0.3, 0, 1.0])
    return x, residual, weight, bias


def shape(batch: int, size: tuple[int, int]) -> tuple[int, ...]:
    """groups, channels, height, width, images in the last chunk."""
    return -(-batch // 16), CHANNELS, *size, (batch - 1) % 16 + 1


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shift", [0.0, 1e4, -1e6])
def test_statistics(batch: int, size: tuple[int, int], shift: float) -> None:
    x = (given(batch, size)[0] + shift).float().double()
    room, stats = Room(), np.full((2, CHANNELS), np.nan)
    array = blocked(room, x, spare=1e9)
    in_parts(
        norm.statistics, CHANNELS, array.ctypes.data, stats.ctypes.data,
        *shape(batch, size),
    )  # fmt: skip
    near(stats[0], x.mean((0, 2, 3)))
    near(stats[1], x.var((0, 2, 3), correction=0))
    room.check()


FLAGS = list(itertools.product([False, True], repeat=5))


@pytest.mark.parametrize("batch", [9, 16, 33])
@pytest.mark.parametrize("flags", FLAGS)
def test_forward(batch: int, flags: tuple[bool, ...]) -> None:
    own, relu, with_residual, with_weight, with_bias = flags
    size = (3, 6)
    x, residual, weight, bias = given(batch, size)
    room = Room()
    array, add = blocked(room, x, 1e9), blocked(room, residual, 1e9)
    out = room.array(*array.shape, fill=5.0)
    mean, variance = torch.tensor([1.0, -2, 3, 0]), torch.tensor([0.5, 4, 0, 1])
    stats = np.stack([mean.numpy(), variance.numpy()]).astype(np.float64)
    if own:
        stats[:] = np.nan
    in_parts(
        norm.forward, CHANNELS, array.ctypes.data,
        add.ctypes.data if with_residual else 0, out.ctypes.data,
        weight.data_ptr() if with_weight else 0, bias.data_ptr() if with_bias else 0,
        stats.ctypes.data, EPSILON, own, relu, *shape(batch, size),
    )  # fmt: skip
    if own:
        near(stats[0], x.mean((0, 2, 3)))
        near(stats[1], x.var((0, 2, 3), correction=0))
    expected = F.batch_norm(
        x, None if own else mean.double(), None if own else variance.double(),
        weight.double() if with_weight else None,
        bias.double() if with_bias else None, own, eps=EPSILON,
    )  # fmt: skip
    expected = expected + residual if with_residual else expected
    near(images(out, batch), expected.relu() if relu else expected)
    out[:, :, 1:-1, 1:-1] = 5
    assert (out == 5).all()  # the border is left alone
    room.check()


@pytest.mark.parametrize("batch", [9, 16, 33])
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("kind", ["plain", "relu", "residual", "residual unwanted"])
def test_backward(batch: int, flags: tuple[bool, ...], kind: str) -> None:
    training, want_x, with_weight, with_bias, tall = flags
    size = (5, 3) if tall else (2, 6)
    x, residual, weight, bias = given(batch, size)
    grad = torch.randn_like(x).float().double()
    leaves = [t.double().clone().requires_grad_() for t in (x, residual, weight, bias)]
    mean, variance = torch.tensor([1.0, -2, 3, 0]), torch.tensor([0.5, 4, 0, 1])
    if training:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    y = F.batch_norm(
        leaves[0], None if training else mean.double(),
        None if training else variance.double(),
        leaves[2] if with_weight else None, leaves[3] if with_bias else None,
        training, eps=EPSILON,
    )  # fmt: skip
    with_residual = kind.startswith("residual")
    y = y + leaves[1] if with_residual else y
    y = y if kind == "plain" else y.relu()
    y.backward(grad)

    room = Room()
    array, step, result = (
        blocked(room, t, spare)
        for t, spare in ((x, 1e9), (grad, 0.0), (y.detach(), 1e9))
    )
    want_residual = kind == "residual"
    to_x = room.array(*array.shape, fill=5.0)
    to_residual = room.array(*array.shape, fill=5.0)
    to_weight, to_bias = room.array(CHANNELS), room.array(CHANNELS)
    stats = torch.stack([mean.double(), variance.double()]).numpy()
    in_parts(
        norm.backward, CHANNELS, step.ctypes.data,
        result.ctypes.data if with_residual else 0, array.ctypes.data,
        to_x.ctypes.data if want_x else 0,
        to_residual.ctypes.data if want_residual else 0, to_weight.ctypes.data,
        to_bias.ctypes.data, weight.data_ptr() if with_weight else 0,
        bias.data_ptr() if with_bias else 0, stats.ctypes.data, EPSILON,
        kind != "plain", training, *shape(batch, size),
    )  # fmt: skip
    if with_weight:
        near(to_weight, leaves[2].grad)
    if with_bias:
        near(to_bias, leaves[3].grad)
    for wanted, array, leaf in ((want_x, to_x, leaves[0]),
                                (want_residual, to_residual, leaves[1])):  # fmt: skip
        if wanted:
            near(images(array, batch), leaf.grad)
            if batch % 16:
                assert not array[-1, :, 1:-1, 1:-1, batch % 16 :].any()
            array[:, :, 1:-1, 1:-1] = 5
        assert (array == 5).all()  # the border, or all if it is not wanted
    room.check()


def test_running_statistics() -> None:
    stats = np.array([[1.0, -2, 3], [0.5, 4, 2]])
    means, variances = np.ones(4, np.float32), np.full(4, 2, np.float32)
    calls = np.array([7, 9])
    norm.follow(
        stats.ctypes.data, means.ctypes.data, variances.ctypes.data,
        calls.ctypes.data, 3, 0.25, 1.5,
    )  # fmt: skip
    np.testing.assert_allclose(means, [1, 0.25, 1.5, 1])
    np.testing.assert_allclose(variances, [1.6875, 3, 2.25, 2])
    assert calls.tolist() == [8, 9]
