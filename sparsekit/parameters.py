"""Which weights of a model a Sparsifier owns."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim import Optimizer

from sparsekit.execution.layer import SparseLayer
from sparsekit.spelling import choice

Params = Iterable[str] | Callable[[str, nn.Parameter], bool]
Held = nn.Parameter | SparseLayer

DENSE = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)
# Whose parameters of shape (1, ...) are weights with one output, and no positions.
LAYERS = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
)


def select(
    model: nn.Module,
    optimizer: Optimizer,
    params: Params | None,
    exclude: Iterable[str] = (),
) -> dict[str, Held]:
    """What holds the weights to sparsify, checked against the model and the optimizer.

    A layer in values mode has the name and the place of the dense weight in its stead.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {optimizer!r}")
    named = weights(model)
    left_out = set(_expanded("exclude", exclude, model, named, list(named)))
    if callable(params):
        names = [name for name, held in named.items() if params(name, _shown(held))]
    else:
        default = _by_default(model, named)
        names = (
            default
            if params is None
            else _expanded("params", params, model, named, default)
        )
    names = [name for name in names if name not in left_out]
    if not names:
        raise ValueError(
            "no parameter to mask: the model has no trainable parameter with at least "
            "2 dimensions outside embeddings and norms, or none is left by params and "
            "exclude; name some through params=[...]"
        )
    if params is None:
        _require_themselves(model, names)
    held_by_optimizer = {id(p) for g in optimizer.param_groups for p in g["params"]}
    for name in names:
        held = named[name]
        parameter = held.values if isinstance(held, SparseLayer) else held
        if id(parameter) not in held_by_optimizer:
            raise ValueError(
                f"the optimizer does not hold {name!r}: build it from the same model, "
                "before the Sparsifier, or leave the weight out with exclude=[...]"
            )
        _require_trainable(name, parameter)
    return {name: named[name] for name in names}


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DistributedDataParallel and DataParallel."""
    while True:
        if isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def weights(model: nn.Module) -> dict[str, Held]:
    """Every parameter by name, and layers in values mode as "<layer>.weight"."""
    layers = {
        id(module.values): module
        for module in model.modules()
        if isinstance(module, SparseLayer)
    }
    found: dict[str, Held] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in layers:
            found[name.removesuffix("values") + "weight"] = layers[id(parameter)]
        else:
            found[name] = parameter
    return found


def _expanded(
    what: str,
    given: Iterable[str],
    model: nn.Module,
    named: dict[str, Held],
    of_modules: list[str],
) -> list[str]:
    """Names of parameters; a module's stands for those of `of_modules` inside it."""
    names: list[str] = []
    for name in [given] if isinstance(given, str) else given:
        if not isinstance(name, str):
            raise TypeError(f"{what} holds names, as strings; got a {type(name)}")
        inside = [n for n in of_modules if n.startswith(f"{name}.")]
        if name not in named and not inside:
            raise ValueError(_unknown(what, name, model, named))
        names += [name] if name in named else inside
    return list(dict.fromkeys(names))


def _unknown(what: str, name: str, model: nn.Module, named: dict[str, Held]) -> str:
    """Why a name is refused: it is a second one, holds nothing, or is misspelt."""
    every = dict(model.named_parameters(remove_duplicate=False))
    if name in every:
        same = [n for n, p in named.items() if p is every[name]]
        first = same[0] if same else name.removesuffix("values") + "weight"
        return f"{what}: the tensor {name!r} goes by the name {first!r}: give that one"
    modules = [n for n, _ in model.named_modules() if n]
    if name in modules:
        return (
            f"{what}: no parameter of the module {name!r} is masked by default: name "
            f"those that are meant, of {', '.join(named)}"
        )
    refused = f"{what}: the model has no parameter {name!r}"
    return choice(refused, name, [*named, *modules], "it has")


def _by_default(model: nn.Module, named: dict[str, Held]) -> list[str]:
    """Matrices that multiply: no embeddings, norms, positions and class tokens."""
    dense = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            single = parameter.shape[:1] == (1,) and not isinstance(module, LAYERS)
            if single or isinstance(module, DENSE):
                dense.add(id(parameter))
    names = []
    for name, held in named.items():
        if isinstance(held, SparseLayer):
            if held.by_default and held.values.requires_grad:
                names.append(name)
        elif held.dim() >= 2 and held.requires_grad and id(held) not in dense:
            names.append(name)
    return names


def _require_themselves(model: nn.Module, names: list[str]) -> None:
    """Raises if a weight is computed from parameters: their zeros are not its own."""
    for name in names:
        owner, _, _ = name.partition(".parametrizations.")
        module = model.get_submodule(name.rpartition(".")[0])
        old = any(isinstance(h, WeightNorm) for h in module._forward_pre_hooks.values())
        if old or (owner != name and is_parametrized(model.get_submodule(owner))):
            raise ValueError(
                f"a weight is computed from {name!r}, by weight norm or another "
                "parametrization, so that zeros there need not be zeros of the weight, "
                "and weight norm divides by the norm of what is left: remove it "
                "(torch.nn.utils.parametrize.remove_parametrizations), leave the layer "
                "out with exclude=[...], or name what is meant in params=[...]"
            )


def _shown(held: Held) -> nn.Parameter:
    """What a function of the user sees: of a layer, the dense weight's shape only."""
    if not isinstance(held, SparseLayer):
        return held
    values = held.values
    dense = torch.empty(held.dense_shape, dtype=values.dtype, device="meta")
    return nn.Parameter(dense, requires_grad=values.requires_grad)


def _require_trainable(name: str, parameter: nn.Parameter) -> None:
    if parameter.is_meta:
        raise ValueError(
            f"{name!r} is on the meta device and has no values yet: call "
            "model.to_empty(device=...) and initialise it first"
        )
    if not parameter.dtype.is_floating_point:
        raise TypeError(f"{name!r} is {parameter.dtype}; only real floats are masked")
    if type(parameter.data) is not Tensor:
        raise TypeError(
            f"{name!r} is a {type(parameter.data).__name__}: sharded or subclassed "
            "tensors are not supported"
        )
