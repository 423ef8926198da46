"""Batch norm of blocked tensors, with the residual and the ReLU that follow it."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekit.execution import blocked, threads
from sparsekit.execution.blocked import LANES, from_blocked, to_blocked
from sparsekit.execution.kernels import norm as kernels
from sparsekit.execution.layer import direct, unwatched


class BlockedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d that takes blocked tensors too; names and buffers are the same.

    y = relu((x - mean) / sqrt(variance + eps) * weight + bias + residual)

    One pass computes what three layers did. Images that do not exist count in no
    statistic.

    >>> norm = BlockedBatchNorm2d.from_dense(nn.BatchNorm2d(3))
    >>> x = torch.rand(20, 3, 5, 7)
    >>> y = norm(to_blocked(x), 20, relu=True)
    >>> torch.allclose(from_blocked(y, 20), F.relu(norm(x)), atol=1e-6)
    True
    """

    @classmethod
    def from_dense(cls, module: nn.BatchNorm2d) -> "BlockedBatchNorm2d":
        """The same layer: it shares parameters and buffers with `module`."""
        made = cls.__new__(cls)
        made.__dict__.update(module.__dict__)
        return made

    def forward(
        self,
        x: Tensor,
        batch: int | None = None,
        residual: Tensor | None = None,
        relu: bool = False,
    ) -> Tensor:
        """x: [N, C, H, W], or blocked with `batch`, its number of images.

        residual: like x. Raises ValueError as nn.BatchNorm2d does.
        """
        if x.dim() == 4:
            y = super().forward(x)
            y = y if residual is None else y + residual
            return F.relu(y) if relu else y
        blocked.require_blocked(x)
        if batch is None or blocked.chunks(batch) != x.shape[0]:
            raise ValueError(f"{tuple(x.shape)} does not hold batch={batch} images")
        if x.shape[1] != self.num_features:
            raise ValueError(f"{self} got {x.shape[1]} channels in {tuple(x.shape)}")
        if residual is not None and residual.shape != x.shape:  # broadcast
            y = from_blocked(self(x, batch), batch) + from_blocked(residual, batch)
            return to_blocked(F.relu(y) if relu else y)
        mean, variance = self.running_mean, self.running_var
        own = self.training or mean is None or variance is None
        count = batch * (x.shape[2] - 2) * (x.shape[3] - 2)
        if own and count == 1:
            raise ValueError(
                "batch norm needs more than one value a channel in training, got one "
                f"image of {tuple(x.shape[2:4])} with its border"
            )
        given = None if own else torch.stack([mean, variance])  # type: ignore[list-item]
        apply: Any = _direct if unwatched(x) else _norm
        y, stats = apply(
            x.contiguous(),
            None if residual is None else residual.contiguous(),
            self.weight,
            self.bias,
            given,
            batch,
            self.eps,
            relu,
        )
        if self.training and mean is not None:
            self.follow(stats, count)
        return y

    def follow(self, stats: Tensor, count: int) -> None:
        """Moves the running statistics towards those of a batch of `count` values."""
        buffers: Any = self._buffers  # an attribute takes 0.7 us, each
        running = buffers["running_mean"], buffers["running_var"]
        calls = buffers["num_batches_tracked"]
        bessel = count / max(count - 1, 1)
        plain = unwatched(stats) and running[0].dtype == torch.float32
        if self.momentum is not None and plain:
            addresses = map(_address, (stats, *running, calls))
            kernels.follow(*addresses, stats.shape[1], self.momentum, bessel)
            return
        with torch.no_grad():
            calls.add_(1)
            rate: Any = self.momentum
            if rate is None:
                rate = 1 / calls.double()
            for mean, new in zip(running, (stats[0], bessel * stats[1]), strict=True):
                mean.copy_(mean + rate * (new - mean))


def norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    given: Tensor | None,
    batch: int,
    epsilon: float,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """y, and (2, C) float64: mean and biased variance; `given` ones, or those of x."""
    sizes = _sizes(x)
    out = blocked.new(*sizes)
    stats = x.new_empty(2, sizes[1], dtype=torch.float64)
    if given is not None:
        stats.copy_(given)
    threads.run(
        kernels.forward, sizes[1], x.data_ptr(), _address(residual), out.data_ptr(),
        _address(weight), _address(bias), stats.data_ptr(), epsilon, given is None,
        relu, *sizes, _lanes(batch), nanoseconds=x.numel() / 5,
    )  # fmt: skip
    return out, stats


_norm = torch.library.custom_op(
    "sparsekit::norm", norm, mutates_args=(), device_types="cpu"
)


@_norm.register_fake
def _(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    stats = x.new_empty(2, x.shape[1], dtype=torch.float64)
    return torch.empty_like(x), stats


def norm_backward(
    grad: Tensor,
    out: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    batch: int,
    epsilon: float,
    relu: bool,
    training: bool,
    want_x: bool,
    want_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, residual, weight and bias; empty if not wanted.

    out: only where a residual was added before the ReLU; else the residual's gradient
    is `grad`, and none is made.
    """
    sizes = _sizes(x)
    grad_x = blocked.new(*sizes) if want_x else x.new_empty(0)
    grad_residual = blocked.new(*sizes) if want_residual else x.new_empty(0)
    grad_weight, grad_bias = x.new_empty(sizes[1]), x.new_empty(sizes[1])
    threads.run(
        kernels.backward, sizes[1], grad.data_ptr(), _address(out), x.data_ptr(),
        grad_x.data_ptr() if want_x else 0,
        grad_residual.data_ptr() if want_residual else 0,
        grad_weight.data_ptr(), grad_bias.data_ptr(), _address(weight),
        _address(bias), stats.data_ptr(), epsilon, relu, training, *sizes,
        _lanes(batch), nanoseconds=x.numel() / 3,
    )  # fmt: skip
    return grad_x, grad_residual, grad_weight, grad_bias


_norm_backward = torch.library.custom_op(
    "sparsekit::norm_backward",
    norm_backward,
    mutates_args=(),
    device_types="cpu",
)


@_norm_backward.register_fake
def _(
    grad: Tensor,
    out: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    batch: int,
    epsilon: float,
    relu: bool,
    training: bool,
    want_x: bool,
    want_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_x = torch.empty_like(x) if want_x else x.new_empty(0)
    grad_residual = torch.empty_like(x) if want_residual else x.new_empty(0)
    return grad_x, grad_residual, x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


def gradients(
    grad: Tensor,
    x: Tensor,
    out: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    batch: int,
    epsilon: float,
    relu: bool,
    training: bool,
    need: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Of x, residual, weight and bias, where they are needed.

    Args:
        out: result of the forward pass, if it added a residual and ended with ReLU.
    """
    need_x, need_residual, need_weight, need_bias = need
    plain = unwatched(grad) and not torch.is_grad_enabled()  # no second derivative
    towards: Any = norm_backward if plain else _norm_backward
    grad_x, grad_residual, grad_weight, grad_bias = towards(
        grad, out, x, weight, bias, stats, batch, epsilon, relu, training, need_x,
        need_residual and out is not None,
    )  # fmt: skip
    return (
        grad_x if need_x else None,
        (grad if out is None else grad_residual) if need_residual else None,
        grad_weight if need_weight else None,
        grad_bias if need_bias else None,
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, residual, weight, bias, given, ctx.batch, ctx.epsilon, ctx.relu = inputs
    out, stats = output
    kept = out if ctx.relu and residual is not None else None
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)
    ctx.training = given is None
    ctx.save_for_backward(x, kept, weight, bias, stats)


def _backward(
    ctx: Any, grad: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    x, out, weight, bias, stats = ctx.saved_tensors
    grads = gradients(
        grad.contiguous(), x, out, weight, bias, stats, ctx.batch, ctx.epsilon,
        ctx.relu, ctx.training, ctx.needs_input_grad[:4],
    )  # fmt: skip
    return *grads, *[None] * 4


_norm.register_autograd(_backward, setup_context=_keep)
_direct = direct(norm, _keep, _backward)


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    groups, channels, height, width, _ = x.shape
    return groups, channels, height - 2, width - 2


def _lanes(batch: int) -> int:
    """Images in the last chunk."""
    return (batch - 1) % LANES + 1


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
