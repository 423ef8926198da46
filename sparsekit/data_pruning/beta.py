"""DUAL's Beta sampling: the more is pruned, the more easy examples are kept."""

import torch
from torch import Tensor

TOTAL = 16.0  # a + b
FLOOR = 1e-3  # b reaches zero when nothing is kept: no density


def beta_parameters(mu: float, ratio: float, power: float = 4.0) -> tuple[float, float]:
    """(a, b) of the Beta distribution: b = 15 (1 - mu)(1 - ratio^power), a = 16 - b.

    Args:
        mu: mean probability of the label of the hardest examples.
        ratio: share that is pruned, in [0, 1].

    >>> beta_parameters(0.5, 0.0), beta_parameters(0.5, 1.0)
    ((8.5, 7.5), (15.999, 0.001))
    """
    b = max(15 * (1 - mu) * (1 - ratio**power), FLOOR)
    return TOTAL - b, b


def beta(
    scores: Tensor,
    n: int,
    *,
    mean_p: Tensor,
    generator: torch.Generator,
    power: float = 4.0,
) -> Tensor:
    """n at random, without replacement, in proportion to score * Beta(a, b)(mean_p).

    Args:
        scores: [N], of `dynamics.dual`: finite, at least 0.
        mean_p: [N], mean probability of the label over the recorded epochs.
        power: c_D; how late, as more is pruned, the sampling turns to easy examples.

    >>> g = torch.Generator().manual_seed(0)
    >>> beta(torch.ones(4), 2, mean_p=torch.tensor([0.01, 0.8, 0.9, 0.01]), generator=g)
    tensor([1, 2])

    Source: Cho et al. 2025, DUAL, arXiv 2502.06905, section 4.
    """
    if len(mean_p) != len(scores):
        raise ValueError(f"mean_p is [N], got {len(mean_p)} for {len(scores)} scores")
    if not torch.isfinite(scores).all() or bool((scores < 0).any()):
        raise ValueError("beta samples in proportion to scores: finite, at least 0")
    p = torch.as_tensor(mean_p).double()
    hardest = scores.argsort(descending=True, stable=True)[:10]
    a, b = beta_parameters(float(p[hardest].mean()), 1 - n / len(scores), power)
    p = p.clamp(1e-6, 1 - 1e-6)
    log_weight = scores.double().log() + (a - 1) * p.log() + (b - 1) * (1 - p).log()
    # The n largest of log weight + Gumbel noise are a draw without replacement.
    uniform = torch.rand(len(p), dtype=torch.float64, generator=generator)
    noise = -torch.log(-torch.log(uniform.clamp_min(1e-300)))
    order = (log_weight + noise).argsort(descending=True, stable=True)
    return order[:n].sort().values
