"""SalUn: random labels, but only weights that matter for the forget set may move."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from apps.unlearning.fitting import batches
from apps.unlearning.unlearner import Problem
from apps.unlearning.unlearners.random_labels import RandomLabels, descend
from sparsekit import fixed
from sparsekit.masks import topk_mask


@dataclass(frozen=True)
class SalUn(RandomLabels):
    """Random labels on the `saliency` share of parameters with the largest gradient.

    The gradient of the loss is added up over the batches of the forget set in
    evaluation mode, and its size ranks all parameter entries together. All others keep
    their bits, whatever momentum and weight decay do.

    Args:
        saliency: share of all existing parameter entries that may move, in (0, 1].

    Source: Fan et al. 2024, arXiv 2310.12508 (saliency 0.5, 10 epochs, lr 0.013 for a
    forget set of 10 %). Differs from their code before 2026, which let momentum and
    weight decay move frozen weights.
    """

    lr: float = 0.013
    saliency: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.saliency <= 1:
            raise ValueError(f"saliency must be in (0, 1], got {self.saliency}")

    def run(self, problem: Problem) -> nn.Module:
        movable = salient(problem, self.saliency, self.batch)
        optimizer = torch.optim.SGD(
            problem.model.parameters(),
            self.lr,
            self.momentum,
            weight_decay=self.weight_decay,
        )
        fixed.keep(problem.model, optimizer, problem.masks, trainable=movable)
        descend(self, problem, optimizer)
        return problem.model


def salient(problem: Problem, share: float, batch: int) -> dict[str, Tensor]:
    """{name: bool}, True for the entries with the largest |sum of batch gradients|."""
    model = problem.model.eval()
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    totals = {n: torch.zeros_like(p) for n, p in named.items()}
    for x, y in batches(problem.forget, batch, problem.seed, 0, drop_last=False):
        mean = problem.loss(model(x), y).mean()
        grads = torch.autograd.grad(mean, list(named.values()), materialize_grads=True)
        for total, grad in zip(totals.values(), grads, strict=True):
            total += grad
    sizes = {name: total.abs() for name, total in totals.items()}
    for name, mask in problem.masks.items():
        sizes[name].masked_fill_(~mask, -1.0)  # absent: below every size
    flat = torch.cat([s.flatten() for s in sizes.values()])
    existing = int((flat >= 0).sum())
    kept = max(1, round(share * existing))
    parts = topk_mask(flat, kept).split([s.numel() for s in sizes.values()])
    return {n: c.view_as(sizes[n]) for n, c in zip(sizes, parts, strict=True)}
