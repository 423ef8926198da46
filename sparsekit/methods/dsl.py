"""Dynamic sparse learning, for embedding tables and whatever else is masked."""

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from sparsekit.allocation import uniform
from sparsekit.masks import drop_and_grow, topk_mask, topk_rows
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
from sparsekit.scores import gradient, magnitude, random

FLOOR = 0.005  # of the share that moves


@dataclass(frozen=True)
class DSL(Method):
    """Drops the smallest weights, grows where the summed gradient is largest.

    Every `every` steps, r = ceil(rho_t n) of the n weights of a tensor move, or those
    that are exactly zero if they are more:

    rho_t = 0.005 + (fraction - 0.005) (1 + cos(pi t / end)) / 2

    With `by_row` each row of a tensor is given the same number of weights, to within
    one, and moves its own: n and r are then those of a row. A weight dropped and grown
    in the same move keeps its value and moments.

    Args:
        sparsity: fraction of zeros over all masked tensors, constant, in [0, 1).
        every: dT, steps between two moves.
        end: T, last step that may move; the release explores to the end of training.
        fraction: rho_0, share of the weights that moves at first.
        gradient_steps: the gradient is summed over that many steps before a move. 1 is
            the release: the last mini-batch alone decides which users and items grow.
        by_row: False is the release: weights flow to rows with large gradients.
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
    by_row: bool = False
    allocation: Allocation = uniform

    needs_dense_gradient = True

    def __post_init__(self) -> None:
        require_sparsity(self.sparsity)
        require_steps(every=self.every, end=self.end)
        require_steps(gradient_steps=self.gradient_steps)
        require_fraction(fraction=self.fraction)

    def start(self, context: Context) -> Masks:
        counts = self.allocation(context.shapes, self.sparsity)
        if not self.by_row:
            return random_masks(context, counts)
        return {
            name: random_rows(weight, counts[name], context.generator)
            for name, weight in context.weights.items()
        }

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
            move = moved_by_row if self.by_row else moved
            masks[name] = move(mask, context.weights[name], grad, rho)
        return masks

    def sparsity_at(self, step: int) -> float:
        return self.sparsity


def moved(mask: Tensor, weight: Tensor, grad: Tensor, rho: float) -> Tensor:
    """The mask after a move in which all entries compete."""
    size = magnitude(weight)
    zeros = int((mask & (size == 0)).sum())  # grown, and not touched since
    n_moved = max(ceil(rho * int(mask.sum())), zeros)
    return drop_and_grow(mask, size, gradient(grad), n_moved)


def moved_by_row(mask: Tensor, weight: Tensor, grad: Tensor, rho: float) -> Tensor:
    """The mask after a move in which the entries of a row compete."""
    size, counts = magnitude(weight), mask.flatten(1).sum(1)
    zeros = (mask & (size == 0)).flatten(1).sum(1)
    n_moved = torch.maximum((rho * counts.double()).ceil().long(), zeros)
    kept = topk_rows(size, counts - n_moved, among=mask)
    return kept | topk_rows(gradient(grad), n_moved, among=~kept)


def random_rows(weight: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """A random mask whose rows have the same number of weights, to within one."""
    counts = torch.full((len(weight),), count // len(weight))
    counts += topk_mask(random(counts.shape, generator), count % len(weight))
    noise = random(weight.shape, generator)
    return topk_rows(noise, counts).to(weight.device)
