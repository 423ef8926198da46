"""A trained model becomes one that runs faster, layer by layer, where that pays."""

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.columns import aligned
from sparsekit.execution import calibration
from sparsekit.execution.compact import compact
from sparsekit.execution.conv import SparseConv2d
from sparsekit.execution.forms import FORMS, VALUES, Choice, Layer, maker
from sparsekit.execution.layer import SparseLayer
from sparsekit.execution.network import blocked_network
from sparsekit.parameters import unwrapped
from sparsekit.spelling import choice

Where = str | Iterable[str] | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Conversion:
    """The choices of one `convert`; `str` renders them as a table."""

    choices: list[Choice]
    notes: list[str]

    def __str__(self) -> str:
        lines = [["layer", "shape", "density", "form", "dense ms", "sparse ms", "why"]]
        for c in self.choices:
            times = [f"{t:.3f}" if t else "–" for t in (c.dense_ms, c.sparse_ms)]
            shape = "x".join(map(str, c.shape))
            lines.append([c.name, shape, f"{c.density:.4f}", c.form, *times, c.reason])
        return "\n".join([*aligned(lines), *self.notes])


def convert(
    model: nn.Module,
    to: str = "auto",
    *,
    masks: Mapping[str, Tensor] | None = None,
    where: Where = "auto",
    example: Tensor | None = None,
    density: float | None = None,
    block: int = 64,
) -> nn.Module:
    """A new model that computes the same with its sparse layers in a fast form.

        form     layers                       a layer becomes
        values   Linear, Conv2d, Embedding    values and their places; trains
        blocks   Linear                       balanced blocks: gather and dense product
        compact  all                          smaller dense layers: dead units are gone
        2:4      Linear, on an NVIDIA GPU     torch's semi-structured weight
        auto     Linear, Conv2d               compact, then values or blocks if faster

    In evaluation mode the outputs are those of the masked model, up to rounding. The
    model passed is not changed and shares no memory with the result. A Sparsifier built
    on a model in values mode drives it like a masked one.

    Args:
        model: plain modules. Its mode (train or eval) says what is to be fast. Of
            torch.compile and DistributedDataParallel the module inside is converted.
        to: the form.
        masks: {parameter name: bool mask}, as `Sparsifier.alive` or `finalize()` give
            it. Default: a weight exists if it is not zero. Structure comes from the
            masks: an alive weight may be zero. What has no sparse form, such as an LSTM
            or attention, is masked and stays dense.
        where: "auto": with an `example`, the layers that are measured to be faster in
            the new form, on this machine and for this batch; without one, all that the
            form fits. "all"; names of modules; or a function (name, module) -> bool.
        example: one batch, for timing. Needed by "auto".
        density: what the layers will have, if a Sparsifier is to prune them after the
            conversion: layers are timed at this density. Only with to="values".
        block: side of the blocks of "blocks".

    Returns:
        A module with the attribute `conversion`: the choices and times, as a table.

    Raises:
        ValueError: naming the argument, layer or mask that does not fit.
    """
    if to not in FORMS:
        raise ValueError(choice(f"there is no form {to!r}", to, FORMS))
    if to == "auto" and example is None:
        raise ValueError(
            "to='auto' times layers: pass example=, one batch of the model's input"
        )
    if example is not None and not isinstance(example, Tensor):
        raise TypeError(
            f"example is one tensor, which the model is called with, got a "
            f"{type(example).__name__}: wrap a model that takes more in one that does "
            "not"
        )
    if density is not None and (to != "values" or not 0 < density <= 1):
        raise ValueError(f"density is in (0, 1], with to='values'; got {density}, {to}")
    model = unwrapped(model)
    known, kept = _masks(model, masks)
    converted = copy.deepcopy(model)
    _zero(converted, known | dict(masks or {}))
    notes: list[str] = []
    if to in ("auto", "compact"):
        converted = compact(converted)
        notes.append(
            f"compacted: {_count(model):,} -> {_count(converted):,} parameters"
        )
        if to == "compact":
            return _with(converted, kept, notes)
        known, _ = _masks(converted, None)
    dense = copy.deepcopy(converted) if to == "auto" else converted
    converted, choices = _replace(converted, to, known, where, example, density, block)
    if any(isinstance(m, SparseConv2d) for m in converted.modules()):
        converted, reason = blocked_network(converted)
        if reason:
            notes.append(f"layer by layer, each converting its activations: {reason}")
    if to == "auto" and example is not None and any(c.form != "dense" for c in choices):
        ratio = _slower(converted, dense, example)
        if ratio:
            notes.append(f"as a whole {ratio:.2f}x the dense time: kept dense")
            converted = dense
    return _with(converted, choices + kept, notes)


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _with(module: nn.Module, choices: list[Choice], notes: list[str]) -> nn.Module:
    module.conversion = Conversion(choices, notes)  # type: ignore[assignment]
    return module


def dense_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model in values mode, for the plain model it was made of.

    >>> plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> plain[0].weight.data[0] = 0
    >>> sparse = convert(plain, to="values")
    >>> list(sparse.state_dict())[:3]
    ['0.values', '0.bias', '0.crow']
    >>> plain.load_state_dict(dense_state_dict(sparse))
    <All keys matched successfully>
    """
    state = model.state_dict()
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLayer):
            prefix = f"{name}." if name else ""
            for part in ("values", "crow", "col"):
                del state[prefix + part]
            state[f"{prefix}weight"] = layer.to_dense()
    return state


# ---- which layers --------------------------------------------------------------------


def _masks(
    model: nn.Module, masks: Mapping[str, Tensor] | None
) -> tuple[dict[str, Tensor], list[Choice]]:
    """{weight name: mask} of every layer that some form fits, and what was masked else.

    Raises:
        ValueError: for a name that is no parameter, or a mask that does not fit.
    """
    weights = {
        f"{name}.weight" if name else "weight": module.weight.detach()
        for name, module in model.named_modules()
        if type(module) in VALUES
    }
    if masks is None:
        return {name: weight != 0 for name, weight in weights.items()}, []
    if not isinstance(masks, Mapping):
        raise TypeError(
            f"masks is {{parameter name: bool mask}}, such as sparsifier.alive, got a "
            f"{type(masks).__name__}"
        )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    kept = []
    for name, mask in masks.items():
        if name not in parameters:
            refused = f"masks has {name!r}, which is no parameter of the model"
            raise ValueError(choice(refused, name, parameters, "it has"))
        shape = tuple(parameters[name].shape)
        if mask.dtype != torch.bool or mask.shape != shape:
            raise ValueError(
                f"the mask of {name!r} must be bool of shape {shape}, got {mask.dtype} "
                f"{tuple(mask.shape)}"
            )
        if name not in weights:
            owner = type(model.get_submodule(name.rpartition(".")[0])).__name__
            reason = f"{owner} has no sparse form"
            share = float(mask.float().mean())
            kept.append(Choice(name, shape, share, "dense", None, None, reason))
    full = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
    return {name: masks.get(name, full[name]) for name in full}, kept


def _selected(model: nn.Module, where: Where) -> Callable[[str, nn.Module], bool]:
    if callable(where):
        return where
    if isinstance(where, str) and where in ("auto", "all"):
        return lambda name, module: True
    names = {where} if isinstance(where, str) else set(where)
    layers = [n for n, m in model.named_modules() if type(m) in VALUES]
    unknown = sorted(names - set(layers))
    if unknown:
        refused = f"where names {unknown[0]!r}, which is no layer that a form fits"
        raise ValueError(choice(refused, unknown[0], layers, "those are"))
    return lambda name, module: name in names


def _shared(model: nn.Module) -> set[int]:
    """ids of weights that more than one module holds."""
    seen: set[int] = set()
    shared: set[int] = set()
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def _inputs(model: nn.Module, example: Tensor) -> dict[str, Tensor]:
    """What every layer is given when the model is called on the example."""
    inputs: dict[str, Tensor] = {}
    probe = copy.deepcopy(model).eval()

    def remember(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor):
                inputs[name] = args[0]

        return hook

    for name, module in probe.named_modules():
        module.register_forward_hook(remember(name))
    with torch.no_grad():
        probe(example)
    return inputs


# ---- replacing them ------------------------------------------------------------------


def _replace(
    model: nn.Module,
    to: str,
    masks: Mapping[str, Tensor],
    where: Where,
    example: Tensor | None,
    density: float | None,
    block: int,
) -> tuple[nn.Module, list[Choice]]:
    """Puts the new layers in place of the dense ones, and says why or why not."""
    inputs = {} if example is None else _inputs(model, example)
    selected, shared = _selected(model, where), _shared(model)
    make = maker("values" if to == "auto" else to, block)
    new: dict[nn.Module, nn.Module] = {}
    choices = []
    for name, module in model.named_modules():
        mask = masks.get(f"{name}.weight" if name else "weight")
        if mask is None or not selected(name, module):
            continue
        share = float(mask.float().mean())
        layer = Layer(
            name,
            module,
            mask,
            inputs.get(name),
            model.training,
            share if density is None else density,
        )
        form = "values" if to == "auto" else to
        if id(module.weight) in shared:
            choices.append(layer.choice("dense", "other modules hold the same weight"))
            continue
        try:
            made = make(module, mask)
        except ValueError as error:
            if where not in ("auto", "all") and not callable(where):
                raise
            choices.append(layer.choice("dense", str(error)))
            continue
        if where == "auto" and isinstance(module, nn.Embedding):
            form = form if share < 1 else "dense"
            choice = layer.choice(form, "saves memory, not time")
        elif where == "auto" and layer.x is not None:
            choice = layer.timed(make, form)
        else:
            choice = layer.choice(form, "not timed")
        if choice.form != "dense":
            new[module] = made
        choices.append(choice)
    return _swap(model, new), choices


def _swap(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Every place that holds an old module gets the new one."""
    if model in new:
        return new[model]
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in new:
                parent._modules[name] = new[child]
    return model


def _zero(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].masked_fill_(~mask, 0)


def _slower(converted: nn.Module, dense: nn.Module, example: Tensor) -> float | None:
    """Time of the converted model over that of the dense one, if above 1."""
    calls = [
        calibration.layer_call(m, example, dense.training) for m in (converted, dense)
    ]
    ratios = []
    for _ in range(9):
        times = []
        for call in calls:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        ratios.append(times[0] / times[1])
    ratio = median(ratios)
    return ratio if ratio > 1 else None
