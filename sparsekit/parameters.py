"""Which parameters of a model are masked."""

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.optim import Optimizer

Params = Iterable[str] | Callable[[str, nn.Parameter], bool]


def select(
    model: nn.Module, optimizer: Optimizer, params: Params | None
) -> dict[str, nn.Parameter]:
    """The parameters to mask, by name, checked against the model and the optimizer."""
    named = dict(model.named_parameters())
    if params is None:
        embeddings = {
            id(p)
            for module in model.modules()
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
            for p in module.parameters()
        }
        names = [
            name
            for name, p in named.items()
            if p.dim() >= 2 and p.requires_grad and id(p) not in embeddings
        ]
    elif callable(params):
        names = [name for name, p in named.items() if params(name, p)]
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
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name in names:
        parameter = named[name]
        if id(parameter) not in held:
            raise ValueError(
                f"the optimizer does not hold {name!r}: build it from the same model, "
                "before the Sparsifier"
            )
        if parameter.is_meta:
            raise ValueError(
                f"{name!r} is on the meta device and has no values yet: call "
                "model.to_empty(device=...) and initialise it first"
            )
        if not parameter.dtype.is_floating_point:
            raise TypeError(
                f"{name!r} is {parameter.dtype}; only real floats are masked"
            )
        if type(parameter.data) is not Tensor:
            raise TypeError(
                f"{name!r} is a {type(parameter.data).__name__}: sharded or subclassed "
                "tensors are not supported"
            )
    return {name: named[name] for name in names}
