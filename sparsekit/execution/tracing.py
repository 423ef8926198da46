"""A torch network as the steps of an exported file: traced, batch norm folded in."""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from sparsekit.execution.layer import SparseLayer

Pads = tuple[int, int, int, int]  # top, left, bottom, right
NO_PADS: Pads = (0, 0, 0, 0)


@dataclass
class Layer:
    """A step: its entry in the graph, and its dense weight and bias if it has them."""

    entry: dict[str, Any]
    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def name(self) -> str:
        return str(self.entry["name"])


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, SparseLayer) or super().is_leaf_module(module, name)


def trace(
    model: nn.Module, example: Tensor, masks: Mapping[str, Tensor] | None = None
) -> list[Layer]:
    """The steps that compute `model`, in order.

    Args:
        model: in evaluation mode.
        example: [N, ...], an input.
        masks: {name of a weight: bool}; what is False counts as zero.

    Raises:
        ValueError: naming the module or function that has no step.
    """
    masks = dict(masks or {})
    if type(model) in _MODULES or isinstance(model, SparseLayer):
        model = nn.Sequential(model)  # tracing looks into the model itself
        masks = {f"0.{name}": mask for name, mask in masks.items()}
    names = {f"{name}.weight" for name, _ in model.named_modules()}
    if not names.issuperset(masks):
        raise ValueError(
            f"masks of no weight in the model: {sorted(set(masks) - names)}"
        )
    graph = _Tracer().trace(model)
    inputs = graph.find_nodes(op="placeholder")
    if len(inputs) > 1:
        raise _unsupported(inputs[1], "a network has one input")
    with torch.no_grad():
        ShapeProp(fx.GraphModule(model, graph)).propagate(example)
    return _Translation(model, masks, len(example)).run(graph)


class _Translation:
    """Walks over the graph of a network and collects steps."""

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor], batch: int):
        self.model, self.masks, self.batch = model, masks, batch
        self.steps: list[Layer] = []
        # Of every node: the step whose result it is, and zeros to be put around it.
        self.results: dict[fx.Node, tuple[str, Pads]] = {}

    def run(self, graph: fx.Graph) -> list[Layer]:
        for node in graph.nodes:
            if node.op == "placeholder":
                self.results[node] = "input", NO_PADS
            elif node.op == "output":
                self._check_output(node)
            elif node.op == "call_module":
                self._module(node, self.model.get_submodule(str(node.target)))
            elif hasattr(node.meta.get("tensor_meta"), "shape"):
                self._call(node)
        return self.steps

    def _check_output(self, node: fx.Node) -> None:
        (result,) = node.args
        if result not in self.results:
            raise _unsupported(node, "a network has one tensor as its result")
        if not self.steps or self._input(node, result) != self.steps[-1].name:
            raise _unsupported(node, "the result is that of the last step")

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        mask = self.masks.get(f"{node.target}.weight")
        if isinstance(module, SparseLayer):
            mask = module.mask()
            module = module.to_module()
        translate = _MODULES.get(type(module))
        if translate is None:
            raise _unsupported(node, f"{type(module).__name__} has no step")
        translate(self, node, module)
        if mask is not None:
            layer = self.steps[-1]
            if layer.name != node.name or layer.weight is None:
                raise _unsupported(node, "it has a mask, but is no layer")
            layer.weight = layer.weight * mask

    def _call(self, node: fx.Node) -> None:
        translate = _CALLS.get(node.target)
        if translate is None:
            raise _unsupported(node, "it has no step; use a module of torch.nn")
        translate(self, node)

    # ---- results -----------------------------------------------------------------

    def _step(
        self, node: fx.Node, op: str, sources: list[Any], **options: Any
    ) -> Layer:
        names = [self._input(node, source) for source in sources]
        return self._append(node, op, names, options)

    def _append(
        self, node: fx.Node, op: str, names: list[str], options: dict[str, Any]
    ) -> Layer:
        layer = Layer({"name": node.name, "op": op, "inputs": names} | options)
        self.steps.append(layer)
        self.results[node] = node.name, NO_PADS
        return layer

    def _input(self, node: fx.Node, source: Any) -> str:
        if source not in self.results:
            raise _unsupported(node, f"its argument {source} is no tensor")
        name, pads = self.results[source]
        if pads != NO_PADS:
            raise _unsupported(node, "padding has to go before a convolution")
        return name

    # ---- layers ------------------------------------------------------------------

    def conv(self, node: fx.Node, module: nn.Conv2d) -> None:
        depthwise = module.groups == module.in_channels == module.out_channels
        if module.dilation != (1, 1) or (module.groups > 1 and not depthwise):
            raise _unsupported(node, "dilation is 1, groups are 1 or one a channel")
        if module.padding_mode != "zeros":
            raise _unsupported(node, f"padding is zeros, not {module.padding_mode}")
        padding: Any = module.padding
        if padding == "same":
            total = [k - 1 for k in module.kernel_size]
            own = [total[0] // 2, total[1] // 2, -(-total[0] // 2), -(-total[1] // 2)]
        else:
            own = [0] * 4 if padding == "valid" else [*padding, *padding]
        name, pads = self.results[_argument(node)]
        layer = self._append(
            node,
            "conv",
            [name],
            {
                "stride": list(module.stride),
                "padding": list(map(operator.add, own, pads)),
                "groups": module.groups,
            },
        )
        _take_weight(layer, module)

    def linear(self, node: fx.Node, module: nn.Linear) -> None:
        if len(node.meta["tensor_meta"].shape) != 2:
            raise _unsupported(node, "a linear layer takes [N, features]")
        _take_weight(self._step(node, "linear", [_argument(node)]), module)

    def batch_norm(self, node: fx.Node, module: Any) -> None:
        """Into the layer before it, or as a depthwise 1x1 convolution of its own."""
        if module.running_mean is None:
            raise _unsupported(node, "it keeps no statistics")
        scale = torch.rsqrt(module.running_var.double() + module.eps)
        shift = -module.running_mean.double() * scale
        if module.affine:
            scale = scale * module.weight.double()
            shift = shift * module.weight.double() + module.bias.double()
        source = _argument(node)
        layer = self.steps[-1] if self.steps else None
        if (
            layer is not None
            and layer.weight is not None
            and self.results.get(source) == (layer.name, NO_PADS)
            and len(source.users) == 1
        ):
            column = scale.view(-1, *[1] * (layer.weight.dim() - 1))
            layer.weight = layer.weight * column
            layer.bias = shift if layer.bias is None else layer.bias * scale + shift
            self.results[node] = layer.name, NO_PADS
            return
        if type(module) is not nn.BatchNorm2d:
            raise _unsupported(node, "a batch norm of features follows a linear layer")
        options = {"stride": [1, 1], "padding": [0] * 4, "groups": len(scale)}
        layer = self._step(node, "conv", [source], **options)
        layer.weight, layer.bias = scale.view(-1, 1, 1, 1), shift

    # ---- the rest ----------------------------------------------------------------

    def same(self, node: fx.Node, module: nn.Module | None = None) -> None:
        self.results[node] = self.results[_argument(node)]

    def clip(self, node: fx.Node, low: float | None, high: float | None) -> None:
        self._step(node, "clip", [_argument(node)], low=low, high=high)

    def add(self, node: fx.Node) -> None:
        if len(node.args) != 2 or node.kwargs:
            raise _unsupported(node, "an addition has two tensors and no options")
        terms: list[Any] = list(node.args)
        shapes = [t.meta["tensor_meta"].shape for t in terms if t in self.results]
        if len(set(shapes)) != 1:
            raise _unsupported(node, f"an addition has equal shapes, not {shapes}")
        self._step(node, "add", terms)

    def flatten(self, node: fx.Node, module: nn.Flatten | None = None) -> None:
        shape = tuple(node.meta["tensor_meta"].shape)
        source = _argument(node)
        before = tuple(source.meta["tensor_meta"].shape)
        if shape != (self.batch, math.prod(before[1:])):
            raise _unsupported(node, f"{before} -> {shape} is no flattening")
        if len(before) == 2:
            self.same(node)
        else:
            self._step(node, "flatten", [source])

    def average(self, node: fx.Node, module: nn.Module | None = None) -> None:
        """The mean of a channel's pixels, with or without its two dimensions."""
        source = _argument(node)
        shape = tuple(node.meta["tensor_meta"].shape)
        images = tuple(source.meta["tensor_meta"].shape)
        if len(images) != 4 or shape not in (images[:2], (*images[:2], 1, 1)):
            raise _unsupported(node, "an average is that of all pixels of a channel")
        if module is None and node.target in (torch.mean, "mean"):
            dims: Any = node.kwargs.get(
                "dim", node.args[1] if len(node.args) > 1 else ()
            )
            if sorted(d % 4 for d in dims) != [2, 3]:
                raise _unsupported(node, "a mean is that over dimensions 2 and 3")
        if len(shape) == 4:
            self._step(node, "average", [source])
            return
        layer = self._step(node, "average", [source])
        layer.entry["name"] = f"{node.name}.images"
        self._append(node, "flatten", [layer.name], {})

    def pool(self, node: fx.Node, module: nn.MaxPool2d | nn.AvgPool2d) -> None:
        kernel, stride, padding = (
            list(value) if isinstance(value, tuple) else [value, value]
            for value in (module.kernel_size, module.stride, module.padding)
        )
        if module.ceil_mode or getattr(module, "dilation", 1) not in (1, (1, 1)):
            raise _unsupported(node, "pooling has no ceil_mode and no dilation")
        options = {"kernel": kernel, "stride": stride}
        if isinstance(module, nn.MaxPool2d):
            source = [_argument(node)]
            self._step(node, "max_pool", source, **options, padding=padding)
        elif any(padding) or module.divisor_override:
            raise _unsupported(node, "average pooling has no padding and no divisor")
        else:
            self._step(node, "average_pool", [_argument(node)], **options)

    def pad(self, node: fx.Node, module: nn.ZeroPad2d | None = None) -> None:
        """Zeros around images, which the convolution behind takes over."""
        arguments = dict(
            zip(("input", "pad", "mode", "value"), node.args, strict=False)
        )
        arguments |= node.kwargs
        pads: Any = module.padding if module else arguments["pad"]
        pads = (*pads, *[0] * (4 - len(pads)))
        if (
            len(pads) != 4
            or min(pads) < 0
            or arguments.get("mode", "constant") != "constant"
            or arguments.get("value")
        ):
            raise _unsupported(node, "padding is zeros around the images")
        name, before = self.results[_argument(node)]
        left, right, top, bottom = pads
        own = top, left, bottom, right
        total: Any = tuple(map(operator.add, own, before))
        self.results[node] = name, total


def _argument(node: fx.Node) -> fx.Node:
    """What a module or function is called with."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(first, fx.Node):
        raise _unsupported(node, "its first argument is no tensor")
    return first


def _take_weight(layer: Layer, module: nn.Conv2d | nn.Linear) -> None:
    layer.weight = module.weight.detach().double()
    layer.bias = None if module.bias is None else module.bias.detach().double()


def _unsupported(node: fx.Node, why: str) -> ValueError:
    kind = "module" if node.op == "call_module" else node.op.replace("_", " ")
    return ValueError(f"cannot export {kind} {str(node.target)!r} ({node}): {why}")


def _clip(low: float, high: float | None) -> Callable[..., None]:
    return lambda to, node, module=None: to.clip(node, low, high)


def _hardtanh(to: _Translation, node: fx.Node, module: nn.Hardtanh) -> None:
    to.clip(node, float(module.min_val), float(module.max_val))


_RELU, _RELU6 = _clip(0.0, None), _clip(0.0, 6.0)
_MODULES: dict[type, Callable[..., None]] = {
    nn.Conv2d: _Translation.conv,
    nn.Linear: _Translation.linear,
    nn.BatchNorm1d: _Translation.batch_norm,
    nn.BatchNorm2d: _Translation.batch_norm,
    nn.ReLU: _RELU,
    nn.ReLU6: _RELU6,
    nn.Hardtanh: _hardtanh,
    nn.Identity: _Translation.same,
    nn.Dropout: _Translation.same,
    nn.Dropout2d: _Translation.same,
    nn.Flatten: _Translation.flatten,
    nn.AdaptiveAvgPool2d: _Translation.average,
    nn.MaxPool2d: _Translation.pool,
    nn.AvgPool2d: _Translation.pool,
    nn.ZeroPad2d: _Translation.pad,
}
_CALLS: dict[Any, Callable[..., None]] = {
    F.relu: _RELU,
    torch.relu: _RELU,
    "relu": _RELU,
    "relu_": _RELU,
    F.relu6: _RELU6,
    operator.add: _Translation.add,
    operator.iadd: _Translation.add,
    torch.add: _Translation.add,
    "add": _Translation.add,
    "add_": _Translation.add,
    torch.flatten: _Translation.flatten,
    "flatten": _Translation.flatten,
    "view": _Translation.flatten,
    "reshape": _Translation.flatten,
    F.adaptive_avg_pool2d: _Translation.average,
    torch.mean: _Translation.average,
    "mean": _Translation.average,
    F.pad: _Translation.pad,
}
