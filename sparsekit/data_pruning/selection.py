"""Which examples to keep, given their scores: any policy goes with any score.

A policy takes scores [N], larger = harder, and returns the sorted indices, int64, of
exactly n examples. `select` adds what they share: fractions, classes, checks.
"""

import inspect
import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsekit.allocation import apportion
from sparsekit.data_pruning.beta import beta
from sparsekit.data_pruning.embeddings import herding, k_center
from sparsekit.data_pruning.graph import d2
from sparsekit.masks import count_active, topk_mask
from sparsekit.spelling import choice

Policy = Callable[..., Tensor]


def top(scores: Tensor, n: int) -> Tensor:
    """The n hardest; of equal scores the lower index.

    Beats a random choice while little is pruned and labels are right. Above half it
    falls below: what is left are outliers and mistakes.

    >>> top(torch.tensor([0.1, 0.9, 0.5]), 2)
    tensor([1, 2])
    """
    return _where(topk_mask(scores, n))


def bottom(scores: Tensor, n: int) -> Tensor:
    """The n easiest: a control. `top` of N - n and `bottom` of n are a partition.

    >>> bottom(torch.tensor([0.1, 0.9, 0.5]), 1)
    tensor([0])
    """
    return _where(~topk_mask(scores, len(scores) - n))


def window(scores: Tensor, n: int, drop_hardest: float = 0.05) -> Tensor:
    """The n hardest after the hardest `drop_hardest` of all, a share in [0, 1).

    For data with wrong labels, which score highest.

    >>> window(torch.tensor([0.1, 0.9, 0.5, 0.2]), 2, drop_hardest=0.25)
    tensor([2, 3])

    Source: Paul, Ganguli, Dziugaite 2021, arXiv 2107.07075, section 4.
    """
    left = _without_hardest(scores, n, drop_hardest)
    return _where(topk_mask(scores, n, among=left))


def random(scores: Tensor, n: int, *, generator: torch.Generator) -> Tensor:
    """n at random: the control of every table. Only the number of scores is used.

    >>> random(torch.zeros(9), 9, generator=torch.Generator().manual_seed(0)).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8]
    """
    order = torch.randperm(len(scores), generator=generator)
    return order[:n].sort().values


def strata(
    scores: Tensor,
    n: int,
    *,
    generator: torch.Generator,
    drop_hardest: float = 0.0,
    n_strata: int = 50,
) -> Tensor:
    """Coverage: the same number of every level of difficulty, random within a level.

    The range of the scores is cut into equal parts. From the least filled to the
    fullest, each gives min(its size, what is left / strata left). Infinite scores count
    as just beyond the finite ones.

    Args:
        drop_hardest: share of all examples left out first, likely mistakes; the paper
            uses 0.1 to 0.4, more where more is pruned. Choose it on validation data.
        n_strata: parts of the range.

    Raises:
        ValueError: if fewer than n are left after `drop_hardest`.

    >>> scores = torch.cat([torch.zeros(96), torch.ones(4)])
    >>> kept = strata(scores, 8, generator=torch.Generator().manual_seed(0))
    >>> scores[kept].tolist()  # a random choice would hardly ever take all of the four
    [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]

    Source: Zheng et al. 2023 (CCS), arXiv 2210.15809, algorithm 1.
    Differs from the paper: the last edge belongs to the last stratum.
    """
    if not isinstance(n_strata, Integral) or n_strata < 1:
        raise ValueError(f"n_strata is at least 1, got {n_strata!r}")
    left = _without_hardest(scores, n, drop_hardest)
    members = left.nonzero().squeeze(1)
    level = _levels(scores[members].double(), int(n_strata))
    sizes = level.bincount(minlength=int(n_strata))
    quota = torch.zeros_like(sizes)
    missing = n
    for position, i in enumerate(sizes.argsort(stable=True).tolist()):
        quota[i] = min(int(sizes[i]), missing // (len(sizes) - position))
        missing -= int(quota[i])
    order = torch.randperm(len(members), generator=generator)
    order = order[level[order].argsort(stable=True)]  # by level, random within
    first = sizes.cumsum(0) - sizes
    rank = torch.arange(len(order)) - first[level[order]]
    return members[order[rank < quota[level[order]]]].sort().values


def _levels(values: Tensor, n_strata: int) -> Tensor:
    """Which part of the range of the finite values each one is in; NaN in none."""
    finite = values[torch.isfinite(values)]
    low, high = finite.aminmax() if len(finite) else (0.0, 0.0)
    level = (values - low) / (high - low) * n_strata  # 0 / 0 if all are equal
    return level.nan_to_num(0, n_strata, 0).long().clamp_(0, n_strata - 1)


POLICIES: dict[str, Policy] = {
    "top": top,
    "bottom": bottom,
    "window": window,
    "random": random,
    "strata": strata,
    "beta": beta,
    "d2": d2,
    "herding": herding,
    "k_center": k_center,
}


def select(
    scores: Tensor,
    keep: float | int,
    policy: str | Policy = "strata",
    *,
    labels: Tensor | np.ndarray | None = None,
    per_class: bool = False,
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """Sorted indices, int64, of the examples to keep.

    Args:
        scores: [N] float, larger = harder.
        keep: a float in (0, 1] is a share of the examples, an integer their number.
        policy: a name in `POLICIES`, or a function of yours (scores, n, **options) ->
            indices; one with a parameter `generator` gets a CPU generator.
        labels: [N], for `per_class`: numbers, or strings in an array.
        per_class: the policy within each class, which keeps its share of the examples,
            one at least. Options with a row for each example are cut to the class.
        seed: of random policies.
        options: of the policy: `drop_hardest`, `n_strata`, `features`, ...

    Raises:
        ValueError: for NaN scores, a share or number out of range, an unknown policy,
            labels that are missing, or a policy that does not return what it should.
        TypeError: for an option that the policy does not have.

    Warns:
        UserWarning: for "top" when it keeps less than half, where it is known to lose
            to a random choice.

    >>> select(torch.arange(10.0), 0.3, "window", drop_hardest=0.2)
    tensor([5, 6, 7])
    """
    scores = torch.as_tensor(scores).detach().cpu()
    if scores.dim() != 1 or len(scores) == 0:
        raise ValueError(f"scores are [N] with N >= 1, got {list(scores.shape)}")
    if scores.is_floating_point() and bool(scores.isnan().any()):
        raise ValueError(
            f"{int(scores.isnan().sum())} of {len(scores)} scores are NaN, first that "
            f"of example {int(scores.isnan().nonzero()[0])}"
        )
    n = _count(keep, len(scores))
    if isinstance(policy, str) and policy not in POLICIES:
        raise ValueError(choice(f"no policy {policy!r}", policy, POLICIES))
    chosen = POLICIES[policy] if isinstance(policy, str) else policy
    if policy == "top" and 2 * n < len(scores):
        warnings.warn(
            f"'top' keeps {n} of {len(scores)}: below a half the hardest examples are "
            "known to be worse than random ones; use 'strata' and compare with random",
            stacklevel=2,
        )
    if "generator" in inspect.signature(chosen).parameters:
        options["generator"] = torch.Generator().manual_seed(seed)
    if not per_class:
        return _checked(chosen(scores, n, **options), n, len(scores))
    if labels is None or len(labels) != len(scores):
        raise ValueError("per_class needs labels [N], one for each score")
    classes, of_class = np.unique(np.asarray(labels), return_inverse=True)
    kept = []
    for c, budget in enumerate(_budgets(np.bincount(of_class), n)):
        members = torch.from_numpy(np.flatnonzero(of_class == c))
        own = {
            name: _cut(value, members, len(scores)) for name, value in options.items()
        }
        try:
            chosen_here = chosen(scores[members], budget, **own)
        except ValueError as error:
            raise ValueError(f"in class {classes[c].item()!r}: {error}") from error
        kept.append(members[_checked(chosen_here, budget, len(members))])
    return torch.cat(kept).sort().values


def _cut(value: Any, members: Tensor, n_examples: int) -> Any:
    """An option with one row an example, cut to a class; others as they are."""
    per_example = isinstance(value, Tensor | np.ndarray) and value.ndim > 0
    return value[members] if per_example and len(value) == n_examples else value


def _budgets(sizes: np.ndarray, n: int) -> list[int]:
    """n shared among classes by their sizes, at least one for each."""
    if n < len(sizes):
        raise ValueError(
            f"per_class keeps one of each class at least: {len(sizes)} classes, but "
            f"{n} examples are to be kept"
        )
    caps = {str(c): int(size) for c, size in enumerate(sizes)}
    wish = {name: size * n / int(sizes.sum()) for name, size in caps.items()}
    return list(apportion(wish, n, caps).values())


def _count(keep: float | int, n_examples: int) -> int:
    if isinstance(keep, Integral) and not isinstance(keep, bool):
        if not 1 <= keep <= n_examples:
            raise ValueError(f"keep is 1 ... {n_examples} examples, got {keep}")
        return int(keep)
    if not isinstance(keep, Real) or isinstance(keep, Integral) or not 0 < keep <= 1:
        raise ValueError(
            f"keep is a share in (0, 1] or a number of examples, got {keep!r}"
        )
    return count_active(n_examples, 1 - float(keep))


def _checked(indices: Tensor, n: int, n_examples: int) -> Tensor:
    distinct = indices.unique()
    if len(distinct) != n or len(indices) != n:
        raise ValueError(f"the policy returned {len(distinct)} examples, not {n}")
    if n and not 0 <= int(distinct[0]) <= int(distinct[-1]) < n_examples:
        raise ValueError(f"the policy returned indices outside 0 ... {n_examples - 1}")
    return distinct


def _without_hardest(scores: Tensor, n: int, share: float) -> Tensor:
    if not 0 <= share < 1:
        raise ValueError(f"drop_hardest is a share in [0, 1), got {share!r}")
    n_dropped = round(share * len(scores))
    if n > len(scores) - n_dropped:
        raise ValueError(
            f"drop_hardest={share} leaves {len(scores) - n_dropped} of {len(scores)} "
            f"examples, {n} are to be kept: lower it"
        )
    return ~topk_mask(scores, n_dropped)


def _where(mask: Tensor) -> Tensor:
    return mask.nonzero().squeeze(1)
