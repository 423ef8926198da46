"""Static random sparsity: the baseline that every other method must beat."""

from dataclasses import dataclass

from sparsekit.allocation import erk
from sparsekit.method import (
    Allocation,
    Context,
    Masks,
    Method,
    random_masks,
    require_sparsity,
)


@dataclass(frozen=True)
class Static(Method):
    """Random connections, chosen before training and never changed.

    Args:
        sparsity: fraction of zeros over all masked tensors, in [0, 1).
        allocation: (shapes, sparsity) -> active weights a tensor: `erk` or another of
            `sparsekit.allocation`.

    Source: Liu et al. 2022, arXiv 2202.02643 ("random pruning").
    """

    sparsity: float
    allocation: Allocation = erk

    def __post_init__(self) -> None:
        require_sparsity(self.sparsity)

    def start(self, context: Context) -> Masks:
        return random_masks(context, self.allocation(context.shapes, self.sparsity))

    def sparsity_at(self, step: int) -> float:
        return self.sparsity
