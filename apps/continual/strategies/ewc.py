"""EWC: elastic weight consolidation, in its online form."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from apps.continual.fisher import diagonal_fisher
from apps.continual.strategy import Batch, Strategy


@dataclass
class EWC(Strategy):
    """Holds weights that mattered near where they were.

        loss = CE(f(x), y) + strength sum_i F_i (w_i - w*_i)^2
        at the end of a task:  F = gamma F + Fisher(w),  w* = w

    Fisher is the diagonal, from gradients of single examples (`fisher.py`): of the
    labels ("empirical"), or expected under the model ("exact"). With strength 0 it is
    fine-tuning. samples: of a task's training examples, at most so many.

    Kirkpatrick et al. 2017, equation 3, whose lambda is 2 strength; Schwarz et al.:
    Progress and compress, 2018 (one running F). Mammoth's for Split-MNIST: strength 90,
    gamma 1.
    """

    strength: float = 90.0
    gamma: float = 1.0
    fisher: Literal["empirical", "exact"] = "empirical"
    samples: int = 1000

    SAVED = ("importance", "anchor")
    needs_tasks = True
    masked_only = True

    def __post_init__(self) -> None:
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def loss_terms(self, batch: Batch) -> Iterator[Tensor]:
        yield self.current_loss(batch)
        if self.anchor and self.strength:
            yield self.strength * self.penalty()

    def penalty(self) -> Tensor:
        """sum_i F_i (w_i - w*_i)^2."""
        return torch.stack(
            [
                (self.importance[name] * (w - self.anchor[name]).square()).sum()
                for name, w in self.training.model.named_parameters()
            ]
        ).sum()

    def end_task(self, task: int) -> None:
        if not self.strength:
            return
        training = self.training
        part = training.stream.tasks[task].train
        n = min(self.samples, len(part))
        x = training.stream.view(part.raw(slice(0, n)).to(training.device))
        y = part.y[:n].to(training.device) if self.fisher == "empirical" else None
        found = diagonal_fisher(training.model, x, y, self.restricted)
        passes = 1 if self.fisher == "empirical" else training.stream.n_classes
        training.flops.add_forward(n * passes, back_propagated=True)
        for name, weight in training.model.named_parameters():
            before = self.importance.get(name, torch.zeros_like(found[name]))
            self.importance[name] = self.gamma * before + found[name]
            self.anchor[name] = weight.detach().clone()
