"""SynFlow: pruning at initialisation without data."""

from dataclasses import dataclass
from math import isfinite

import torch

from sparsekit.method import (
    Context,
    Masks,
    Method,
    dense_masks,
    prune,
    require_sparsity,
    require_steps,
)
from sparsekit.patterns import Unstructured
from sparsekit.scores import saliency


@dataclass(frozen=True)
class SynFlow(Method):
    """Keeps the weights with the largest synaptic flow |w dR/dw|, in many rounds.

    R is the network's summed output for an all-ones input with every parameter replaced
    by its absolute value: `Sparsifier(..., objective=lambda model: model(ones).sum())`.
    Round i of n keeps the density d^(i/n); a single round would remove whole layers.
    Batch norm runs in evaluation with mean 0 and variance 1. No parameter of the model
    is written, so an error in the objective leaves it as it was. The flow is a product
    over layers: a deep network may need `model.double()`.

    Args:
        sparsity: fraction of zeros over all masked tensors, in [0, 1).
        rounds: n.

    Source: Tanaka et al. 2020, arXiv 2006.05467, algorithm 1.
    Differs from the paper: a tensor never loses its last weight.
    """

    sparsity: float
    rounds: int = 100

    def __post_init__(self) -> None:
        require_sparsity(self.sparsity)
        require_steps(rounds=self.rounds)

    def start(self, context: Context) -> Masks:
        masks = dense_masks(context)
        positive = {n: _positive(n, t) for n, t in context.state.items()}
        for i in range(1, self.rounds + 1):
            weights = {
                name: (positive[name] * mask).requires_grad_()
                for name, mask in masks.items()
            }
            flow = context.objective(positive | weights, training=False)
            _require_flow(flow.item(), dense=i == 1)
            grads = torch.autograd.grad(
                flow, list(weights.values()), materialize_grads=True
            )
            scores = {
                name: saliency(weight, grad)
                for (name, weight), grad in zip(weights.items(), grads, strict=True)
            }
            sparsity = self.sparsity
            if i < self.rounds:
                sparsity = 1 - (1 - self.sparsity) ** (i / self.rounds)
            masks = prune(
                scores, sparsity, Unstructured(), across_layers=True, among=masks
            )
        return masks

    def sparsity_at(self, step: int) -> float:
        return self.sparsity


def _require_flow(flow: float, dense: bool) -> None:
    if not isfinite(flow) or (dense and flow == 0):
        raise ValueError(
            f"the synaptic flow is {flow}: a product over layers that leaves the range "
            "of the model's floats, or an objective that ignores the weights. Build "
            "the Sparsifier from model.double(), and then model.float()"
        )


def _positive(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if name.endswith("running_mean"):
        return torch.zeros_like(tensor)
    if name.endswith("running_var"):
        return torch.ones_like(tensor)
    return tensor.abs() if tensor.is_floating_point() else tensor
