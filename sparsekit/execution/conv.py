"""Convolutions in values mode: 3x3 and 1x1, on images or on the blocked layout."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from sparsekit.execution import blocked
from sparsekit.execution.blocked import LANES, from_blocked, to_blocked
from sparsekit.execution.kernels import conv as kernels
from sparsekit.execution.kernels import conv_structure
from sparsekit.execution.kernels.conv import Images, Rows
from sparsekit.execution.layer import (
    SparseLayer,
    direct,
    own_parameter,
    require_unmoved,
    unwatched,
)


class SparseConv2d(SparseLayer):
    """y = conv2d(x, W) + b, where only the alive weights of W exist and are multiplied.

    Kernels are 3x3 with padding 1 or 1x1 without, stride 1 or 2, groups 1, float32 on
    the CPU. x is [N, C, H, W], which is converted in and out of the blocked layout, or
    a blocked tensor [G, C, H + 2, W + 2, 16], see `sparsekit.execution.blocked`; y is
    of the same kind. Sixteen images cost as much as one.

    Args:
        weight: (O, C, 3, 3) or (O, C, 1, 1).
        mask: bool, like weight; True = the weight exists.
        bias: (O,), or None.
        stride: 1 or 2.

    Raises:
        ValueError: for any other convolution or input, with the fix.

    >>> dense = nn.Conv2d(3, 8, 3, padding=1)
    >>> layer = SparseConv2d.from_dense(dense, mask=torch.rand(8, 3, 3, 3) < 0.2)
    >>> layer(torch.rand(20, 3, 7, 7)).shape
    torch.Size([20, 8, 7, 7])
    """

    starts: Tensor
    transposed_col: Tensor
    transposed_starts: Tensor
    permutation: Tensor
    bias: nn.Parameter | None

    def __init__(
        self, weight: Tensor, mask: Tensor, bias: Tensor | None = None, stride: int = 1
    ):
        if tuple(weight.shape[2:]) not in ((3, 3), (1, 1)) or stride not in (1, 2):
            raise ValueError(
                "SparseConv2d takes 3x3 and 1x1 kernels with stride 1 or 2, got a "
                f"weight {tuple(weight.shape)} and stride {stride}; keep it dense"
            )
        if weight.dtype != torch.float32 or weight.device.type != "cpu":
            raise ValueError(
                "SparseConv2d computes in float32 on the CPU, got a weight of "
                f"{weight.dtype} on {weight.device}; call .float().cpu() first"
            )
        self.stride = stride
        super().__init__(weight, mask)
        self.register_parameter("bias", own_parameter(bias))

    @classmethod
    def from_dense(
        cls, module: nn.Conv2d, mask: Tensor | None = None
    ) -> "SparseConv2d":
        """A convolution with the weights of `module` that `mask` keeps.

        Args:
            mask: bool, like the weight; default: the weights that are not 0.

        Raises:
            ValueError: for convolutions that have no sparse form, with the reason.
        """
        problem = unsupported(module)
        if problem:
            raise ValueError(f"{module} has no sparse form: {problem}; keep it dense")
        weight = module.weight
        layer = cls(
            weight, weight != 0 if mask is None else mask, module.bias, module.stride[0]
        )
        return layer.train(module.training)

    def to_module(self) -> nn.Conv2d:
        """The dense convolution that computes the same."""
        outputs, inputs, side, _ = self.dense_shape
        module = nn.utils.skip_init(
            nn.Conv2d, inputs, outputs, side, self.stride, side // 2,
            bias=self.bias is not None,
        )  # fmt: skip
        with torch.no_grad():
            module.weight.copy_(self.to_dense())
            if self.bias is not None:
                module.bias.copy_(self.bias)
        module.weight.requires_grad_(self.values.requires_grad)
        return module.train(self.training)

    @property
    def taps(self) -> int:
        """Weights of a kernel: 9 or 1."""
        return math.prod(self.dense_shape[2:])

    def _derive(self) -> None:
        starts, columns, others, order = _structure(
            self.crow, self.col, self.taps, self.dense_shape[1], self.stride
        )
        self.hold(
            starts=starts, transposed_col=columns, transposed_starts=others,
            permutation=order,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        self._require(x)
        self.build()
        inside = x.contiguous() if x.dim() == 5 else to_blocked(x)
        run = _direct if unwatched(inside) else _conv
        y = run(
            inside, self.values, self.bias, self.probe, self.col, self.starts,
            self.transposed_col, self.transposed_starts, self.permutation,
            self.taps, self.stride,
        )  # fmt: skip
        return y if x.dim() == 5 else from_blocked(y, x.shape[0])

    def _require(self, x: Tensor) -> None:
        channels = self.dense_shape[1]
        if self.values.dtype != torch.float32 or self.values.device.type != "cpu":
            raise ValueError(
                f"{self} computes in float32 on the CPU, its values are "
                f"{self.values.dtype} on {self.values.device}: call .float().cpu()"
            )
        if x.dtype != torch.float32 or x.device.type != "cpu":
            raise ValueError(
                f"{self} computes in float32 on the CPU, got {x.dtype} on {x.device}: "
                "call .float().cpu()"
            )
        if x.dim() not in (4, 5) or (x.dim() == 5 and x.shape[4] != LANES):
            raise ValueError(
                f"{self} takes images [N, {channels}, H, W] or a blocked tensor "
                f"[G, {channels}, H + 2, W + 2, {LANES}], got {tuple(x.shape)}"
            )
        if x.shape[1] != channels:
            raise ValueError(
                f"{self} takes {channels} channels, got {x.shape[1]} in "
                f"{tuple(x.shape)}: check the layer before it"
            )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, stride={self.stride}"


def unsupported(module: nn.Conv2d) -> str | None:
    """Why a convolution has no sparse form; None if it has one."""
    side = module.kernel_size
    padding: Any = module.padding
    if padding == "same":
        padding = tuple(size // 2 for size in side)
    elif padding == "valid":
        padding = (0, 0)
    if side not in ((3, 3), (1, 1)):
        return f"kernels are 3x3 or 1x1, not {side}"
    half = max(side) // 2
    if padding != (half, half) or module.padding_mode != "zeros":
        return f"padding is {half} zeros, not {padding} {module.padding_mode}"
    if module.stride not in ((1, 1), (2, 2)):
        return f"stride is 1 or 2, not {module.stride}"
    if module.groups != 1 or module.dilation != (1, 1):
        return f"groups {module.groups} and dilation {module.dilation} are not 1"
    return None


# ---- the operations ------------------------------------------------------------------


@torch.library.custom_op(
    "sparsekit::conv_structure", mutates_args=(), device_types="cpu"
)
def _structure(
    crow: Tensor, col: Tensor, taps: int, channels: int, stride: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """starts; columns, starts and permutation of the transpose."""
    weights = crow.numpy(), col.numpy(), taps, channels
    arrays = (
        conv_structure.row_order(*weights),
        *conv_structure.column_order(*weights, stride),
    )
    starts, columns, transposed_starts, order = map(torch.from_numpy, arrays)
    return starts, columns, transposed_starts, order


@_structure.register_fake
def _(
    crow: Tensor, col: Tensor, taps: int, channels: int, stride: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = len(crow) - 1
    shapes = conv_structure.shapes_of_starts(len(col), rows, channels, taps, stride)
    starts, transposed = (crow.new_empty(shape) for shape in shapes)
    return starts, torch.empty_like(col), transposed, torch.empty_like(col)


def conv(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    probe: Tensor | None,
    col: Tensor,
    starts: Tensor,
    transposed_col: Tensor,
    transposed_starts: Tensor,
    permutation: Tensor,
    taps: int,
    stride: int,
) -> Tensor:
    """Blocked x -> blocked y; the gradient of `probe` is that of the dense weight."""
    images = _images(x)
    size = -(-images.height // stride), -(-images.width // stride)
    y = blocked.new(images.groups, starts.shape[2], *size)
    kernels.forward(
        images, values.data_ptr(), _rows(col, starts), y.data_ptr(), taps, stride,
        0 if bias is None else bias.data_ptr(),
    )  # fmt: skip
    return y


_conv = torch.library.custom_op(
    "sparsekit::conv", conv, mutates_args=(), device_types="cpu"
)


@_conv.register_fake
def _(x: Tensor, *args: Any) -> Tensor:
    starts, stride = args[4], args[9]
    groups, _, height, width, _ = x.shape
    size = (-(-(length - 2) // stride) + 2 for length in (height, width))
    return x.new_empty(groups, starts.shape[2], *size, LANES)


def input_gradient(
    grad: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    permutation: Tensor,
    height: int,
    width: int,
    taps: int,
    stride: int,
    base: Tensor | None = None,
) -> Tensor:
    """Blocked gradient of y -> that of x, plus `base`."""
    out = blocked.new(grad.shape[0], starts.shape[2], height, width)
    kernels.input_gradient(
        _images(grad), values.data_ptr(), _rows(columns, starts),
        permutation.data_ptr(), _images(out), taps, stride,
        0 if base is None else base.data_ptr(),
    )  # fmt: skip
    return out


_input_gradient = torch.library.custom_op(
    "sparsekit::conv_input_gradient",
    input_gradient,
    mutates_args=(),
    device_types="cpu",
)


@_input_gradient.register_fake
def _(grad: Tensor, *args: Any) -> Tensor:
    starts, height, width = args[2], args[4], args[5]
    size = starts.shape[2], height + 2, width + 2
    return grad.new_empty(grad.shape[0], *size, LANES)


def weight_gradient(
    x: Tensor, grad: Tensor, col: Tensor, starts: Tensor, taps: int, stride: int
) -> Tensor:
    out = x.new_empty(len(col))
    kernels.weight_gradient(
        _images(x), _images(grad), _rows(col, starts), out.data_ptr(), taps, stride
    )
    return out


_weight_gradient = torch.library.custom_op(
    "sparsekit::conv_weight_gradient",
    weight_gradient,
    mutates_args=(),
    device_types="cpu",
)


@_weight_gradient.register_fake
def _(
    x: Tensor, grad: Tensor, col: Tensor, starts: Tensor, taps: int, stride: int
) -> Tensor:
    return x.new_empty(len(col))


def _images(x: Tensor) -> Images:
    groups, channels, height, width, _ = x.shape
    return Images(x.data_ptr(), groups, channels, height - 2, width - 2)


def _rows(columns: Tensor, starts: Tensor) -> Rows:
    return Rows(columns.data_ptr(), starts.data_ptr(), len(columns), starts.shape)


def _dense_gradient(x: Tensor, grad: Tensor, probe: Any, stride: int) -> Tensor:
    """Of the whole weight, by one dense call; spare lanes have gradient 0."""
    images = x.shape[0] * LANES
    inputs, outputs = from_blocked(x, images), from_blocked(grad, images)
    shape, side = probe.shape, probe.shape[2]
    return conv2d_weight(inputs, shape, outputs, stride, side // 2)


def gradients(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    probe: Tensor | None,
    structure: Sequence[Tensor],
    taps: int,
    stride: int,
    need: Sequence[bool],
    base: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Of x, values, bias and probe, where they are needed.

    Args:
        base: gradient of x from elsewhere, which is added.
    """
    col, starts, *transposed = structure
    need_x, need_values, need_bias, need_probe = need
    plain = unwatched(grad) and not torch.is_grad_enabled()  # no second derivative
    if plain:
        require_unmoved(len(col), len(values))
    towards_x: Any = input_gradient if plain else _input_gradient
    towards_values: Any = weight_gradient if plain else _weight_gradient
    size = x.shape[2] - 2, x.shape[3] - 2, taps, stride
    grad_values = grad_x = None
    if need_values:
        grad_values = towards_values(x, grad, col, starts, taps, stride)
    if need_x:  # last: who reads it finds it in the caches
        grad_x = towards_x(grad, values, *transposed, *size, base)
    return (
        grad_x,
        grad_values,
        grad.sum((0, 2, 3, 4)) if need_bias else None,
        _dense_gradient(x, grad, probe, stride) if need_probe else None,
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, _, probe, *structure, ctx.taps, ctx.stride = inputs
    ctx.save_for_backward(x, values, probe, *structure)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, probe, *structure = ctx.saved_tensors
    grads = gradients(
        grad.contiguous(), x, values, probe, structure, ctx.taps, ctx.stride,
        ctx.needs_input_grad[:4],
    )  # fmt: skip
    return *grads, *[None] * 7


_conv.register_autograd(_backward, setup_context=_keep)
_direct = direct(conv, _keep, _backward)
