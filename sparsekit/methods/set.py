"""Sparse evolutionary training."""

from dataclasses import dataclass

from sparsekit.allocation import erk
from sparsekit.masks import drop_and_grow
from sparsekit.method import (
    Allocation,
    Context,
    Masks,
    Method,
    periodic,
    random_masks,
    require_fraction,
    require_sparsity,
    require_step,
    require_steps,
)
from sparsekit.scores import magnitude, random


@dataclass(frozen=True)
class SET(Method):
    """Every so often drops the smallest weights and grows as many at random.

    Args:
        sparsity: fraction of zeros over all masked tensors, constant, in [0, 1).
        every: steps between two moves; the paper moves once an epoch.
        end: last step that may move; None = never stop.
        fraction: zeta, share of a tensor's weights that moves.
        allocation: (shapes, sparsity) -> active weights a tensor.

    Source: Mocanu et al. 2018, arXiv 1707.04780, algorithm 1.
    Differs from the paper: drops by |w| over the tensor instead of the same share of
    positive and of negative weights, and grown weights start at zero instead of
    N(0, 0.1^2), as in later work; random positions are drawn without replacement, so
    that counts are exact.
    """

    sparsity: float
    every: int = 100
    end: int | None = None
    fraction: float = 0.3
    allocation: Allocation = erk

    def __post_init__(self) -> None:
        require_sparsity(self.sparsity)
        require_steps(every=self.every)
        require_fraction(fraction=self.fraction)
        if self.end is not None:
            require_step(end=self.end)

    def start(self, context: Context) -> Masks:
        return random_masks(context, self.allocation(context.shapes, self.sparsity))

    def due(self, step: int) -> bool:
        return periodic(step, self.every, self.every, self.end)

    def update(self, context: Context) -> Masks:
        masks = {}
        for name, mask in context.masks.items():
            weight = context.weights[name]
            noise = random(weight.shape, context.generator).to(weight.device)
            moved = round(self.fraction * int(mask.sum()))
            masks[name] = drop_and_grow(mask, magnitude(weight), noise, moved)
        return masks

    def sparsity_at(self, step: int) -> float:
        return self.sparsity
