"""Pooling of blocked tensors: global mean, mean and maximum of windows."""

from typing import Any

import torch
from torch import Tensor

from sparsekit.execution import blocked, threads
from sparsekit.execution.kernels import pool as kernels


def global_mean(x: Tensor, batch: int) -> Tensor:
    """Blocked x of `batch` images -> [batch, C], the mean over all pixels."""
    return _mean(x.contiguous(), batch)


def max_pool(x: Tensor, side: int, stride: int, padding: int = 0) -> Tensor:
    """Blocked x -> blocked maximum of side x side windows; side at most 11."""
    return _maximum(x.contiguous(), side, stride, padding)[0]


def average_pool(x: Tensor, side: int, stride: int) -> Tensor:
    """Blocked x -> blocked mean of side x side windows, without padding."""
    return _average(x.contiguous(), side, stride)


def _inside(x: Tensor) -> tuple[int, int]:
    return x.shape[2] - 2, x.shape[3] - 2


def _pooled(x: Tensor, side: int, stride: int, padding: int) -> tuple[int, int]:
    height, width = ((n + 2 * padding - side) // stride + 1 for n in _inside(x))
    return height, width


# ---- global mean ---------------------------------------------------------------------


@torch.library.custom_op("sparsekit::global_mean", mutates_args=(), device_types="cpu")
def _mean(x: Tensor, batch: int) -> Tensor:
    groups, channels = x.shape[:2]
    out = x.new_empty(batch, channels)
    threads.run(
        kernels.mean, groups * channels, x.data_ptr(), out.data_ptr(), batch, channels,
        *_inside(x), nanoseconds=x.numel() / 8,
    )  # fmt: skip
    return out


@_mean.register_fake
def _(x: Tensor, batch: int) -> Tensor:
    return x.new_empty(batch, x.shape[1])


@torch.library.custom_op(
    "sparsekit::global_mean_backward", mutates_args=(), device_types="cpu"
)
def _mean_backward(grad: Tensor, height: int, width: int) -> Tensor:
    batch, channels = grad.shape
    out = blocked.new(blocked.chunks(batch), channels, height, width)
    threads.run(
        kernels.mean_backward, out.shape[0] * channels, grad.data_ptr(), out.data_ptr(),
        batch, channels, height, width, nanoseconds=out.numel() / 8,
    )  # fmt: skip
    return out


@_mean_backward.register_fake
def _(grad: Tensor, height: int, width: int) -> Tensor:
    groups, lanes = blocked.chunks(grad.shape[0]), blocked.LANES
    return grad.new_empty(groups, grad.shape[1], height + 2, width + 2, lanes)


def _keep_size(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.size = _inside(inputs[0])


def _mean_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _mean_backward(grad.contiguous(), *ctx.size), None


_mean.register_autograd(_mean_gradient, setup_context=_keep_size)


# ---- maximum -------------------------------------------------------------------------


@torch.library.custom_op("sparsekit::max_pool", mutates_args=(), device_types="cpu")
def _maximum(x: Tensor, side: int, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    groups, channels = x.shape[:2]
    size = _pooled(x, side, stride, padding)
    out = blocked.new(groups, channels, *size)
    places = x.new_empty(groups, channels, *size, blocked.LANES, dtype=torch.int8)
    threads.run(
        kernels.maximum, groups * channels, x.data_ptr(), out.data_ptr(),
        places.data_ptr(), *_inside(x), side, stride, padding, *size,
        nanoseconds=x.numel() / 2,
    )  # fmt: skip
    return out, places


@_maximum.register_fake
def _(x: Tensor, side: int, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    groups, channels, *_, lanes = x.shape
    height, width = _pooled(x, side, stride, padding)
    places = x.new_empty(groups, channels, height, width, lanes, dtype=torch.int8)
    return x.new_empty(groups, channels, height + 2, width + 2, lanes), places


@torch.library.custom_op(
    "sparsekit::max_pool_backward", mutates_args=(), device_types="cpu"
)
def _maximum_backward(
    grad: Tensor, places: Tensor, height: int, width: int, side: int, stride: int,
    padding: int,
) -> Tensor:  # fmt: skip
    groups, channels = grad.shape[:2]
    out = blocked.new(groups, channels, height, width)
    threads.run(
        kernels.maximum_backward, groups * channels, grad.data_ptr(), out.data_ptr(),
        places.data_ptr(), height, width, side, stride, padding, *_inside(grad),
        nanoseconds=out.numel() / 2,
    )  # fmt: skip
    return out


@_maximum_backward.register_fake
def _(
    grad: Tensor, places: Tensor, height: int, width: int, side: int, stride: int,
    padding: int,
) -> Tensor:  # fmt: skip
    groups, channels, *_, lanes = grad.shape
    return grad.new_empty(groups, channels, height + 2, width + 2, lanes)


def _keep_places(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, *ctx.window = inputs
    ctx.size = _inside(x)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _maximum_gradient(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    (places,) = ctx.saved_tensors
    out = _maximum_backward(grad.contiguous(), places, *ctx.size, *ctx.window)
    return out, None, None, None


_maximum.register_autograd(_maximum_gradient, setup_context=_keep_places)


# ---- average -------------------------------------------------------------------------


@torch.library.custom_op("sparsekit::average_pool", mutates_args=(), device_types="cpu")
def _average(x: Tensor, side: int, stride: int) -> Tensor:
    groups, channels = x.shape[:2]
    size = _pooled(x, side, stride, 0)
    out = blocked.new(groups, channels, *size)
    threads.run(
        kernels.average, groups * channels, x.data_ptr(), out.data_ptr(), *_inside(x),
        side, stride, *size, nanoseconds=x.numel() / 4,
    )  # fmt: skip
    return out


@_average.register_fake
def _(x: Tensor, side: int, stride: int) -> Tensor:
    groups, channels, *_, lanes = x.shape
    height, width = _pooled(x, side, stride, 0)
    return x.new_empty(groups, channels, height + 2, width + 2, lanes)


@torch.library.custom_op(
    "sparsekit::average_pool_backward", mutates_args=(), device_types="cpu"
)
def _average_backward(
    grad: Tensor, height: int, width: int, side: int, stride: int
) -> Tensor:
    groups, channels = grad.shape[:2]
    out = blocked.new(groups, channels, height, width)
    threads.run(
        kernels.average_backward, groups * channels, grad.data_ptr(), out.data_ptr(),
        height, width, side, stride, *_inside(grad), nanoseconds=out.numel() / 4,
    )  # fmt: skip
    return out


@_average_backward.register_fake
def _(grad: Tensor, height: int, width: int, side: int, stride: int) -> Tensor:
    groups, channels, *_, lanes = grad.shape
    return grad.new_empty(groups, channels, height + 2, width + 2, lanes)


def _keep_window(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, ctx.side, ctx.stride = inputs
    ctx.size = _inside(x)


def _average_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    out = _average_backward(grad.contiguous(), *ctx.size, ctx.side, ctx.stride)
    return out, None, None


_average.register_autograd(_average_gradient, setup_context=_keep_window)
