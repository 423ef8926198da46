"""SCRUB: a student that disobeys its teacher on the forget set, and only there."""

import copy
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from apps.unlearning.unlearner import Descent, Problem


@dataclass(frozen=True)
class Scrub(Descent):
    """The original model is the teacher; the student starts as its copy.

    In the first `max_epochs` epochs a pass over the forget set *raises* KL(teacher ||
    student); every epoch a pass over the retain set lowers

        gamma CE + beta KL(teacher || student)

    so that the retain set repairs what the first pass broke.

    Args:
        temperature: T of both softmaxes; the divergence is multiplied by T^2.
        milestones: epochs after which lr is divided by ten.

    Source: Kurmanji et al. 2023, arXiv 2302.09880; settings of their notebooks (5
    epochs, T = 4, gamma 1, beta 0.5, lr 5e-4 divided by ten at 3, 5 and 9). Differs
    from the paper: SGD with momentum, and no rewinding to a checkpoint (SCRUB+R).
    """

    epochs: int = 5
    lr: float = 5e-4
    batch: int = 128
    max_epochs: int = 3
    gamma: float = 1.0
    beta: float = 0.5
    temperature: float = 4.0
    milestones: tuple[int, ...] = (3, 5, 9)

    uses = ("retain", "forget")

    def run(self, problem: Problem) -> nn.Module:
        model = problem.model
        problem.classes()  # the divergence is one of logits
        teacher = copy.deepcopy(model).eval().requires_grad_(False)
        optimizer = problem.sgd(self.lr, self.momentum, self.weight_decay)
        for epoch in problem.epochs(self.epochs, optimizer=optimizer):
            passed = sum(epoch >= milestone for milestone in self.milestones)
            for group in optimizer.param_groups:
                group["lr"] = self.lr / 10**passed
            if epoch < self.max_epochs:
                problem.train_on(problem.forget)
                for x, _ in problem.batches(problem.forget, self.batch, epoch):
                    loss = -divergence(teacher(x), model(x), self.temperature)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            problem.train_on(problem.retain)
            for x, y in problem.batches(problem.retain, self.batch, epoch):
                logits = model(x)
                loss = self.gamma * problem.loss(logits, y).mean()
                loss = loss + self.beta * divergence(
                    teacher(x), logits, self.temperature
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return model


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over a batch.

    >>> import torch
    >>> divergence(torch.zeros(1, 2), torch.zeros(1, 2), 4.0)
    tensor(0.)
    """
    log_p = F.log_softmax(teacher / temperature, 1)
    log_q = F.log_softmax(student / temperature, 1)
    return temperature**2 * F.kl_div(
        log_q, log_p, reduction="batchmean", log_target=True
    )
