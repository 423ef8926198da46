"""Random search over sparse sub-networks: the baseline of architecture search."""

from dataclasses import dataclass

import torch

from sparsekit.allocation import erk
from sparsekit.method import (
    Allocation,
    Context,
    Masks,
    Method,
    random_masks,
    require_sparsity,
    require_steps,
)


@dataclass(frozen=True)
class RandomSearch(Method):
    """Draws random masks and keeps the one with the lowest objective.

    Needs `Sparsifier(..., objective=lambda model: loss)`. The candidates share the
    model's current weights and are evaluated without training; with `candidates=1` it
    is `Static`.

    Args:
        sparsity: fraction of zeros over all masked tensors, in [0, 1).
        candidates: how many masks are drawn.
        allocation: (shapes, sparsity) -> active weights a tensor.

    Source: Random Search as a Baseline for Sparse Neural Network Architecture Search,
    arXiv 2403.08265.
    Differs from the paper: searches over connections, not over nodes, and evaluates a
    candidate before training instead of after it.
    """

    sparsity: float
    candidates: int = 16
    allocation: Allocation = erk

    def __post_init__(self) -> None:
        require_sparsity(self.sparsity)
        require_steps(candidates=self.candidates)

    @torch.no_grad()
    def start(self, context: Context) -> Masks:
        counts = self.allocation(context.shapes, self.sparsity)
        best, lowest = random_masks(context, counts), float("inf")
        for i in range(self.candidates):
            masks = best if i == 0 else random_masks(context, counts)
            values = {name: w * masks[name] for name, w in context.weights.items()}
            loss = float(context.objective(values, training=False))
            if loss < lowest:
                best, lowest = masks, loss
        return best

    def sparsity_at(self, step: int) -> float:
        return self.sparsity
