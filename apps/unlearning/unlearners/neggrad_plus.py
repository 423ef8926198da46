"""NegGrad+: down the loss on what stays and up the loss on what goes, in every step."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn

from apps.unlearning.unlearner import Descent, Problem


@dataclass(frozen=True)
class NegGradPlus(Descent):
    """Minimises alpha CE(retain batch) - (1 - alpha) CE(forget batch).

    An epoch goes through the retain set once, and through the forget set as often as
    that takes. The second term has no least value: alpha near 1 lets the first hold it.

    Args:
        alpha: weight of the retain set in (0, 1]; 1 is fine-tuning.

    Source: Kurmanji et al. 2023, arXiv 2302.09880 ("NegGrad+"); Zhao et al. 2024 (RUM).
    Differs from the paper: both batches pass through the network at once, so that batch
    norm takes statistics of both.
    """

    epochs: int = 5
    lr: float = 0.01
    alpha: float = 0.95

    uses = ("retain", "forget")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha must be in (0, 1], got {self.alpha}")

    def run(self, problem: Problem) -> nn.Module:
        model = problem.model
        optimizer = problem.sgd(self.lr, self.momentum, self.weight_decay)
        for epoch in problem.epochs(self.epochs, optimizer=optimizer):
            problem.train_on(problem.retain)
            forgotten = self.forget_batches(problem, epoch)
            for x, y in problem.batches(problem.retain, self.batch, epoch):
                if self.alpha == 1:
                    loss = problem.loss(model(x), y).mean()
                else:
                    x_f, y_f = next(forgotten)
                    both = model(torch.cat([x, x_f]))
                    losses = problem.loss(both, torch.cat([y, y_f]))
                    kept, raised = losses[: len(x)].mean(), losses[len(x) :].mean()
                    loss = self.alpha * kept - (1 - self.alpha) * raised
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return model

    def forget_batches(
        self, problem: Problem, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Of the forget set again and again, each time in another order."""
        for turn in count():
            order = epoch + self.epochs * turn
            yield from problem.batches(problem.forget, self.batch, order)
