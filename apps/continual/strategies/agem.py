"""A-GEM: averaged gradient episodic memory."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from apps.common import processes
from apps.continual.strategy import Batch, Strategy


@dataclass
class AGEM(Strategy):
    """A step may not raise the loss on the buffer, to first order.

        g' = g - (g . r) / (r . r) r   if g . r < 0, else g

    g is the gradient of the current batch, r that of a batch of the buffer, both over
    the weights that exist. With an empty buffer it is fine-tuning.

    Chaudhry et al.: Efficient lifelong learning with A-GEM, 2019, equation 11. Differs
    from the paper: the buffer is a reservoir over everything seen, the current task
    included (Mammoth's A-GEM-R), so that it needs no task boundaries.
    """

    uses_buffer = True

    def prepare(self, training: Any) -> None:
        super().prepare(training)
        config, sparsifier = training.config, training.sparsifier
        if config.backend == "values" and sparsifier.method.needs_dense_gradient:
            raise ValueError(
                f"agem's second backward pass would enter the dense gradient that "
                f"{config.method} reads: use backend masked"
            )

    def after_backward(self, batch: Batch) -> None:
        if not self.replays:
            return
        x, y, _ = self.draw()
        loss = F.cross_entropy(self.forward(x), y)
        named = dict(self.training.model.named_parameters())
        reference = torch.autograd.grad(loss, list(named.values()))
        processes.average((), *reference)
        masks = self.training.masks
        with torch.no_grad():
            grads, others = [], []
            for (name, parameter), r in zip(named.items(), reference, strict=True):
                assert parameter.grad is not None
                if name in masks and masks[name].shape == r.shape:
                    r = r * masks[name]  # absent weights take no part
                grads.append(parameter.grad)
                others.append(r)
            project(grads, others)

    def after_step(self, batch: Batch) -> None:
        self.training.buffer.add(batch.raw, batch.y)


def project(grads: list[Tensor], reference: list[Tensor]) -> None:
    """Takes the component against `reference` out of `grads`, in place.

    >>> g = [torch.tensor([1.0, 0.0])]
    >>> project(g, [torch.tensor([-1.0, 1.0])])
    >>> g[0]
    tensor([0.5000, 0.5000])
    """
    dot = sum((g * r).sum() for g, r in zip(grads, reference, strict=True))
    if dot >= 0:
        return
    scale = dot / sum(r.square().sum() for r in reference)
    for g, r in zip(grads, reference, strict=True):
        g.sub_(scale * r)
