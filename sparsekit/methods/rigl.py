"""RigL: rigging the lottery."""

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
    require_steps,
)
from sparsekit.schedules import cosine
from sparsekit.scores import gradient, magnitude


@dataclass(frozen=True)
class RigL(Method):
    """Drops the smallest weights and grows where the gradient is largest.

    k = f(t) n weights of a tensor move, f(t) = fraction / 2 (1 + cos(pi t / end)). The
    step that moves them updates no weight. A weight dropped and grown in the same move
    keeps its value and moments, as in the released code.

    Args:
        sparsity: fraction of zeros over all masked tensors, constant, in [0, 1).
        every: steps between two moves.
        end: first step that moves nothing any more; about 3/4 of the training.
        fraction: alpha, share of a tensor's weights that moves at first.
        allocation: (shapes, sparsity) -> active weights a tensor.

    Source: Evci et al. 2020, arXiv 1911.11134, algorithm 1.
    """

    sparsity: float
    every: int = 100
    end: int = 25_000
    fraction: float = 0.3
    allocation: Allocation = erk

    needs_dense_gradient = True
    replaces_step = True

    def __post_init__(self) -> None:
        require_sparsity(self.sparsity)
        require_steps(every=self.every, end=self.end)
        require_fraction(fraction=self.fraction)

    def start(self, context: Context) -> Masks:
        return random_masks(context, self.allocation(context.shapes, self.sparsity))

    def due(self, step: int) -> bool:
        return periodic(step, self.every, self.every, self.end - 1)

    def update(self, context: Context) -> Masks:
        fraction = self.fraction * cosine(1.0, self.end)(context.step)
        masks = {}
        for name, mask in context.masks.items():
            weight, grad = context.weights[name], context.grads[name]
            if grad is None:  # the parameter took no part in this step
                masks[name] = mask
                continue
            moved = round(fraction * int(mask.sum()))
            masks[name] = drop_and_grow(mask, magnitude(weight), gradient(grad), moved)
        return masks

    def sparsity_at(self, step: int) -> float:
        return self.sparsity
