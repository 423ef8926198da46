"""A traced network is rewritten, so that activations stay blocked where they can.

A value of the new graph is an ordinary tensor, a blocked one, or both; who reads it
gets the form he knows. A convolution waits for the batch norm that follows it, and that
for the addition and the ReLU behind it, and takes them over. What is not known here
reads ordinary tensors.

Blocked tensors are never changed in place. After a call that changed its first
argument, all names of that argument mean the call's result.
"""

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparsekit.execution.blocked import from_blocked, to_blocked
from sparsekit.execution.calls import (
    called,
    in_place,
    is_global_mean,
    keeps_pixels,
    plain,
    window,
)
from sparsekit.execution.conv import SparseConv2d
from sparsekit.execution.conv_norm import conv_norm
from sparsekit.execution.pool import global_mean

_RELU = (F.relu, F.relu_, torch.relu, torch.relu_)
_ADD = (operator.add, operator.iadd, torch.add)
# f(0) = 0, so that a border stays zero; plain torch operations on blocked tensors.
_KEEP_ZERO = (
    F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.silu, F.gelu, F.mish, F.hardswish,
    F.tanh, torch.tanh,
)  # fmt: skip
KEEP_ZERO_MODULES = (
    nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.SiLU, nn.GELU, nn.Mish,
    nn.Hardswish, nn.Tanh,
)  # fmt: skip


@dataclass
class _Conv:
    """A convolution that was not written yet: a batch norm may join it."""

    target: str
    x: fx.Node
    source: "_Value"  # whose blocked form x is


@dataclass
class _Norm:
    """A batch norm that was not written yet: an addition or ReLU may join it."""

    target: str
    x: "fx.Node | _Conv"
    residual: fx.Node | None = None


@dataclass
class _Value:
    """What a node of the old graph is in the new one; aliases share it."""

    dense: Any = None
    blocked: fx.Node | None = None
    batch: fx.Node | None = None  # number of images, of a blocked one
    conv: _Conv | None = None
    norm: _Norm | None = None
    readers: int = 0  # calls that read it, but for those that `fork` has served
    origin: fx.Node | None = None  # what `conv_norm` says the blocked form is made of


class Rewriting:
    """Writes the new graph, from the old one's nodes in order."""

    def __init__(self, model: nn.Module, old: fx.Graph):
        self.modules = dict(model.named_modules())
        self.old, self.new = old, fx.Graph()
        self.values: dict[fx.Node, _Value] = {}

    def run(self) -> fx.Graph:
        for node in self.old.nodes:
            value = self._blocked(node)
            if value is None:
                value = _Value(self.new.node_copy(node, self._dense))
                if in_place(node, self.modules):
                    self._forget_copies()
            value.readers += len(node.users)
            self.values[node] = value
            if in_place(node, self.modules):
                self._rename(node, value)
        self.new.lint()
        return self.new

    def _forget_copies(self) -> None:
        """A view of an ordinary tensor may have changed: it is what is true now."""
        for value in self.values.values():
            if value.dense is not None:
                value.blocked = value.origin = None

    def _rename(self, node: fx.Node, result: "_Value") -> None:
        """From now on, all names of what `node` changed mean its result."""
        changed = self._first(node)
        for name, value in self.values.items():
            if value is changed and name is not node:
                self.values[name] = result
                result.readers += sum(user not in self.values for user in name.users)

    def _first(self, node: fx.Node) -> "_Value":
        """What the first argument of a call is."""
        argument: Any = node.args[0]
        return self.values[argument]

    # ---- forms of a value --------------------------------------------------------

    def _dense(self, node: fx.Node) -> Any:
        value = self.values[node]
        if value.dense is None:
            x = self._written(value)
            value.dense = self.new.call_function(from_blocked, (x, value.batch))
        return value.dense

    def _written(self, value: _Value) -> fx.Node:
        """The blocked form; what waited is written now."""
        if value.conv is not None:
            conv, value.conv = value.conv, None
            value.blocked = self.new.call_module(conv.target, (conv.x,))
        if value.norm is not None:
            norm, value.norm = value.norm, None
            value.blocked, value.origin = self._write(norm, value, relu=False)
        if value.blocked is None:
            value.batch = self.new.call_method("size", (value.dense, 0))
            value.blocked = self.new.call_function(to_blocked, (value.dense,))
        return value.blocked

    def _write(
        self, norm: _Norm, value: _Value, relu: bool
    ) -> tuple[fx.Node, fx.Node | None]:
        """The result, and its origin if it has one."""
        rest = value.batch, norm.residual, relu
        if isinstance(norm.x, fx.Node):
            return self.new.call_module(norm.target, (norm.x, *rest)), None
        x, source = norm.x.x, norm.x.source
        modules = (self.new.get_attr(name) for name in (norm.x.target, norm.target))
        fork = source.readers > 1 and source.blocked is x
        source.readers -= 1
        origin = source.origin if source.blocked is x else None
        three = self.new.call_function(conv_norm, (*modules, x, *rest, fork, origin))
        y, again, made = (
            self.new.call_function(operator.getitem, (three, k)) for k in range(3)
        )
        if fork:  # from here on, others read the second
            source.blocked = again
        return y, made

    def _is_blocked(self, node: Any) -> bool:
        value = self.values.get(node) if isinstance(node, fx.Node) else None
        return value is not None and bool(value.blocked or value.conv or value.norm)

    # ---- one call ----------------------------------------------------------------

    def _blocked(self, node: fx.Node) -> _Value | None:
        """Writes a call on blocked tensors; None if it is none."""
        if node.op not in ("call_module", "call_function", "call_method"):
            return None
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            if isinstance(module, nn.Identity) and plain(node, 1):
                self._first(node).readers -= 1
                return self._first(node)
            if isinstance(module, SparseConv2d) and plain(node, 1):
                return self._conv(node)
        if not any(self._is_blocked(argument) for argument in node.all_input_nodes):
            return None
        for rule in (
            self._batch_norm, self._relu, self._sum, self._elementwise, self._pool,
            self._concatenation, self._size,
        ):  # fmt: skip
            value = rule(node)
            if value is not None:
                return value
        return None

    def _conv(self, node: fx.Node) -> _Value:
        value = self._first(node)
        x = self._written(value)
        return _Value(batch=value.batch, conv=_Conv(str(node.target), x, value))

    def _batch_norm(self, node: fx.Node) -> _Value | None:
        if type(self._module(node)) is not nn.BatchNorm2d or not plain(node, 1):
            return None
        value = self._first(node)
        if value.conv is not None and value.readers == 1:
            conv, value.conv = value.conv, None
            norm = _Norm(str(node.target), conv)
        else:
            norm = _Norm(str(node.target), self._written(value))
        return _Value(batch=value.batch, norm=norm)

    def _relu(self, node: fx.Node) -> _Value | None:
        is_relu = type(self._module(node)) is nn.ReLU or called(
            node, _RELU, ("relu", "relu_")
        )
        if not is_relu or not plain(node, 1, ("inplace",)):
            return None
        value = self._first(node)
        changes = in_place(node, self.modules)
        if value.norm is not None and (value.readers == 1 or changes):
            norm, value.norm = value.norm, None
            y, origin = self._write(norm, value, relu=True)
            return _Value(blocked=y, batch=value.batch, origin=origin)
        y = self.new.call_function(torch.relu, (self._written(value),))
        return _Value(blocked=y, batch=value.batch)

    def _sum(self, node: fx.Node) -> _Value | None:
        pair = self._pair(node, _ADD, ("add", "add_"))
        if pair is None:
            return None
        a, b = pair
        if a is not b:
            for one, other in ((b, a), (a, b)):  # the later norm takes the other
                norm = one.norm
                if norm and norm.residual is None and one.readers == 1:
                    one.norm, norm.residual = None, self._written(other)
                    return _Value(batch=one.batch, norm=norm)
        args = (self._written(a), self._written(b), a.batch)
        return _Value(blocked=self.new.call_function(add, args), batch=a.batch)

    def _pair(
        self, node: fx.Node, functions: Iterable[Any], methods: Iterable[str]
    ) -> tuple[_Value, _Value] | None:
        """Both arguments of such a call, if they hold blocked images of one batch."""
        if not called(node, functions, methods) or not plain(node, 2):
            return None
        if not all(self._is_blocked(argument) for argument in node.args):
            return None
        arguments: Any = node.args
        a, b = (self.values[argument] for argument in arguments)
        return (a, b) if a.batch is b.batch else None

    def _elementwise(self, node: fx.Node) -> _Value | None:
        module = self._module(node)
        known = type(module) in KEEP_ZERO_MODULES or called(node, _KEEP_ZERO, ("tanh",))
        if not known or not self._is_blocked(node.args[0]):
            return None
        if any(isinstance(argument, fx.Node) for argument in node.args[1:]):
            return None
        value = self._first(node)
        args = (self._written(value), *node.args[1:])
        kwargs = {k: v for k, v in node.kwargs.items() if k != "inplace"}
        y = self.new.create_node(node.op, node.target, args, kwargs)
        return _Value(blocked=y, batch=value.batch)

    def _pool(self, node: fx.Node) -> _Value | None:
        if not node.args or not self._is_blocked(node.args[0]):
            return None
        value, module = self._first(node), self._module(node)
        if is_global_mean(node, module):
            args = (self._written(value), value.batch)
            y = self.new.call_function(global_mean, args)
            if keeps_pixels(node):
                y = self.new.call_method("view", (y, value.batch, -1, 1, 1))
            return _Value(dense=y)
        pooling = window(node, module)
        if pooling is None:
            return None
        function, *options = pooling
        y = self.new.call_function(function, (self._written(value), *options))
        return _Value(blocked=y, batch=value.batch)

    def _concatenation(self, node: fx.Node) -> _Value | None:
        if not called(node, (torch.cat, torch.concat), ()) or not node.args:
            return None
        parts: Any = node.args[0]
        rest = node.args[1:]
        dim = rest[0] if rest else node.kwargs.get("dim", 0)
        if dim not in (1, -3) or not all(self._is_blocked(part) for part in parts):
            return None
        values = [self.values[part] for part in parts]
        if any(value.batch is not values[0].batch for value in values):
            return None
        inside = [self._written(value) for value in values]
        y = self.new.call_function(torch.cat, (inside, 1))
        return _Value(blocked=y, batch=values[0].batch)

    def _size(self, node: fx.Node) -> _Value | None:
        """The number of images, without leaving the layout for it."""
        if node.op == "call_method" and node.target == "size" and node.args[1:] == (0,):
            return _Value(dense=self._first(node).batch)
        return None

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None


def add(x: Tensor, y: Tensor, batch: int) -> Tensor:
    """The sum of blocked tensors; images of one pixel are broadcast."""
    if x.shape == y.shape:
        return x + y
    return to_blocked(from_blocked(x, batch) + from_blocked(y, batch))
