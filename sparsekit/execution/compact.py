"""Compaction: hidden units and channels that do nothing are removed from the layers.

No kernel is needed: what is left is a smaller plain network, and half the units is half
the time, on any device.
"""

import copy
import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.columns import aligned
from sparsekit.execution.channels import Layer, exact
from sparsekit.execution.dependencies import SIZED, Dependencies
from sparsekit.modes import in_mode


@dataclass(frozen=True)
class Resized:
    """A layer before and after: outputs, inputs (0 of an embedding's), parameters."""

    name: str
    outputs: tuple[int, int]
    inputs: tuple[int, int]
    parameters: tuple[int, int]


@dataclass(frozen=True)
class Kept:
    """Dead units of a layer that had to stay, and why."""

    name: str
    units: int
    reason: str


@dataclass(frozen=True)
class Compaction:
    """What `compact` did. `str` renders it as a table.

    Attributes:
        layers: all whose sizes could have changed.
        kept: units that are constant, most of them because nothing of them is left, and
            that could not go.
        untraced: {module name: why it could not be followed}; all of it stayed.
    """

    layers: list[Resized]
    kept: list[Kept]
    untraced: dict[str, str]

    def __str__(self) -> str:
        lines = [["layer", "outputs", "inputs", "parameters"]]
        for r in self.layers:
            pairs = (r.outputs, r.inputs, r.parameters)
            lines.append([r.name, *(f"{a:,} -> {b:,}" for a, b in pairs)])
        totals = [sum(r.parameters[i] for r in self.layers) for i in (0, 1)]
        lines.append(["all", "", "", f"{totals[0]:,} -> {totals[1]:,}"])
        notes = [f"{k.name}: {k.units} dead stay: {k.reason}" for k in self.kept]
        notes += [f"{name}: not traced: {why}" for name, why in self.untraced.items()]
        return "\n".join([*aligned(lines), *notes])


@torch.no_grad()
def compact(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None = None,
    example: Tensor | tuple[Any, ...] | None = None,
) -> nn.Module:
    """A copy with smaller layers that computes the same in evaluation mode.

    A unit goes if nothing that is needed reads it, or if its value is a constant c
    wherever it is read: then W[:, j] c moves into the reader's bias. Units whose
    outputs are added go only together, and so do the channels of a group of a grouped
    convolution. A constant other than 0 stays if a reader pads it with zeros, since it
    is no constant at the border. Layers keep their classes; each keeps a unit at least.

    Sizes change in Linear, Conv2d (depthwise and grouped too, in whole groups),
    BatchNorm1d and 2d and Embedding. Channels are followed through activations,
    dropout, pooling, flattening, sums, products and concatenation. All other operations
    need every channel that they are given (layer norm, attention, reshapes).

    Args:
        model: not changed. A forward must not hold sizes as numbers.
        masks: {parameter name: bool mask}: absent weights count as 0, weights that
            exist are read, even if they are 0. Default: weights that are not 0 exist.
        example: an input, or a tuple of them. With it the result is checked: tracing
            assumes images (N, C, H, W), and batch norms of vectors (N, C).

    Returns:
        a module with the attribute `compaction`, which says what went, what stayed and
        why. Its state_dict holds the architecture: `load_compact` reads it.

    Raises:
        ValueError: for a mask that does not fit, or if the check fails.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> _ = nn.init.zeros_(model[0].weight[1:3])
    >>> print(compact(model).compaction)
    layer  outputs  inputs  parameters
    0      4 -> 2   3 -> 3  16 -> 8
    2      2 -> 2   4 -> 2  10 -> 6
    all                     26 -> 14

    Inputs are taken to be finite: 0 times infinity would be no constant. In training
    mode a batch norm of a constant gives its bias, not what its running
    statistics say; the folded constants are those of evaluation.
    """
    small = copy.deepcopy(model)
    with in_mode(small, training=False):
        found = _masked(small, masks or {})
        dependencies = Dependencies(small, found)
        kept = _kept(dependencies)
        resized = [_shrink(each, dependencies) for each in dependencies.layers.values()]
        small.compaction = Compaction(  # type: ignore[assignment]
            resized, kept, dependencies.untraced
        )
        if example is not None:
            _check(model, found, small, example)
    return small


@torch.no_grad()
def load_compact(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the uncompacted model, with the sizes and weights of a compacted one.

    Args:
        model: as it was built, before it was compacted. Not changed.
        state: state_dict of a compacted model.

    Raises:
        ValueError: naming the entry, if it cannot be one of this model's layers.
        RuntimeError: by torch, for missing or unexpected entries.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> _ = nn.init.zeros_(model[0].weight[1:3])
    >>> load_compact(model, compact(model).state_dict())[0]
    Linear(in_features=3, out_features=2, bias=True)
    """
    sized = copy.deepcopy(model)
    for name, module in sized.named_modules():
        if type(module) in SIZED:
            _fit(name, module, state)
    sized.load_state_dict(dict(state))
    return sized


# ---- before --------------------------------------------------------------------------


def _masked(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zeroes absent weights. The masks, on the CPU."""
    known = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in known:
            raise ValueError(
                f"masks has {name!r}, which is no parameter of the model; those are "
                f"{', '.join(known)}"
            )
        if mask.dtype != torch.bool or mask.shape != known[name].shape:
            raise ValueError(
                f"the mask of {name!r} is bool of shape {tuple(known[name].shape)}, "
                f"got {mask.dtype} {tuple(mask.shape)}"
            )
        known[name].mul_(mask.to(known[name].device))
    return {name: mask.cpu() for name, mask in masks.items()}


def _kept(dependencies: Dependencies) -> list[Kept]:
    """Constant units that are needed."""
    kept = []
    for layer in dependencies.layers.values():
        if layer.alive is None:
            continue
        assert layer.constant is not None  # it was called
        dead = ~layer.constant.isnan() & dependencies.needed(layer.units)
        reasons = Counter(dependencies.why(u) for u in layer.units[dead].tolist())
        kept += [Kept(layer.name, n, why) for why, n in reasons.items()]
    return kept


# ---- shrinking -----------------------------------------------------------------------


def _shrink(layer: Layer, dependencies: Dependencies) -> Resized:
    module, name = layer.module, layer.name
    before = sum(p.numel() for p in module.parameters())
    stay = dependencies.needed(layer.units)
    rows = stay.nonzero().flatten()
    if layer.alive is None:
        _shrink_norm(module, rows)
        inputs = (len(stay), len(rows))
    elif isinstance(module, nn.Embedding):
        _set(module, "weight", _take(module.weight, rows, 1))
        module.embedding_dim = len(rows)
        inputs = (0, 0)
    else:
        ins = dependencies.needed(layer.inputs[0].units)
        _fold(layer, ins)
        columns = ins.nonzero().flatten()
        _shrink_weight(module, rows, columns)
        inputs = (len(ins), len(columns))
    after = sum(p.numel() for p in module.parameters())
    return Resized(name, (len(stay), len(rows)), inputs, (before, after))


def _fold(layer: Layer, ins: Tensor) -> None:
    """Adds what removed inputs contribute to the bias."""
    if layer.groups > 1:  # inputs go with the outputs that read them
        return
    module = layer.module
    constants = layer.known().nan_to_num().masked_fill(ins, 0.0)
    if not bool(constants.any()):
        return
    weight = module.weight
    shift = layer.contribution(constants)
    bias = shift if module.bias is None else exact(module.bias) + shift
    grows = module.bias is None or module.bias.requires_grad
    module.bias = nn.Parameter(bias.to(weight.device, weight.dtype), grows)


def _shrink_weight(module: Any, rows: Tensor, columns: Tensor) -> None:
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = len(rows), len(columns)
    else:
        if module.groups > 1:
            module.groups = module.groups * len(rows) // module.out_channels
        module.out_channels, module.in_channels = len(rows), len(columns)
    weight = _take(module.weight, rows)
    if getattr(module, "groups", 1) == 1 and weight.shape[1] != len(columns):
        weight = _take(weight, columns, 1)
    _set(module, "weight", weight)
    if module.bias is not None:
        _set(module, "bias", _take(module.bias, rows))


def _shrink_norm(module: Any, rows: Tensor) -> None:
    module.num_features = len(rows)
    for name in ("weight", "bias"):
        if getattr(module, name) is not None:
            _set(module, name, _take(getattr(module, name), rows))
    for name in ("running_mean", "running_var"):
        if getattr(module, name) is not None:
            setattr(module, name, _take(getattr(module, name), rows))


def _take(tensor: Tensor, rows: Tensor, dim: int = 0) -> Tensor:
    return tensor.index_select(dim, rows.to(tensor.device))


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    trains = getattr(module, name).requires_grad
    setattr(module, name, nn.Parameter(value, trains))


# ---- checking and loading ------------------------------------------------------------


def _check(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    small: nn.Module,
    example: Tensor | tuple[Any, ...],
) -> None:
    """Compares outputs in float64."""
    inputs = example if isinstance(example, tuple) else (example,)
    doubles = [
        x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
        for x in inputs
    ]
    reference = copy.deepcopy(model).eval().double()
    _masked(reference, masks)
    expected = reference(*doubles)
    got = copy.deepcopy(small).double()(*doubles)
    try:
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    except AssertionError as error:
        raise ValueError(
            "the compacted model computes something else for the example: its forward "
            "depends on sizes, or on tensors' shapes, in a way that tracing does not "
            f"show. {error}"
        ) from error


def _fit(name: str, module: Any, state: Mapping[str, Tensor]) -> None:
    """Gives a layer the sizes of its entries."""
    prefix = f"{name}." if name else ""
    for key in [*module._parameters, *module._buffers]:
        value = state.get(prefix + key)
        old = getattr(module, key)
        if value is None or (old is not None and value.shape == old.shape):
            continue
        if key != "bias" and (
            old is None
            or value.dim() != old.dim()
            or any(map(operator.gt, value.shape, old.shape))
            or value.shape[2:] != old.shape[2:]
        ):
            raise ValueError(
                f"{prefix}{key} is {tuple(value.shape)}: no part of this model's "
                f"{'nothing' if old is None else tuple(old.shape)}"
            )
        place = module.weight if old is None else old
        fresh = torch.empty(value.shape, dtype=place.dtype, device=place.device)
        if key in module._parameters:
            fresh = nn.Parameter(fresh, old is None or old.requires_grad)
        setattr(module, key, fresh)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.Conv2d):
        out, per_group = module.weight.shape[:2]
        if module.groups > 1:
            module.groups = module.groups * out // module.out_channels
        module.in_channels, module.out_channels = per_group * module.groups, out
    elif module.running_mean is not None or module.weight is not None:
        kept = module.running_mean if module.weight is None else module.weight
        module.num_features = len(kept)
