"""A convolution and the batch norm, residual and ReLU behind it, as one operation.

It computes what the two layers compute one after the other, by the same kernels, in one
node of autograd: in a narrow network, calls take as long as what they compute.

Backward passes need what went into the convolution and what came out of it. What went
in is not kept if it was such a result itself: the batch norm before is computed again,
from the output of its convolution, which is kept anyway. Between two convolutions that
is half of the memory, for one pass over it.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from sparsekit.execution import conv as convs
from sparsekit.execution import norm as norms
from sparsekit.execution.blocked import LANES, chunks
from sparsekit.execution.conv import SparseConv2d
from sparsekit.execution.layer import unwatched
from sparsekit.execution.norm import BlockedBatchNorm2d

_STRUCTURE = "col", "starts", "transposed_col", "transposed_starts", "permutation"


class Origin(NamedTuple):
    """What a result of `conv_norm` without residual is made of, to make it again."""

    y: Tensor  # of the convolution
    stats: Tensor
    weight: Tensor | None
    bias: Tensor | None
    batch: int
    epsilon: float
    relu: bool

    def again(self) -> Tensor:
        """The result, bit for bit: it takes one pass over y."""
        return norms.norm(
            self.y, None, self.weight, self.bias, self.stats, self.batch, self.epsilon,
            self.relu,
        )[0]  # fmt: skip


def conv_norm(
    conv: SparseConv2d,
    norm: BlockedBatchNorm2d,
    x: Tensor,
    batch: int,
    residual: Tensor | None = None,
    relu: bool = False,
    fork: bool = False,
    origin: Origin | None = None,
) -> tuple[Tensor, Tensor, Origin | None]:
    """norm(conv(x), batch, residual, relu); x for whoever else reads it; its origin.

    Args:
        x: blocked, of `batch` images.
        fork: whether anybody else does. His gradient is where that of the convolution
            then begins, so that no further pass over memory adds the two.
        origin: of x. Then not x is kept for the backward pass, but that.
    """
    if not _is_plain_training(conv, norm, x, batch, residual):
        return norm(conv(x), batch, residual, relu), x, None
    conv.build()
    own: Any = conv._parameters  # an attribute takes 0.7 us, each
    buffers: Any = conv._buffers
    others = norm._parameters
    call = _Call(
        tuple(buffers[name] for name in _STRUCTURE), conv.taps,
        conv.stride, batch, norm.eps, relu, fork and x.requires_grad, origin,
    )  # fmt: skip
    y, again, made = _ConvNorm.apply(
        x, own["values"], own["bias"], conv.probe, residual, others["weight"],
        others["bias"], norm, call,
    )  # fmt: skip
    return y, again if call.fork else x, made if torch.is_grad_enabled() else None


def _is_plain_training(
    conv: SparseConv2d,
    norm: BlockedBatchNorm2d,
    x: Tensor,
    batch: int,
    residual: Tensor | None,
) -> bool:
    """Whether nobody looks at what is between the layers, and all fits."""
    if type(conv) is not SparseConv2d or type(norm) is not BlockedBatchNorm2d:
        return False
    if not norm.training or norm.momentum is None or x.dim() != 5:
        return False
    groups, channels, height, width, lanes = x.shape
    outputs, inputs = conv.dense_shape[:2]
    height, width = (-(-(length - 2) // conv.stride) for length in (height, width))
    shape = groups, outputs, height + 2, width + 2, lanes
    mean, values = norm._buffers["running_mean"], conv._parameters.get("values")
    return (
        not _hooked(conv, norm)
        and unwatched(x)
        and x.is_cpu
        and x.is_contiguous()
        and (groups, channels, lanes) == (chunks(batch), inputs, LANES)
        and outputs == norm.num_features
        and batch * height * width > 1
        and mean is not None
        and values is not None
        and x.dtype == values.dtype == mean.dtype == torch.float32
        and (residual is None or residual.is_contiguous())
        and (residual is None or residual.shape == shape)
    )


def _hooked(*modules: nn.Module) -> bool:
    return bool(_has_any_global_hook()) or any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in modules
    )


class _Call(NamedTuple):
    """What a call is told beside the tensors that get gradients."""

    structure: tuple[Tensor, ...]
    taps: int
    stride: int
    batch: int
    epsilon: float
    relu: bool
    fork: bool
    origin: Origin | None


def _split(x: Tensor, origin: Origin | None) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Tensors to keep for x, and what else it is made of, if it is made again."""
    return ((x,), ()) if origin is None else (origin[:4], origin[4:])


class _ConvNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        x, values, bias, probe, residual, weight, shift, norm, call = inputs
        structure = *call.structure, call.taps, call.stride
        y = convs.conv(x, values, bias, probe, *structure)
        out, stats = norms.norm(
            y, residual, weight, shift, None, call.batch, call.epsilon, call.relu
        )
        norm.follow(stats, call.batch * (y.shape[2] - 2) * (y.shape[3] - 2))
        ctx.set_materialize_grads(False)
        made = None
        if residual is None:
            made = Origin(y, stats, weight, shift, call.batch, call.epsilon, call.relu)
        kept = out if call.relu and residual is not None else None
        tensors, ctx.rest = _split(x, call.origin)
        ctx.call = call._replace(origin=None)  # of which the graph frees the tensors
        ctx.save_for_backward(values, probe, y, kept, weight, shift, stats, *tensors)
        return out, x if call.fork else None, made

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, base: Tensor | None, _: Any) -> Any:
        if grad is None:
            return base, *[None] * 8
        call, need = ctx.call, ctx.needs_input_grad
        values, probe, y, out, weight, bias, stats, *source = ctx.saved_tensors
        grad_y, *others = norms.gradients(
            grad.contiguous(), y, out, weight, bias, stats, call.batch, call.epsilon,
            call.relu, True, (any(need[:4]), *need[4:7]),
        )  # fmt: skip
        if grad_y is None:
            return *[None] * 4, *others, None, None
        x = Origin(*source, *ctx.rest).again() if ctx.rest else source[0]
        inner = convs.gradients(
            grad_y, x, values, probe, call.structure, call.taps, call.stride, need[:4],
            None if base is None else base.contiguous(),
        )  # fmt: skip
        return *inner, *others, None, None
