"""Dynamic sparse learning, for embedding tables and whatever else is masked."""

from dataclasses import dataclass
from math import ceil

from torch import Tensor

from sparsekit.allocation import uniform
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

FLOOR = 0.005  # of the share that moves


@dataclass(frozen=True)
class DSL(Method):
    """Drops the smallest weights, grows where the summed gradient is largest.

    Every `every` steps, r = ceil(rho_t n) of the n weights of a tensor move, or those
    that are exactly zero if they are more:

    rho_t = 0.005 + (fraction - 0.005) (1 + cos(pi t / end)) / 2

    A weight dropped and grown in the same move keeps its value and moments.

    Args:
        sparsity: fraction of zeros over all masked tensors, constant, in [0, 1).
        every: dT, steps between two moves.
        end: T, last step that may move; the release explores to the end of training.
        fraction: rho_0, share of a tensor's weights that moves at first.
        gradient_steps: the gradient is summed over that many steps before a move. 1 is
            the release: the last mini-batch alone decides which users and items grow.
        allocation: (shapes, sparsity) -> active weights a tensor.

    Source: Wang et al. 2024, arXiv 2402.02855, and its released code; the sum over
    steps is from SparseRec, arXiv 2411.12205.
    Differs from the release: counts are exact, at the start too; connections move
    before the optimizer's step instead of after it; dropped weights lose their moments
    and absent ones gather none, where Adam goes on for all of them there.
    """

    sparsity: float
    every: int = 3000
    end: int = 100_000
    fraction: float = 0.5
    gradient_steps: int = 1
    allocation: Allocation = uniform

    needs_dense_gradient = True

    def __post_init__(self) -> None:
        require_sparsity(self.sparsity)
        require_steps(every=self.every, end=self.end)
        require_steps(gradient_steps=self.gradient_steps)
        require_fraction(fraction=self.fraction)

    def start(self, context: Context) -> Masks:
        return random_masks(context, self.allocation(context.shapes, self.sparsity))

    def due(self, step: int) -> bool:
        return periodic(step, self.every, self.every, self.end)

    def update(self, context: Context) -> Masks:
        rho = cosine(self.fraction, self.end, floor=FLOOR)(context.step)
        masks = {}
        for name, mask in context.masks.items():
            grad = context.grads[name]
            if grad is None:  # the parameter took no part since the last move
                masks[name] = mask
                continue
            masks[name] = self._moved(mask, context.weights[name], grad, rho)
        return masks

    def sparsity_at(self, step: int) -> float:
        return self.sparsity

    def _moved(self, mask: Tensor, weight: Tensor, grad: Tensor, rho: float) -> Tensor:
        size = magnitude(weight)
        zeros = int((mask & (size == 0)).sum())  # grown, and not touched since
        moved = max(ceil(rho * int(mask.sum())), zeros)
        return drop_and_grow(mask, size, gradient(grad), moved)
