"""GraSP: pruning at initialisation that preserves gradient flow."""

from dataclasses import dataclass

import torch

from sparsekit.method import Context, Masks, Method, prune, require_sparsity
from sparsekit.patterns import Unstructured


@dataclass(frozen=True)
class GraSP(Method):
    """Keeps the weights with the largest w * Hg, over all tensors, before training.

    H is the Hessian and g the gradient of the objective. -w * Hg is how much the
    gradient flow g'g grows, to first order, when the weight is removed, so the highest
    w * Hg stay. Needs `Sparsifier(..., objective=lambda model: loss)` with a loss that
    can be differentiated twice; the paper uses 10 samples a class and divides logits by
    200.

    Args:
        sparsity: fraction of zeros over all masked tensors, in [0, 1).

    Source: Wang et al. 2020, arXiv 2002.07376, equation 8.
    Differs from the paper: a tensor never loses its last weight.
    """

    sparsity: float

    def __post_init__(self) -> None:
        require_sparsity(self.sparsity)

    def start(self, context: Context) -> Masks:
        weights = {n: w.clone().requires_grad_() for n, w in context.weights.items()}
        values = list(weights.values())
        loss = context.objective(weights)
        with torch.enable_grad():
            # A weight that the loss or its gradient does not depend on scores 0.
            grads = torch.autograd.grad(
                loss, values, create_graph=True, materialize_grads=True
            )
            flow = torch.stack([(g.detach() * g).sum() for g in grads]).sum()
            products = torch.autograd.grad(flow, values, materialize_grads=True)
        scores = {
            name: weight * product
            for (name, weight), product in zip(weights.items(), products, strict=True)
        }
        return prune(scores, self.sparsity, Unstructured(), across_layers=True)

    def sparsity_at(self, step: int) -> float:
        return self.sparsity
