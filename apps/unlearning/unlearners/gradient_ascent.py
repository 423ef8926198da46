"""Gradient ascent on the forget set, with a bound: alone it has none."""

import copy
from dataclasses import dataclass
from typing import Literal

from torch import nn

from apps.common.images import Split
from apps.common.training import evaluate, freeze_batchnorm
from apps.unlearning.unlearner import Descent, Problem


@dataclass(frozen=True)
class GradientAscent(Descent):
    """theta <- theta + lr grad CE(forget), until the forget set looks unseen.

    After each epoch it stops if accuracy on the forget set has fallen to that on
    held-out data (to 0 if a whole class is forgotten), and keeps the better of the last
    two states: the loss has no largest value, so that going on destroys the model.

    Args:
        batchnorm: frozen, or train: running statistics drift towards the forget set, as
            in the paper's code.
        bound: False takes all epochs, as published.

    Source: Graves et al. 2021; Thudi et al. 2022; as "GA" in Jia et al. 2023, arXiv
    2304.04934 (5 epochs, lr 1e-4). Differs from the paper: the bound, and frozen batch
    norm.
    """

    epochs: int = 5
    lr: float = 1e-4
    batchnorm: Literal["frozen", "train"] = "frozen"
    bound: bool = True

    uses = ("forget",)

    def run(self, problem: Problem) -> nn.Module:
        model, target = problem.model, self.target(problem)
        optimizer = problem.sgd(self.lr, self.momentum, self.weight_decay)
        before = copy.deepcopy(model.state_dict())
        now = accuracy(model, problem.forget)
        for epoch in problem.epochs(self.epochs, optimizer=optimizer):
            if now <= target:
                break
            before, last = copy.deepcopy(model.state_dict()), now
            problem.train_on(problem.forget)
            if self.batchnorm == "frozen":
                freeze_batchnorm(model)
            for x, y in problem.batches(problem.forget, self.batch, epoch):
                loss = -problem.loss(model(x), y).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            now = accuracy(model, problem.forget)
            problem.record(epoch=epoch + 1, forget_accuracy=now, target=max(target, 0))
            if self.bound and abs(last - target) < abs(now - target):
                model.load_state_dict(before)
                break
        return model

    def target(self, problem: Problem) -> float:
        """Accuracy on the forget set at which it stops; -1: never."""
        if not self.bound:
            return -1.0
        if problem.removed_class is not None:
            return 0.0
        if problem.held_out is None:
            raise ValueError(
                "gradient ascent needs held_out=, records that the model never saw, to "
                "know when to stop; or bound = false, which may destroy the model"
            )
        return accuracy(problem.model, problem.held_out)


def accuracy(model: nn.Module, split: Split) -> float:
    right = evaluate(model, split).argmax(1) == split.y
    return float(right.double().mean())
