"""One-shot magnitude pruning."""

from dataclasses import dataclass

from sparsekit.method import (
    Context,
    Masks,
    Method,
    dense_masks,
    prune,
    require_sparsity,
    require_step,
)
from sparsekit.patterns import Pattern, Unstructured
from sparsekit.scores import magnitude


@dataclass(frozen=True)
class OneShot(Method):
    """Removes the smallest weights once, then keeps the mask.

    Args:
        sparsity: fraction of zeros over all masked tensors, in [0, 1).
        at: step of the pruning; 0 prunes when the Sparsifier is built.
        across_layers: one threshold over all tensors instead of one a tensor.
        pattern: which entries go together; `NM(2, 4)`, `Block(4, 4)`, `Rows()`, ...

    Source: Janowsky 1989; Han et al. 2015, arXiv 1506.02626.
    """

    sparsity: float
    at: int = 0
    across_layers: bool = False
    pattern: Pattern = Unstructured()

    def __post_init__(self) -> None:
        require_sparsity(self.sparsity)
        require_step(at=self.at)

    def start(self, context: Context) -> Masks:
        return self.update(context) if self.at == 0 else dense_masks(context)

    def due(self, step: int) -> bool:
        return step == self.at > 0

    def update(self, context: Context) -> Masks:
        scores = {name: magnitude(w) for name, w in context.weights.items()}
        return prune(scores, self.sparsity, self.pattern, self.across_layers)

    def sparsity_at(self, step: int) -> float:
        return self.sparsity if step >= self.at else 0.0
