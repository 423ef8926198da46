"""What is known of the tensors between a network's layers, channel by channel.

`Value` says which units of which layers a tensor's channels are, and which of them are
constant. `Layer` is a layer whose sizes may change. `RULES` says what operations that
act on each channel by itself do to a value.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

NAN = float("nan")  # a channel that varies


@dataclass(frozen=True)
class Value:
    """What is known of a tensor.

    Attributes:
        units: (C,) int64, the unit that each channel is an output of.
        constant: (C,) float64, what a channel always and everywhere is, NaN if it
            varies.
        image: channels are dimension 1 of 4; else they are the last dimension.
        spread: of a flattened tensor whose sizes are not known: "repeat" if each
            channel stands for several neighbours, "tile" if all channels come again and
            again, "" if channels are channels.
    """

    units: Tensor
    constant: Tensor
    image: bool
    spread: str = ""

    def of_size(self, n: int) -> "Value | None":
        """With n channels, if that is possible."""
        times, rest = divmod(n, len(self.units))
        if rest or (times != 1 and not self.spread):
            return None
        if self.spread == "repeat":
            units = self.units.repeat_interleave(times)
            return Value(units, self.constant.repeat_interleave(times), self.image)
        return Value(self.units.repeat(times), self.constant.repeat(times), self.image)

    def with_constant(self, constant: Tensor) -> "Value":
        """Infinities count as varying: they cannot be folded."""
        finite = torch.where(constant.isfinite(), constant, NAN)
        return replace(self, constant=finite)


@dataclass
class Layer:
    """A layer whose sizes may change.

    Attributes:
        units: (out,) of its outputs. A batch norm's are those of its input.
        alive: (out, in / groups) bool, which inputs an output reads, in any position
            of the kernel. None for a layer that mixes nothing.
        inputs: what is known of the input, one entry a call.
        constant: (out,) of the outputs, NaN too if calls differ.
    """

    name: str
    module: Any
    units: Tensor
    alive: Tensor | None = None
    inputs: list[Value] = field(default_factory=list)
    constant: Tensor | None = None

    @property
    def groups(self) -> int:
        return getattr(self.module, "groups", 1)

    def known(self) -> Tensor:
        """(in,): what each input adds as a constant, NaN if it may not be folded."""
        known, *others = (self._known(value) for value in self.inputs)
        for other in others:  # there is one bias for all calls
            known = torch.where(known == other, known, NAN)
        return known

    def _known(self, value: Value) -> Tensor:
        """A constant other than 0 is not constant beside zeros of the padding."""
        if pads_with_zeros(self.module):
            return torch.where(value.constant == 0, 0.0, NAN)
        return value.constant

    def call(self, value: Value) -> Tensor:
        """Notes a call. Returns (out,): what each output is, NaN if it varies."""
        self.inputs.append(value)
        if self.alive is None:
            constant = self._norm(value.constant)
        else:
            known = self._known(value)
            groups = known.isnan().view(self.groups, 1, -1)
            alive = self.alive.view(self.groups, -1, self.alive.shape[1])
            varies = (alive & groups).any(dim=2).flatten()
            constant = torch.where(varies, NAN, self.contribution(known))
            if self.module.bias is not None:
                constant = constant + exact(self.module.bias)
        if self.constant is None:
            self.constant = constant
        else:
            self.constant = torch.where(self.constant == constant, constant, NAN)
        return constant

    def contribution(self, known: Tensor) -> Tensor:
        """(out,) float64: the sum of what inputs with a known constant add."""
        assert self.alive is not None
        out, width = self.alive.shape
        known = known.nan_to_num()
        sums = known.new_zeros(out)
        if not bool(known.any()):
            return sums
        per_group = out // self.groups
        for group, constants in enumerate(known.view(self.groups, width)):
            rows = slice(group * per_group, (group + 1) * per_group)
            columns = constants.nonzero().flatten()
            if len(columns):
                weight = exact(self.module.weight[rows, columns])
                weight = weight.reshape(per_group, len(columns), -1).sum(dim=2)
                sums[rows] = weight @ constants[columns]
        return sums

    def _norm(self, constant: Tensor) -> Tensor:
        """Batch norm of a constant, by the running statistics if there are any."""
        module = self.module
        if module.running_mean is None:
            result = torch.where(constant.isnan(), constant, 0.0)
        else:
            scale = (exact(module.running_var) + module.eps).rsqrt()
            result = (constant - exact(module.running_mean)) * scale
        if module.weight is not None:
            weight = exact(module.weight)
            result = torch.where(weight == 0, 0.0, result * weight)
            result += exact(module.bias)
        return result


def exact(tensor: Tensor) -> Tensor:
    """In float64, on the CPU, where some GPUs have none."""
    return tensor.detach().cpu().double()


def pads_with_zeros(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or module.padding_mode != "zeros":
        return False
    if isinstance(module.padding, str):
        return module.padding == "same" and max(module.kernel_size) > 1
    return max(module.padding) > 0


# ---- operations that act on each channel by itself -----------------------------------

ELEMENTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU,
    nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh,
    nn.Softplus, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink,
)  # fmt: skip
SAME_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout)
POOLING_MODULES = (
    nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.Upsample,
)  # fmt: skip
ELEMENTWISE = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish,
    F.sigmoid, F.tanh, F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus, F.logsigmoid,
    torch.relu, torch.sigmoid, torch.tanh, torch.clamp, torch.neg, torch.abs,
    operator.neg, "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "clamp",
    "clamp_", "neg", "abs",
}  # fmt: skip
SAME = {"contiguous", "detach", "clone", F.dropout, F.dropout2d}
POOLING = {
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
    F.interpolate,
}  # fmt: skip
PAIRS: dict[Any, Callable[[Any, Any], Any]] = {
    operator.add: operator.add, operator.iadd: operator.add, torch.add: operator.add,
    "add": operator.add, "add_": operator.add,
    operator.sub: operator.sub, operator.isub: operator.sub, torch.sub: operator.sub,
    "sub": operator.sub, "sub_": operator.sub,
    operator.mul: operator.mul, operator.imul: operator.mul, torch.mul: operator.mul,
    "mul": operator.mul, "mul_": operator.mul,
    operator.truediv: operator.truediv, torch.div: operator.truediv,
    "div": operator.truediv,
}  # fmt: skip
FLATTEN = {torch.flatten, "flatten", "view", "reshape"}


def of_module(module: nn.Module, value: Value) -> Value | None:
    """What a module without weights makes of a value; None if that is not known."""
    if isinstance(module, ELEMENTWISE_MODULES):
        return _elementwise(module, value)
    if isinstance(module, SAME_MODULES):
        return value
    if isinstance(module, nn.Flatten):
        whole = (module.start_dim, module.end_dim) == (1, -1)
        return _flattened(value) if whole else None
    if isinstance(module, POOLING_MODULES) and value.image:
        if getattr(module, "return_indices", False):
            return None
        padded = isinstance(module, nn.AvgPool2d) and module.padding not in (0, (0, 0))
        return _beside_zeros(value) if padded else value
    return None


def of_function(node: fx.Node, value: Value) -> Value | None:
    """What a function or method of one tensor makes of it; None if not known."""
    target, rest = node.target, node.args[1:]
    if target in ELEMENTWISE and len(node.all_input_nodes) == 1:
        function = _method(target) if isinstance(target, str) else target
        return _elementwise(lambda c: function(c, *rest, **node.kwargs), value)
    if target in SAME:
        random = target in (F.dropout, F.dropout2d) and node.kwargs.get(
            "training", True
        )
        return None if random else value
    if target in FLATTEN:
        return _flattened(value) if _flattens(node) else None
    if target in POOLING and value.image and not node.kwargs.get("return_indices"):
        padded = target is F.avg_pool2d and (len(rest) > 2 or "padding" in node.kwargs)
        return _beside_zeros(value) if padded else value
    if target in (torch.mean, "mean") and value.image:
        dims = rest[0] if rest else node.kwargs.get("dim")
        if isinstance(dims, list | tuple) and sorted(dims) in ([2, 3], [-2, -1]):
            keeps = rest[1] if len(rest) > 1 else node.kwargs.get("keepdim", False)
            return replace(value, image=bool(keeps))
    return None


def of_pair(node: fx.Node, a: Value | float, b: Value | float) -> Tensor:
    """(C,): what a sum or product of two values, or of a value and a number, is."""
    function = PAIRS[node.target]
    x = a.constant if isinstance(a, Value) else torch.tensor(float(a)).double()
    y = b.constant if isinstance(b, Value) else torch.tensor(float(b)).double()
    result = function(x, y)
    if function is operator.mul:
        result = torch.where((x == 0) | (y == 0), 0.0, result)
    return result


def _elementwise(function: Callable[[Tensor], Tensor], value: Value) -> Value:
    result = function(value.constant.clone())
    return value.with_constant(torch.where(value.constant.isnan(), NAN, result))


def _method(name: str) -> Callable[..., Tensor]:
    return lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)


def _beside_zeros(value: Value) -> Value:
    return value.with_constant(torch.where(value.constant == 0, 0.0, NAN))


def _flattened(value: Value) -> Value:
    if value.spread:
        return value
    return replace(value, image=False, spread="repeat" if value.image else "tile")


def _flattens(node: fx.Node) -> bool:
    """x.flatten(1), or x.view(batch, -1) with the batch read off a tensor."""
    if node.target in (torch.flatten, "flatten"):
        return (node.args[1:], node.kwargs) in (((1,), {}), ((), {"start_dim": 1}))
    shape = node.args[1:]
    return len(shape) == 2 and bool(shape[1] == -1) and is_batch_size(shape[0])


def is_batch_size(node: Any) -> bool:
    """x.size(0) or x.shape[0]."""
    if not isinstance(node, fx.Node):
        return False
    if node.target == "size":
        return bool(node.args[1:] == (0,))
    if node.target is not operator.getitem or node.args[1] != 0:
        return False
    source = node.args[0]
    return isinstance(source, fx.Node) and reads_shape(source)


def reads_shape(node: fx.Node) -> bool:
    """x.shape, x.size(...) and the like: no element of x is read."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    attributes = ("shape", "device", "dtype", "ndim")
    return node.target is getattr and node.args[1] in attributes


# ---- changes in place ----------------------------------------------------------------


def in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether the first argument is changed."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if isinstance(node.target, str):
        return node.target.endswith("_") and not node.target.endswith("__")
    name = getattr(node.target, "__name__", "")
    if node.target is operator.setitem or name in ("iadd", "isub", "imul", "itruediv"):
        return True
    flag = node.kwargs.get("inplace", node.target in ELEMENTWISE and True in node.args)
    return bool(flag) or name.endswith("_")


def is_exclusive(node: fx.Node, module_of: Callable[[fx.Node], Any]) -> bool:
    """Whether nobody but its one user sees the memory of a node's result."""
    if sum(not reads_shape(user) for user in node.users) > 1:
        return False
    module = module_of(node)
    fresh = (
        not isinstance(module, (*SAME_MODULES, nn.Flatten))
        if module is not None
        else node.target in PAIRS or node.target in ELEMENTWISE | POOLING
    )
    if fresh and not in_place(node, module):
        return True
    return all(is_exclusive(source, module_of) for source in node.all_input_nodes[:1])
