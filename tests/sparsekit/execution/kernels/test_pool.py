"""Pooling by itself: windows of every kind, any parts of the tasks, guarded memory."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparsekit.execution.kernels import pool
from tests.sparsekit.execution.kernels.guarded import Room, in_parts

CHANNELS = 3
WINDOWS = [(2, 2, 0), (2, 1, 1), (3, 2, 1), (3, 1, 1), (3, 3, 0), (5, 2, 2), (1, 2, 0)]
SIZES = [(5, 5), (7, 6), (6, 11), (8, 5)]


def blocked(room: Room, images: torch.Tensor, border: float) -> np.ndarray:
    """16 images a group, all lanes; the border holds anything."""
    n, channels, height, width = images.shape
    array = room.array(n // 16, channels, height + 2, width + 2, 16, fill=border)
    inside = images.view(n // 16, 16, channels, height, width)
    array[:, :, 1:-1, 1:-1] = inside.permute(0, 2, 3, 4, 1).numpy()
    return array


def images(array: np.ndarray) -> torch.Tensor:
    inside = array[:, :, 1:-1, 1:-1].transpose(0, 4, 1, 2, 3)
    return torch.from_numpy(inside.reshape(-1, *inside.shape[2:]).copy())


def border_is(array: np.ndarray, value: float) -> bool:
    copy = array.copy()
    copy[:, :, 1:-1, 1:-1] = value
    return bool((copy == value).all())


def values(kind: str, size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    x = torch.randn(32, CHANNELS, *size)
    if kind == "ties":
        return x.round()
    return x - 100 if kind == "negative" else x


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["random", "ties", "negative"])
def test_maximum(window: tuple[int, int, int], size: tuple[int, int], kind) -> None:
    x = values(kind, size).requires_grad_()
    y, places = F.max_pool2d(x, *window, return_indices=True)
    grad = torch.randn_like(y)
    y.backward(grad)
    (height, width), (rows, columns), room = size, y.shape[2:], Room()
    array, groups = blocked(room, x.detach(), border=np.nan), 2
    out = room.array(groups, CHANNELS, rows + 2, columns + 2, 16, fill=5.0)
    taps = np.full((groups * CHANNELS, rows, columns, 16), 99, np.int8)
    sizes = height, width, *window, rows, columns
    in_parts(
        pool.maximum, groups * CHANNELS, array.ctypes.data, out.ctypes.data,
        taps.ctypes.data, *sizes,
    )  # fmt: skip
    assert torch.equal(images(out), y)
    assert border_is(out, 5)
    side, stride, padding = window
    chosen = taps.reshape(groups, CHANNELS, rows, columns, 16).transpose(0, 4, 1, 2, 3)
    chosen = torch.from_numpy(chosen.reshape(places.shape).copy()).long()
    h = torch.arange(rows).view(-1, 1) * stride - padding + chosen // side
    w = torch.arange(columns) * stride - padding + chosen % side
    assert torch.equal(h * width + w, places)

    step = blocked(room, grad, border=np.nan)
    back = room.array(*array.shape, fill=5.0)
    in_parts(
        pool.maximum_backward, groups * CHANNELS, step.ctypes.data, back.ctypes.data,
        taps.ctypes.data, *sizes,
    )  # fmt: skip
    torch.testing.assert_close(images(back), x.grad)
    assert border_is(back, 5)
    room.check()


@pytest.mark.parametrize("padding", [0, 1])
def test_the_first_not_a_number_and_infinity(padding: int) -> None:
    x = torch.full((16, CHANNELS, 6, 6), -torch.inf)
    x[0, 0, 1, 1] = x[0, 0, 0, 1] = torch.nan
    x[1, 1, 2:] = torch.inf
    y, places = F.max_pool2d(x, 3, 1, padding, return_indices=True)
    room, sides = Room(), y.shape[2:]
    array = blocked(room, x, border=0.0)
    out = room.array(1, CHANNELS, *(side + 2 for side in sides), 16)
    taps = np.full((CHANNELS, *sides, 16), 99, np.int8)
    pool.maximum(
        0, CHANNELS, array.ctypes.data, out.ctypes.data, taps.ctypes.data, 6, 6, 3, 1,
        padding, *sides,
    )  # fmt: skip
    torch.testing.assert_close(images(out), y, rtol=0, atol=0, equal_nan=True)
    chosen = torch.from_numpy(taps.transpose(3, 0, 1, 2).copy()).long()
    h = torch.arange(sides[0]).view(-1, 1) - padding + chosen // 3
    w = torch.arange(sides[1]) - padding + chosen % 3
    right = torch.equal(h * 6 + w, places)
    # of -inf alone torch names no first; NaN is the last one that it saw
    ordinary = y.isfinite() | (y == torch.inf)
    assert right or torch.equal((h * 6 + w)[ordinary], places[ordinary])


@pytest.mark.parametrize("window", [w[:2] for w in WINDOWS])
@pytest.mark.parametrize("size", SIZES)
def test_average(window: tuple[int, int], size: tuple[int, int]) -> None:
    x = values("random", size).requires_grad_()
    y = F.avg_pool2d(x, *window)
    grad = torch.randn_like(y)
    y.backward(grad)
    room, groups = Room(), 2
    array = blocked(room, x.detach(), border=np.nan)
    out = room.array(groups, CHANNELS, y.shape[2] + 2, y.shape[3] + 2, 16, fill=5.0)
    sizes = *size, *window, *y.shape[2:]
    tasks = groups * CHANNELS
    in_parts(pool.average, tasks, array.ctypes.data, out.ctypes.data, *sizes)
    torch.testing.assert_close(images(out), y)
    assert border_is(out, 5)
    step, back = blocked(room, grad, border=np.nan), room.array(*array.shape, fill=5.0)
    in_parts(pool.average_backward, tasks, step.ctypes.data, back.ctypes.data, *sizes)
    torch.testing.assert_close(images(back), x.grad)
    assert border_is(back, 5)
    room.check()


@pytest.mark.parametrize("batch", [1, 9, 16, 17, 32])
@pytest.mark.parametrize("size", SIZES)
def test_mean(batch: int, size: tuple[int, int]) -> None:
    x = values("random", size)
    room, groups = Room(), -(-batch // 16)
    array = blocked(room, x[: 16 * groups], border=np.nan)
    out, tasks = room.array(batch, CHANNELS), groups * CHANNELS
    sizes = batch, CHANNELS, *size
    in_parts(pool.mean, tasks, array.ctypes.data, out.ctypes.data, *sizes)
    torch.testing.assert_close(torch.from_numpy(out), x[:batch].mean((2, 3)))
    grad = torch.randn(batch, CHANNELS)
    step, back = room.copy(grad.numpy()), room.array(*array.shape, fill=5.0)
    in_parts(pool.mean_backward, tasks, step.ctypes.data, back.ctypes.data, *sizes)
    expected = torch.zeros(16 * groups, CHANNELS, *size)
    expected[:batch] = grad[:, :, None, None] / (size[0] * size[1])
    torch.testing.assert_close(images(back), expected)
    assert border_is(back, 5)
    room.check()
