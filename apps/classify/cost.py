"""FLOPs of a training."""

from collections.abc import Mapping

from torch import Tensor, nn

from sparsekit.accounting import forward_flops
from sparsekit.method import Method

Masks = Mapping[str, Tensor]


class TrainingFlops:
    """FLOPs of the training steps so far, by RigL's convention.

    A step costs f_S forward and 2 f_S backward, with f_S the forward FLOPs that skip
    absent weights, at the densities of that step; where a method needs the dense weight
    gradient, 2 f_S + f_D. An evaluation of the objective that a method asks for before
    training counts as a dense step; that of a search's candidate as f_S. This is what
    is needed, not what masked dense kernels execute, which is 3 f_D at any sparsity.
    """

    def __init__(self, model: nn.Module, sample: Tensor):
        self.flops = forward_flops(model, sample)  # sample: [1, C, S, S]
        self.dense, self.sparse, self.total = self.flops.total, self.flops.total, 0
        self.candidate_samples = 0

    def update(self, masks: Masks) -> None:
        """Takes the densities of new masks for the steps that follow."""
        self.sparse = self.flops.sparse(masks).total
        self.total += self.candidate_samples * self.sparse
        self.candidate_samples = 0

    def add_step(self, samples: int, dense_gradient: bool) -> None:
        last = self.dense if dense_gradient else self.sparse
        self.total += samples * (2 * self.sparse + last)

    def add_objective(self, samples: int) -> None:
        self.total += samples * 3 * self.dense

    def add_candidate(self, samples: int) -> None:
        """A forward pass with masks as dense as those of the next `update`."""
        self.candidate_samples += samples


def needs_dense_gradient(method: Method | None, step: int) -> bool:
    return method is not None and method.needs_dense_gradient and method.due(step)
