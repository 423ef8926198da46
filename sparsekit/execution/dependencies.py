"""Which hidden units and channels can go without changing a network's outputs.

The network is traced by torch.fx. Units whose tensors are added stand or fall together.
A unit is needed if the outputs, or an operation that is not understood, read it, or if
a needed unit reads it and what it reads is no constant. All others can go: a constant
that is read moves into the reader's bias.
"""

import inspect
import operator
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsekit.execution import channels
from sparsekit.execution.channels import NAN, Layer, Value
from sparsekit.execution.reasons import first_line

SIZED = (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.Embedding)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class NotTraceable(Exception):
    """A network that cannot be followed; the message says why."""


class Dependencies:
    """Units, who reads them, and which are needed.

    Args:
        model: in evaluation mode, absent weights set to 0. Not changed.
        masks: {weight name: bool mask}; others: a weight exists if it is not 0.

    Attributes:
        layers: {name: Layer}, all whose sizes may change.
        untraced: {name: why}, the parts that could not be followed: they stay.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]):
        self.layers: dict[str, Layer] = {}
        self.untraced: dict[str, str] = {}
        self._masks = masks
        self._parents: list[int] = []  # union-find over units
        self._needed: dict[int, str] = {}  # {unit: why}, then spread over groups
        self._frozen = _shared(model)
        self._follow(model, "")
        self._roots = torch.tensor([self._root(u) for u in range(len(self._parents))])
        self._reasons = self._spread()

    # ---- results -----------------------------------------------------------------

    def needed(self, units: Tensor) -> Tensor:
        """bool, as long as `units`: False for those that can go."""
        return self._among(self._reasons, units)

    def why(self, unit: int) -> str:
        """Why a unit is needed."""
        return self._reasons[int(self._roots[unit])]

    # ---- tracing -----------------------------------------------------------------

    def _follow(self, module: nn.Module, prefix: str) -> None:
        """Traces a module, or else those of its children that can be traced."""
        if isinstance(module, SIZED) or _is_leaf(module):
            return
        if not isinstance(module, CONTAINERS) or not prefix:
            graph = None
            try:
                graph = _trace(module)
                _refuse_shared_changes(graph, module)
            except Exception as error:  # whatever a forward does with a proxy
                self.untraced[prefix or "the model"] = first_line(error)
            else:
                _Walk(self, module, prefix, graph).run()
                return
        for name, child in module.named_children():
            self._follow(child, f"{prefix}.{name}" if prefix else name)

    # ---- units -------------------------------------------------------------------

    def new_units(self, n: int, why: str = "") -> Tensor:
        units = torch.arange(len(self._parents), len(self._parents) + n)
        self._parents.extend(units.tolist())
        if why:
            self.need(units, why)
        return units

    def need(self, units: Tensor, why: str) -> None:
        for unit in units.unique().tolist():
            self._needed.setdefault(unit, why)

    def tie(self, a: Tensor, b: Tensor) -> None:
        """a[i] and b[i] stand or fall together."""
        for x, y in torch.stack((a, b), dim=1).tolist():
            self._parents[self._root(x)] = self._root(y)

    def _root(self, unit: int) -> int:
        while self._parents[unit] != unit:
            self._parents[unit] = self._parents[self._parents[unit]]
            unit = self._parents[unit]
        return unit

    # ---- layers ------------------------------------------------------------------

    def layer(self, name: str, module: nn.Module, value: Value) -> Layer | None:
        """The layer of this name; None if its structure must stay."""
        if name in self._frozen or type(module) not in SIZED or _has_hooks(module):
            return None
        if name not in self.layers:
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                self.layers[name] = Layer(name, module, value.units)
            else:
                alive = self._alive(f"{name}.weight", module)
                units = self.new_units(len(alive))
                self.layers[name] = Layer(name, module, units, alive)
        layer = self.layers[name]
        if layer.inputs:  # called before
            self.tie(layer.inputs[0].units, value.units)
        elif layer.groups > 1:
            ins = value.units.view(layer.groups, -1)
            outs = layer.units.view(layer.groups, -1)
            for group, first in enumerate(ins[:, :1]):
                self.tie(ins[group], first.expand_as(ins[group]))
                self.tie(outs[group], first.expand_as(outs[group]))
        return layer

    def _alive(self, name: str, module: Any) -> Tensor:
        mask = self._masks.get(name)
        mask = (module.weight.detach() if mask is None else mask).cpu() != 0
        if isinstance(module, nn.Embedding):
            return mask.t()
        return mask.flatten(2).any(dim=2) if mask.dim() > 2 else mask

    def freeze(self, names: Iterable[str]) -> None:
        self._frozen |= set(names)

    # ---- who is needed -----------------------------------------------------------

    def _spread(self) -> dict[int, str]:
        """{root of needed units: why}."""
        reasons: dict[int, str] = {}
        for unit, why in self._needed.items():
            reasons.setdefault(self._root(unit), why)
        while True:
            before = len(reasons)
            for layer in reversed(self.layers.values()):
                self._needed_by(layer, reasons)
            if len(reasons) > before:
                continue
            empty = self._empty(reasons)
            if empty is None:
                return reasons
            assert empty.constant is not None  # it was called
            best = int((~empty.constant.isnan()).int().argmax())  # it reads nothing
            reasons[int(self._roots[empty.units[best]])] = "a layer keeps a unit"

    def _needed_by(self, layer: Layer, reasons: dict[int, str]) -> None:
        if layer.alive is None or not layer.inputs or layer.groups > 1:
            return
        rows = self._among(reasons, layer.units)
        read = layer.alive[rows].any(dim=0) & layer.known().isnan()
        units = layer.inputs[0].units
        constant = layer.inputs[0].constant
        for i in read.nonzero().flatten().tolist():
            why = f"{layer.name!r} reads it"
            if not constant[i].isnan() and channels.pads_with_zeros(layer.module):
                why = (
                    f"it is constant but not 0, which the zeros that {layer.name!r} "
                    "pads with are not"
                )
            reasons.setdefault(int(self._roots[units[i]]), why)

    def _empty(self, reasons: Mapping[int, str]) -> Layer | None:
        """A layer of which no unit is needed: it would not run."""
        for layer in self.layers.values():
            if not bool(self._among(reasons, layer.units).any()):
                return layer
        return None

    def _among(self, reasons: Mapping[int, str], units: Tensor) -> Tensor:
        return torch.tensor([root in reasons for root in self._roots[units].tolist()])


class _Walk:
    """Follows one graph, node by node."""

    def __init__(
        self, found: Dependencies, root: nn.Module, prefix: str, graph: fx.Graph
    ):
        self.found, self.root, self.graph = found, root, graph
        self.prefix = prefix
        self.values: dict[fx.Node, Value] = {}

    def run(self) -> None:
        parameters = [n.target for n in self.graph.nodes if n.op == "get_attr"]
        self.found.freeze(self._name(str(p).rpartition(".")[0]) for p in parameters)
        for node in self.graph.nodes:
            value = self._visit(node)
            if value is not None:
                self.values[node] = value

    def _name(self, target: str) -> str:
        return f"{self.prefix}.{target}" if self.prefix else target

    def _visit(self, node: fx.Node) -> Value | None:
        if node.op in ("placeholder", "get_attr"):
            return None
        if node.op == "output":
            where = f"of {self.prefix!r}" if self.prefix else "of the network"
            self._needs_all(node, f"it is an output {where}")
            return None
        if node.op == "call_module":
            name = self._name(str(node.target))
            module = self.root.get_submodule(str(node.target))
            result = self._module(node, name, module)
            what = f"{name!r} ({type(module).__name__})"
        else:
            result = self._function(node)
            what = f"the operation {node.name!r}"
        if result is None and not _is_harmless(node, self.values):
            self._needs_all(node, f"{what} needs it")
        return result

    def _needs_all(self, node: fx.Node, why: str) -> None:
        for source in node.all_input_nodes:
            if source in self.values:
                self.found.need(self.values[source].units, why)

    def _first(self, node: fx.Node) -> Value | None:
        first = node.args[0] if node.args else None
        return self.values.get(first) if isinstance(first, fx.Node) else None

    def _module(self, node: fx.Node, name: str, module: Any) -> Value | None:
        value = self._first(node)
        if type(module) in SIZED:
            return self._sized(name, module, value)
        return None if value is None else channels.of_module(module, value)

    def _sized(self, name: str, module: Any, value: Value | None) -> Value | None:
        if isinstance(module, nn.Embedding):
            return self._embedding(name, module)
        sizes = ("in_features", "in_channels", "num_features")
        n = next(getattr(module, size) for size in sizes if hasattr(module, size))
        image = isinstance(module, nn.Conv2d | nn.BatchNorm2d)
        given = None if value is None or value.image != image else value.of_size(n)
        if given is None:
            if value is not None:
                self.found.need(value.units, f"{name!r} ({type(module).__name__})")
            units = self.found.new_units(n, "it is an input of the network")
            given = Value(units, torch.full((n,), NAN).double(), image)
        layer = self.found.layer(name, module, given)
        if layer is None:
            self.found.need(given.units, f"{name!r} must keep its structure")
            return None
        result = Value(layer.units, given.constant, image)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            result = given
        return result.with_constant(layer.call(given))

    def _embedding(self, name: str, module: nn.Embedding) -> Value | None:
        if module.max_norm is not None:
            return None
        nothing = Value(torch.tensor([]).long(), torch.tensor([]).double(), False)
        layer = self.found.layer(name, module, nothing)
        if layer is None or layer.alive is None:
            return None
        layer.constant = torch.where(layer.alive.any(dim=1), NAN, 0.0).double()
        return Value(layer.units, layer.constant, False)

    def _function(self, node: fx.Node) -> Value | None:
        if node.target in channels.PAIRS and len(node.args) == 2 and not node.kwargs:
            return self._pair(node)
        if node.target in (torch.cat, torch.concat):
            return self._cat(node)
        first = self._first(node)
        return None if first is None else channels.of_function(node, first)

    def _pair(self, node: fx.Node) -> Value | None:
        a, b = (
            self.values.get(arg) if isinstance(arg, fx.Node) else arg
            for arg in node.args
        )
        if not isinstance(a, Value | int | float) or not isinstance(
            b, Value | int | float
        ):
            return None
        value = a if isinstance(a, Value) else b
        if not isinstance(value, Value):
            return None
        if isinstance(a, Value) and isinstance(b, Value):
            alike = a.image == b.image and a.spread == b.spread
            if not alike or len(a.units) != len(b.units):
                return None
            self.found.tie(a.units, b.units)
        return value.with_constant(channels.of_pair(node, a, b))

    def _cat(self, node: fx.Node) -> Value | None:
        tensors: Any = node.args[0] if node.args else ()
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        parts = [self.values.get(tensor) for tensor in tensors]
        whole = [part for part in parts if part is not None and not part.spread]
        if not whole or len(whole) < len(parts):
            return None
        images = {part.image for part in whole}
        if len(images) > 1 or dim not in ((1, -3) if whole[0].image else (1, -1)):
            return None
        units = torch.cat([part.units for part in whole])
        return Value(units, torch.cat([p.constant for p in whole]), whole[0].image)


# ---- modules and graphs --------------------------------------------------------------


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_leaf(m)


def _is_leaf(module: nn.Module) -> bool:
    home = type(module).__module__
    ours = home.startswith(("torch.nn.", "torch.ao.", "sparsekit."))
    return ours and not isinstance(module, CONTAINERS)


def _trace(module: nn.Module) -> fx.Graph:
    """The graph for the arguments without defaults."""
    arguments = inspect.signature(module.forward).parameters.values()
    defaults = {
        p.name: p.default for p in arguments if p.default is not inspect.Parameter.empty
    }
    return _Tracer().trace(module, concrete_args=defaults or None)


def _refuse_shared_changes(graph: fx.Graph, root: nn.Module) -> None:
    """Raises if a tensor is changed in place that others read."""

    def module_of(node: fx.Node) -> nn.Module | None:
        if node.op != "call_module":
            return None
        return root.get_submodule(str(node.target))

    for node in graph.nodes:
        if node.op not in ("call_module", "call_function", "call_method"):
            continue
        if channels.in_place(node, module_of(node)) and not all(
            channels.is_exclusive(source, module_of)
            for source in node.all_input_nodes[:1]
        ):
            raise NotTraceable(
                f"{node.name!r} changes in place a tensor that others read too"
            )


def _is_harmless(node: fx.Node, values: Mapping[fx.Node, Value]) -> bool:
    """Whether an operation reads sizes only, and none that goes with the channels."""
    if node.target is operator.getitem:
        source = node.args[0]
        return isinstance(source, fx.Node) and source not in values
    if not channels.reads_shape(node):
        return False
    source = node.args[0]
    value = values.get(source) if isinstance(source, fx.Node) else None
    if value is None or node.target not in ("size", getattr):
        return True
    fixed = (0, 2, 3, -1, -2) if value.image else (0,)
    if node.target is getattr and node.args[1] != "shape":
        return True
    if node.target == "size" and len(node.args) > 1:
        return node.args[1] in fixed
    return all(
        user.target is operator.getitem and (user.args[1] in fixed or not user.users)
        for user in node.users
    )


def _shared(model: nn.Module) -> set[str]:
    """Names of modules with a parameter that another module, or name, has too."""
    owners = [
        (name, id(parameter))
        for name, module in model.named_modules(remove_duplicate=False)
        for parameter in module._parameters.values()
        if parameter is not None
    ]
    uses = Counter(parameter for _, parameter in owners)
    return {name for name, parameter in owners if uses[parameter] > 1}


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
