"""Random labels: teach the model nonsense about what it must forget."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from apps.common.seeds import mixed
from apps.unlearning.unlearner import Descent, Problem


@dataclass(frozen=True)
class RandomLabels(Descent):
    """In each epoch CE on the forget set with labels drawn anew, then CE on the retain
    set with true ones.

    Args:
        other_only: draw among the wrong labels; else among all, the true one included
            with probability 1/K, as published.

    Source: Golatkar et al. 2020; as "RL" in Fan et al. 2024 (SalUn), arXiv 2310.12508.
    """

    other_only: bool = False

    uses = ("retain", "forget")

    def run(self, problem: Problem) -> nn.Module:
        optimizer = problem.sgd(self.lr, self.momentum, self.weight_decay)
        descend(self, problem, optimizer)
        return problem.model


def descend(
    method: RandomLabels, problem: Problem, optimizer: torch.optim.Optimizer
) -> None:
    """The epochs of random labels: all forget batches, then all retain batches."""
    classes = problem.classes()
    for epoch in problem.epochs(method.epochs, optimizer=optimizer):
        problem.train_on(problem.forget)
        for x, y in relabelled(problem, method, epoch, classes):
            step(problem, optimizer, x, y)
        problem.train_on(problem.retain)
        for x, y in problem.batches(problem.retain, method.batch, epoch):
            step(problem, optimizer, x, y)


def step(problem: Problem, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor):
    """One step down the mean loss of a batch."""
    loss = problem.loss(problem.model(x), y).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def relabelled(
    problem: Problem, method: RandomLabels, epoch: int, classes: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of the forget set with random labels."""
    generator = torch.Generator().manual_seed(mixed(problem.seed, 13, epoch))
    for x, y in problem.batches(problem.forget, method.batch, epoch):
        least = 1 if method.other_only else 0
        shift = torch.randint(least, classes, y.shape, generator=generator)
        yield x, (y + shift.to(y.device)) % classes
