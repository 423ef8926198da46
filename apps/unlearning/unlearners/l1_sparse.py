"""Fine-tuning with an l1 penalty: unlearning that makes the model sparse on the way."""

from dataclasses import dataclass

import torch
from torch import nn

from apps.unlearning.unlearner import Descent, Problem


@dataclass(frozen=True)
class L1Sparse(Descent):
    """Minimises CE(retain) + a(e) |theta|_1 from the (dense) original weights.

        a(e) = gamma (1 - e / (epochs - plain))  for e < epochs - plain, else 0

    so the penalty decays to zero; plain = epochs makes it constant. By a sub-gradient,
    as published, no weight ever becomes exactly zero. With prox = True each step is
    followed by w <- sign(w) max(|w| - lr a, 0) for weight matrices, biases and norms
    excluded, which gives true zeros.

    Args:
        gamma: of the penalty; 0 is fine-tuning.
        plain: E_0, final epochs without penalty.
        prox: the proximal step instead of the sub-gradient.

    Source: Jia et al. 2023, arXiv 2304.04934, eq. 3; schedule as in their code. Differs
    from the paper: prox.
    """

    gamma: float = 5e-4
    plain: int = 0
    prox: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma >= 0:
            raise ValueError(f"gamma must be at least 0, got {self.gamma}")
        if not 0 <= self.plain <= self.epochs:
            raise ValueError(f"plain is 0 ... epochs = {self.epochs}, got {self.plain}")

    def penalty(self, epoch: int) -> float:
        """a(epoch).

        >>> [L1Sparse(epochs=4, gamma=1.0).penalty(e) for e in range(4)]
        [1.0, 0.75, 0.5, 0.25]
        """
        if self.plain == self.epochs:
            return self.gamma
        decays = self.epochs - self.plain
        return self.gamma * max(0.0, 1 - epoch / decays)

    def run(self, problem: Problem) -> nn.Module:
        model = problem.model
        optimizer = problem.sgd(self.lr, self.momentum, self.weight_decay)
        for epoch in problem.epochs(self.epochs, optimizer=optimizer):
            a = self.penalty(epoch)
            problem.train_on(problem.retain)
            for x, y in problem.batches(problem.retain, self.batch, epoch):
                loss = problem.loss(model(x), y).mean()
                if a and not self.prox:
                    loss = loss + a * sum(p.abs().sum() for p in model.parameters())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if a and self.prox:
                    soft_threshold(model, self.lr * a)
            zeros = [float((p == 0).double().mean()) for p in matrices(model)]
            problem.record(epoch=epoch + 1, zeros=sum(zeros) / max(1, len(zeros)))
        return model


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights of layers, without biases and norms."""
    return [p for p in model.parameters() if p.dim() > 1]


@torch.no_grad()
def soft_threshold(model: nn.Module, amount: float) -> None:
    """w <- sign(w) max(|w| - amount, 0) for every weight matrix."""
    for parameter in matrices(model):
        shrunk = torch.nn.functional.softshrink(parameter, amount)
        parameter.copy_(shrunk)
