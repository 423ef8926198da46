"""A sparse model stays as sparse as it is: given masks that never move."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsekit.masks import density
from sparsekit.method import Context, Masks, Method
from sparsekit.sparsifier import Sparsifier


@dataclass(frozen=True, eq=False)
class Fixed(Method):
    """Given masks from the first step to the last."""

    sparsity: float
    masks: Mapping[str, Tensor]

    @classmethod
    def of(cls, masks: Mapping[str, Tensor]) -> "Fixed":
        return cls(1 - density(masks), masks)

    def start(self, context: Context) -> Masks:
        return {name: self.masks[name] for name in context.masks}

    def sparsity_at(self, step: int) -> float:
        return self.sparsity


def keep(
    model: nn.Module,
    optimizer: Optimizer,
    masks: Mapping[str, Tensor],
    trainable: Mapping[str, Tensor] | None = None,
) -> None:
    """Has every step of `optimizer` leave absent weights, and their moments, at zero.

    Without masks it does nothing. Their gradients are zero too, so no norm counts them.

    Args:
        masks: {parameter name: bool}, True = the weight exists.
        trainable: {parameter name: bool}, True = the entry may change; others keep
            their bits. Parameters that it does not name may change.

    Raises:
        ValueError: for a name that the model does not have, or a mask of another shape.
    """
    trainable = trainable or {}
    check(model, masks)
    check(model, trainable)
    alive = {
        name: torch.ones_like(model.get_parameter(name), dtype=torch.bool)
        for name in trainable
    } | dict(masks)
    if not alive:
        return
    sparsifier = Sparsifier(model, optimizer, Fixed.of(alive), params=list(alive))
    for name, mask in trainable.items():
        sparsifier.set_trainable(name, mask)
    sparsifier.attach()


@torch.no_grad()
def apply(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Makes absent weights zero, once.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.constant_(layer.weight, 1.0)
    >>> apply(layer, {"weight": torch.tensor([[True, False]])})
    >>> layer.weight.tolist()
    [[1.0, 0.0]]

    Raises:
        ValueError: for a name that the model does not have, or a mask of another shape.
    """
    check(model, masks)
    for name, mask in masks.items():
        model.get_parameter(name).mul_(mask)


def check(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """ValueError unless every mask is bool and has the shape of its parameter."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for name, mask in masks.items():
        if name not in shapes:
            raise ValueError(
                f"mask of {name!r}: the model has {', '.join(shapes) or 'no parameter'}"
            )
        if mask.dtype != torch.bool or mask.shape != shapes[name]:
            raise ValueError(
                f"the mask of {name!r} is bool of shape {tuple(shapes[name])}, got "
                f"{mask.dtype} of {tuple(mask.shape)}"
            )


def of_zeros(model: nn.Module) -> Masks:
    """Masks of the non-zero entries of weights that have zeros; {} if none has.

    For a sparse model that comes without its masks.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.constant_(layer.weight, 1.0)
    >>> of_zeros(layer)
    {}
    """
    found = {name: p != 0 for name, p in model.named_parameters() if p.dim() > 1}
    return {name: mask for name, mask in found.items() if not mask.all()}
