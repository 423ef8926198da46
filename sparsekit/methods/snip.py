"""SNIP: pruning at initialisation by connection sensitivity."""

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
from sparsekit.patterns import Unstructured
from sparsekit.scores import saliency


@dataclass(frozen=True)
class SNIP(Method):
    """Keeps the weights with the largest |w g|, over all tensors, once.

    The gradient is the training loop's own: of the batch of step `at`, or of several
    batches if they are accumulated before the step (|sum g|, as in the released code).

    Args:
        sparsity: fraction of zeros over all masked tensors, in [0, 1).
        at: the step that prunes; the model is dense before.

    Source: Lee et al. 2019, arXiv 1810.02340, equation 4.
    Differs from the paper: a tensor never loses its last weight.
    """

    sparsity: float
    at: int = 0

    needs_dense_gradient = True

    def __post_init__(self) -> None:
        require_sparsity(self.sparsity)
        require_step(at=self.at)

    def start(self, context: Context) -> Masks:
        return dense_masks(context)

    def due(self, step: int) -> bool:
        return step == self.at

    def update(self, context: Context) -> Masks:
        scores = {}
        for name, weight in context.weights.items():
            grad = context.grads[name]
            if grad is None:
                raise ValueError(
                    f"SNIP scores by the gradient, and {name!r} has none in step "
                    f"{context.step}: leave it out through params"
                )
            scores[name] = saliency(weight, grad)
        return prune(scores, self.sparsity, Unstructured(), across_layers=True)

    def sparsity_at(self, step: int) -> float:
        return self.sparsity if step >= self.at else 0.0
