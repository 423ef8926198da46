"""Fisher forgetting: noise where the retain set does not care."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.common.images import Split
from apps.common.seeds import mixed
from apps.unlearning.data import subset
from apps.unlearning.unlearner import Problem, Unlearner
from sparsekit import fixed


@dataclass(frozen=True)
class Fisher(Unlearner):
    """theta <- theta + sqrt(v) N(0, 1),  v = alpha min(1 / (F + 1e-8), 1000)

    F is the diagonal of the Fisher matrix over the retain set, over *all* labels,
    weighted by their probability:

        F_p = mean_i sum_y p_y(x_i) (d log p_y(x_i) / d theta_p)^2

    As published: 1000 is 100 in the last layer; v of a matrix is averaged over its
    inputs; v of the last layer and of vectors is multiplied by 10. If a class is
    forgotten, its row of the last layer is drawn around 0 with v = 1e-3.

    Args:
        alpha: of the noise.
        samples: of the retain set, drawn at random; 0 takes all.
        fisher: per-sample, as above; or batch: the square of the gradient of a batch's
            mean, batch 32, as in the paper's code. It is no Fisher diagonal, but
            smaller by about the batch size; a backward pass a batch and label.

    Source: Golatkar et al. 2020, arXiv 1911.04933; as "FF" in Jia et al. 2023, arXiv
    2304.04934. Differs from their code, which wiped the last class's row whenever the
    forget set had 4,500 records, a random one too.
    """

    alpha: float = 1e-7
    samples: int = 1000
    fisher: Literal["per-sample", "batch"] = "per-sample"

    def __post_init__(self) -> None:
        if self.samples < 0 or not self.alpha >= 0:
            raise ValueError(
                f"samples and alpha must be at least 0, got {self.samples} and "
                f"{self.alpha}"
            )

    def run(self, problem: Problem) -> nn.Module:
        return self.disturb(problem, self.diagonal(problem))

    @torch.no_grad()
    def diagonal(self, problem: Problem) -> dict[str, Tensor]:
        """{name: F} at the original weights."""
        model, classes = problem.model, problem.classes()
        last_layer(model)  # or an error before the work
        drawn = problem.retain
        if 0 < self.samples < len(drawn):
            generator = torch.Generator().manual_seed(mixed(problem.seed, 17))
            order = torch.randperm(len(drawn), generator=generator)
            drawn = subset(drawn, order[: self.samples])
        of = diagonal if self.fisher == "per-sample" else batch_diagonal
        return of(model.eval(), drawn, classes)

    @torch.no_grad()
    def disturb(self, problem: Problem, fisher: dict[str, Tensor]) -> nn.Module:
        """theta + sqrt(v) N(0, 1)."""
        model = problem.model
        last = last_layer(model)
        generator = torch.Generator().manual_seed(mixed(problem.seed, 19))
        for name, parameter in model.named_parameters():
            owner, _, _ = name.rpartition(".")
            v = variance(fisher[name], self.alpha, owner == last)
            mean = parameter.clone()
            if owner == last and problem.removed_class is not None:
                mean[problem.removed_class] = 0
                v[problem.removed_class] = 1e-3
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.copy_(mean + v.sqrt() * noise)
        fixed.apply(model, problem.masks)
        return model


def variance(fisher: Tensor, alpha: float, is_last: bool) -> Tensor:
    """v of a parameter, of its shape.

    >>> variance(torch.tensor([[1.0, 0.0]]), 0.1, is_last=False)
    tensor([[50.0500, 50.0500]])
    """
    v = (1 / (fisher + 1e-8)).clamp(max=100 if is_last else 1000)
    if v.dim() > 1:
        v = v.mean(1, keepdim=True).expand_as(v)
    factor = 10 if is_last or v.dim() == 1 else 1
    return (factor * alpha * v).clone()


def last_layer(model: nn.Module) -> str:
    """Name of the linear layer that comes last; ValueError if there is none."""
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not names:
        raise ValueError(
            f"Fisher forgetting treats the last nn.Linear by itself, and "
            f"{type(model).__name__} has none"
        )
    return names[-1]


def diagonal(
    model: nn.Module, split: Split, classes: int, batch: int = 50
) -> dict[str, Tensor]:
    """{name: F}, the exact diagonal, by a gradient a record and label."""
    weights = {n: p.detach() for n, p in model.named_parameters()}

    def log_p(weights, x, label):
        logits = torch.func.functional_call(model, weights, (x[None],))
        return F.log_softmax(logits, 1)[0, label]

    each = torch.func.vmap(torch.func.grad(log_p), in_dims=(None, 0, None))
    totals = {n: torch.zeros_like(w) for n, w in weights.items()}
    for x in split.x.split(batch):
        p = model(x).softmax(1)  # [B, K]
        for label in range(classes):
            for name, grad in each(weights, x, label).items():
                totals[name] += torch.einsum("b,b...->...", p[:, label], grad.square())
    return {n: total / len(split) for n, total in totals.items()}


def batch_diagonal(
    model: nn.Module, split: Split, classes: int, batch: int = 32
) -> dict[str, Tensor]:
    """{name: what the paper's code takes for F}: squares of mean gradients."""
    named = dict(model.named_parameters())
    totals = {n: torch.zeros_like(p) for n, p in named.items()}
    parts = split.x.split(batch)
    with torch.enable_grad():
        for x in parts:
            log_p = F.log_softmax(model(x), 1)
            for label in range(classes):
                mean = -log_p[:, label].mean()
                grads = torch.autograd.grad(
                    mean, list(named.values()), retain_graph=True,
                    materialize_grads=True,
                )  # fmt: skip
                p = log_p[:, label].detach().exp().mean()
                for total, grad in zip(totals.values(), grads, strict=True):
                    total += p * grad.square()
    return {n: total / len(parts) for n, total in totals.items()}
