"""Which weights of a model a Sparsifier owns."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsekit.execution.layer import SparseLayer

Params = Iterable[str] | Callable[[str, nn.Parameter], bool]


Held = nn.Parameter | SparseLayer


def select(
    model: nn.Module, optimizer: Optimizer, params: Params | None
) -> dict[str, Held]:
    """What holds the weights to sparsify, checked against the model and the optimizer.

    A layer in values mode has the name and the place of the dense weight in its stead.
    """
    named = weights(model)
    if params is None:
        names = _by_default(model, named)
    elif callable(params):
        names = [name for name, held in named.items() if params(name, _shown(held))]
    else:
        names = [params] if isinstance(params, str) else list(params)
    unknown = [name for name in names if name not in named]
    if unknown:
        raise ValueError(
            f"the model has no parameter {unknown[0]!r}; it has {', '.join(named)}"
        )
    if not names:
        raise ValueError(
            "no parameter to mask: the model has no trainable parameter with at least "
            "2 dimensions outside embeddings; name some through params=[...]"
        )
    held_by_optimizer = {id(p) for g in optimizer.param_groups for p in g["params"]}
    for name in names:
        held = named[name]
        parameter = held.values if isinstance(held, SparseLayer) else held
        if id(parameter) not in held_by_optimizer:
            raise ValueError(
                f"the optimizer does not hold {name!r}: build it from the same model, "
                "before the Sparsifier"
            )
        _require_trainable(name, parameter)
    return {name: named[name] for name in names}


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


def _by_default(model: nn.Module, named: dict[str, Held]) -> list[str]:
    embeddings = {
        id(p)
        for module in model.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        for p in module.parameters()
    }
    names = []
    for name, held in named.items():
        if isinstance(held, SparseLayer):
            if held.by_default and held.values.requires_grad:
                names.append(name)
        elif held.dim() >= 2 and held.requires_grad and id(held) not in embeddings:
            names.append(name)
    return names


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
