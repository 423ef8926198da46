"""Linear layers in values mode: all three products touch the alive weights only."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekit.execution.kernels import linear as kernels
from sparsekit.execution.kernels import linear_structure as structure
from sparsekit.execution.layer import (
    SparseLayer,
    direct,
    own_parameter,
    require_unmoved,
    unwatched,
)

HALF = (torch.bfloat16, torch.float16)


class SparseLinear(SparseLayer):
    """y = x W^T + b, where only the alive weights of W exist and are multiplied.

    Float32 on the CPU runs on our kernels; float64, and GPUs, on torch's CSR products.
    Values in bfloat16 or float16 take half the memory and are multiplied in float32.
    y is feature-major: its shape is (..., out), but a feature of all samples lies side
    by side. A stack of such layers, with element-wise operations between, transposes
    nothing but its first input.

    While all weights exist, the layer is a dense one.

    Args:
        weight: (out, in).
        mask: bool, like weight; True = the weight exists.
        bias: (out,), or None.

    Raises:
        ValueError: for inputs of another width, type or device, with the fix.

    >>> layer = nn.Linear(4, 2, bias=False)
    >>> layer.weight.data = torch.tensor([[1.0, 0, 0, 2], [0, 3, 0, 0]])
    >>> sparse = SparseLinear.from_dense(layer)
    >>> sparse.values.tolist(), sparse.col.tolist()
    ([1.0, 2.0, 3.0], [0, 3, 1])
    >>> sparse(torch.tensor([[1.0, 10, 100, 1000]])).tolist()
    [[2001.0, 30.0]]
    """

    starts: Tensor
    transposed_starts: Tensor
    transposed_col: Tensor
    permutation: Tensor
    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, mask: Tensor, bias: Tensor | None = None):
        if weight.dim() != 2 or not weight.is_floating_point():
            raise ValueError(
                f"weight must be (out, in) and floating point, got "
                f"{tuple(weight.shape)} {weight.dtype}"
            )
        super().__init__(weight, mask)
        self.register_parameter("bias", own_parameter(bias))

    @classmethod
    def from_dense(
        cls, module: nn.Linear, mask: Tensor | None = None
    ) -> "SparseLinear":
        """A layer with the weights of `module` that `mask` keeps.

        Args:
            mask: bool, like the weight; default: the weights that are not 0.
        """
        weight = module.weight
        layer = cls(weight, weight != 0 if mask is None else mask, module.bias)
        return layer.train(module.training)

    def to_module(self) -> nn.Linear:
        """The dense layer that computes the same."""
        outputs, inputs = self.dense_shape
        module = nn.utils.skip_init(
            nn.Linear, inputs, outputs, bias=self.bias is not None,
            device=self.values.device, dtype=self.values.dtype,
        )  # fmt: skip
        with torch.no_grad():
            module.weight.copy_(self.to_dense())
            if self.bias is not None:
                module.bias.copy_(self.bias)
        module.weight.requires_grad_(self.values.requires_grad)
        return module.train(self.training)

    def _derive(self) -> None:
        derive(self)

    def forward(self, x: Tensor) -> Tensor:
        return product(self, x, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bias={self.bias is not None}"


def derive(layer: SparseLayer) -> None:
    """Registers what the products of a weight (out, in) need, 8 bytes a value."""
    starts, others, columns, order = _structure(
        layer.crow, layer.col, layer.dense_shape[1]
    )
    layer.hold(
        starts=starts, transposed_starts=others, transposed_col=columns,
        permutation=order,
    )  # fmt: skip


def product(layer: SparseLayer, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias with the weight of any layer that has called `derive`."""
    x = _checked(layer, x)
    kind = x.dtype
    values: Tensor = layer.values
    if values.dtype in HALF:
        x, values = x.float(), _unmoved(layer, values.float())
        bias = None if bias is None else bias.float()
    outputs, inputs = layer.dense_shape
    if layer.nnz == outputs * inputs:
        weight = _unmoved(layer, values.view(outputs, inputs))
        if layer.probe is not None:
            weight = weight + layer.probe
        return F.linear(x, weight, bias).to(kind)
    layer.build()
    flat = x.reshape(-1, inputs)
    run = _direct if unwatched(flat) else _linear
    y = run(
        flat, values, bias, layer.probe, layer.col, layer.starts,
        layer.transposed_starts, layer.transposed_col, layer.permutation,
    )  # fmt: skip
    return y.reshape(*x.shape[:-1], outputs).to(kind)


def _unmoved(layer: SparseLayer, weight: Tensor) -> Tensor:
    """What was made of a layer's values; its gradient is refused once those moved."""
    if weight.requires_grad and unwatched(weight):
        went = layer.nnz
        weight.register_hook(lambda _: require_unmoved(went, layer.nnz))
    return weight


def _checked(layer: SparseLayer, x: Tensor) -> Tensor:
    """x as the layer can take it; ValueError if it cannot."""
    inputs, values = layer.dense_shape[1], layer.values
    if x.dim() == 0 or x.shape[-1] != inputs:
        raise ValueError(
            f"{layer} takes {inputs} features, got {tuple(x.shape)}: check the layer "
            "before it"
        )
    if x.device != values.device:
        raise ValueError(f"{layer} is on {values.device}, its input on {x.device}")
    if x.dtype == values.dtype or (values.dtype in HALF and x.dtype == torch.float32):
        return x
    if x.is_floating_point() and torch.is_autocast_enabled(x.device.type):
        return x.to(torch.promote_types(values.dtype, torch.float32))
    raise ValueError(
        f"{layer} has values of {values.dtype}, got {x.dtype}: convert the input with "
        f"x.to({values.dtype})"
    )


# ---- the operations ------------------------------------------------------------------


@torch.library.custom_op("sparsekit::linear_structure", mutates_args=())
def _structure(
    crow: Tensor, col: Tensor, columns: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where blocks of rows start; starts, columns, permutation of the transpose."""
    weights = crow.cpu().numpy(), col.cpu().numpy(), columns
    arrays = structure.index_rows(*weights), *structure.index_columns(*weights)
    a, b, c, d = (torch.from_numpy(array).to(crow.device) for array in arrays)
    return a, b, c, d


@_structure.register_fake
def _(crow: Tensor, col: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    starts, transposed = structure.shapes_of_starts(len(col), len(crow) - 1, columns)
    empty = torch.empty_like(col)
    return crow.new_empty(starts), crow.new_empty(transposed), empty, col.clone()


def linear(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    probe: Tensor | None,
    col: Tensor,
    starts: Tensor,
    transposed_starts: Tensor,
    transposed_col: Tensor,
    permutation: Tensor,
) -> Tensor:
    """[B, in] -> [B, out], feature-major; probe's gradient is the dense weight's."""
    y = _feature_major(x, starts.shape[1])
    if not _ours(x):
        csr = _csr(values, col, starts, x.shape[1])
        y.copy_(torch.sparse.mm(csr, x.t().contiguous()).t())
        return y if bias is None else y.add_(bias)
    if x.numel() == 0:
        return y.zero_() if bias is None else y.copy_(bias.expand_as(y))
    kernels.multiply(
        _numpy(x), _numpy(values), _numpy(starts), _numpy(col),
        None if bias is None else _numpy(bias), _numpy(y),
    )  # fmt: skip
    return y


_linear = torch.library.custom_op("sparsekit::linear", linear, mutates_args=())


@_linear.register_fake
def _(x: Tensor, *args: Any) -> Tensor:
    return _feature_major(x, args[4].shape[1])


def input_gradient(
    grad: Tensor,
    values: Tensor,
    col: Tensor,
    starts: Tensor,
    transposed_starts: Tensor,
    transposed_col: Tensor,
    permutation: Tensor,
    columns: int,
) -> Tensor:
    """[B, out] -> [B, in], feature-major."""
    out = _feature_major(grad, columns)
    if not _ours(grad):
        csr = _csr(values, col, starts, columns)
        return out.copy_(torch.sparse.mm(csr.t(), grad.t().contiguous()).t())
    if out.numel() == 0 or grad.numel() == 0:
        return out.zero_()
    kernels.multiply_transposed(
        _numpy(grad), _numpy(values), _numpy(transposed_starts),
        _numpy(transposed_col), _numpy(permutation), grad.shape[1], _numpy(out),
    )  # fmt: skip
    return out


_input_gradient = torch.library.custom_op(
    "sparsekit::linear_input_gradient", input_gradient, mutates_args=()
)


@_input_gradient.register_fake
def _(grad: Tensor, *args: Any) -> Tensor:
    return _feature_major(grad, args[6])


def weight_gradient(grad: Tensor, x: Tensor, col: Tensor, starts: Tensor) -> Tensor:
    """[B, out], [B, in] -> (nnz,)"""
    out = x.new_empty(len(col))
    if out.numel() == 0 or len(x) == 0:
        return out.zero_()
    if not _ours(x):
        csr = _csr(torch.zeros_like(out), col, starts, x.shape[1])
        dense = torch.sparse.sampled_addmm(csr, grad.t().contiguous(), x.contiguous())
        return dense.values()
    kernels.weight_gradient(
        _numpy(grad), _numpy(x), _numpy(starts), _numpy(col), _numpy(out)
    )
    return out


_weight_gradient = torch.library.custom_op(
    "sparsekit::linear_weight_gradient", weight_gradient, mutates_args=()
)


@_weight_gradient.register_fake
def _(grad: Tensor, x: Tensor, col: Tensor, starts: Tensor) -> Tensor:
    return x.new_empty(len(col))


def _feature_major(x: Tensor, features: int) -> Tensor:
    return x.new_empty(features, x.shape[0]).t()


def _ours(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu"


def _numpy(x: Tensor) -> Any:
    return x.detach().numpy()


def _csr(values: Tensor, col: Tensor, starts: Tensor, columns: int) -> Tensor:
    crow = torch.cat((starts[0], starts[-1, -1:]))
    shape = (starts.shape[1], columns)
    return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, _, _, *structure = inputs
    ctx.save_for_backward(x, values, *structure)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, col, starts, *transposed = ctx.saved_tensors
    need_x, need_values, need_bias, need_probe = ctx.needs_input_grad[:4]
    plain = unwatched(grad) and not torch.is_grad_enabled()  # no second derivative
    if plain:
        require_unmoved(len(col), len(values))
    grads: list[Tensor | None] = [None] * 9
    if need_x:
        towards_x: Any = input_gradient if plain else _input_gradient
        grads[0] = towards_x(grad, values, col, starts, *transposed, x.shape[1])
    if need_values:
        towards_values: Any = weight_gradient if plain else _weight_gradient
        grads[1] = towards_values(grad, x, col, starts)
    if need_bias:
        grads[2] = grad.sum(0)
    if need_probe:
        grads[3] = grad.t() @ x
    return tuple(grads)


_linear.register_autograd(_backward, setup_context=_keep)
_direct = direct(linear, _keep, _backward)
