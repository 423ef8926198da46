"""How well a score tells two groups of records apart, with intervals."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import stats
from torch import Tensor

from apps.common.statistics import Interval

Scores = np.ndarray | Tensor


@dataclass(frozen=True)
class Attack:
    """An attack's scores and how well they separate.

    members, others: [N] scores, larger = more like a member, a value a record. auc and
    tpr have bootstrap intervals over records; tpr is the share of members found at a
    false alarm rate of `fpr`, None if there are too few others for it.
    """

    members: np.ndarray
    others: np.ndarray
    auc: Interval
    tpr: Interval | None
    fpr: float

    @property
    def leaks(self) -> bool:
        """Whether the interval of the AUC excludes 1/2. Below counts too: records that
        look less familiar than unseen ones were over-forgotten, and are given away.
        Without an interval nothing is said."""
        return self.auc.low > 0.5 or self.auc.high < 0.5

    @property
    def detectable(self) -> float:
        """Distance of an AUC from 1/2 that this many records would have shown."""
        return detectable(len(self.members), len(self.others))


def attack(members: Scores, others: Scores, fpr: float = 0.01, seed: int = 0) -> Attack:
    """Separation of two groups by a score, with intervals.

    members, others: [N], a score a record, for bootstrap intervals over records; or
    [T, F], of F records in T models. The scores of a model move together, so that the
    interval of the AUC is then one over models (`of_models`), and tpr has none.

    Raises ValueError for an empty group.
    """
    if np.ndim(members) == 2 and np.ndim(others) == 2:
        found = of_models(np.asarray(members), np.asarray(others))
        members, others = np.ravel(members), np.ravel(others)
        rate = None
        if fpr * len(others) >= 1:
            value = tpr_at_fpr(members, others, fpr)
            rate = Interval(value, math.nan, math.nan, found.n)
        return Attack(members, others, found, rate, fpr)
    members, others = numbers("members", members), numbers("others", others)
    area = _interval(members, others, auc, seed)
    rate = None
    if fpr * len(others) >= 1:
        rate = _interval(members, others, partial(_rate, fpr=fpr), seed)
    return Attack(members, others, area, rate, fpr)


def of_models(members: np.ndarray, others: np.ndarray) -> Interval:
    """AUC of scores [T, F] against [T', F], with a 95 % interval over models.

    The AUC is the mean of those of each model of one group against all of the other.
    With their variances v, v' over models its variance is v / T + v' / T', and the
    quantile of Student's t has min(T, T') - 1 degrees of freedom. No ends for less than
    two models.

    After Obuchowski 1997 (clustered ROC data); the degrees of freedom are ours.

    >>> print(of_models(np.array([[2.0, 3.0], [1.0, 3.0]]), np.array([[0.0], [1.0]])))
    0.9375 [0, 1], n = 4
    """
    value, n = auc(members.ravel(), others.ravel()), len(members) + len(others)
    fewest = min(len(members), len(others))
    if fewest < 2:
        return Interval(value, math.nan, math.nan, n)
    ones = [auc(row, others.ravel()) for row in members]
    twos = [auc(members.ravel(), row) for row in others]
    variance = np.var(ones, ddof=1) / len(ones) + np.var(twos, ddof=1) / len(twos)
    half = stats.t.ppf(0.975, fewest - 1) * math.sqrt(variance)
    return Interval(value, max(0.0, value - half), min(1.0, value + half), n)


def _interval(
    members: np.ndarray,
    others: np.ndarray,
    statistic: Callable[[np.ndarray, np.ndarray], float],
    seed: int,
) -> Interval:
    """By the bootstrap within each group; no ends where one has less than four."""
    value, n = statistic(members, others), len(members) + len(others)
    if min(len(members), len(others)) < 4:
        return Interval(value, math.nan, math.nan, n)
    found = stats.bootstrap(
        (members, others),
        lambda a, b: statistic(a, b),
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(value, float(found.low), float(found.high), n)


def auc(members: Scores, others: Scores) -> float:
    """P(a member's score > another's) + P(equal) / 2: the area under the ROC curve.

    >>> auc(np.array([3.0, 1.0]), np.array([2.0, 1.0]))
    0.625

    Mann & Whitney 1947.
    """
    members, others = numbers("members", members), numbers("others", others)
    ranks = stats.rankdata(np.concatenate([members, others]))
    n, m = len(members), len(others)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def tpr_at_fpr(members: Scores, others: Scores, fpr: float) -> float:
    """Largest share of members at or above a threshold that at most `fpr` of the others
    reach.

    Raises ValueError with fewer than 1 / fpr others: such a rate cannot be seen.

    >>> tpr_at_fpr(np.array([3.0, 1.0]), np.array([2.0, 0.0]), 0.5)
    1.0
    """
    members, others = numbers("members", members), numbers("others", others)
    if not 0 < fpr < 1 or fpr * len(others) < 1:
        raise ValueError(
            f"a false alarm rate of {fpr} needs at least 1 / rate others, got "
            f"{len(others)}"
        )
    return _rate(members, others, fpr)


def _rate(members: np.ndarray, others: np.ndarray, fpr: float) -> float:
    allowed = int(fpr * len(others) + 1e-9)
    if allowed >= len(others):
        return 1.0
    bar = np.partition(others, len(others) - 1 - allowed)[len(others) - 1 - allowed]
    return float((members > bar).mean())


def detectable(n_members: int, n_others: int) -> float:
    """Smallest |AUC - 1/2| that a two-sided 5 % test finds with a chance of 80 %.

    (1.96 + 0.84) sqrt((n + m + 1) / (12 n m)), the rank sum's normal approximation.

    >>> round(detectable(350, 1000), 3)
    0.05
    """
    n, m = n_members, n_others
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    return float(z * math.sqrt((n + m + 1) / (12 * n * m)))


def numbers(name: str, scores: Scores) -> np.ndarray:
    """A float64 array [N]; ValueError if it is empty, NaN, or has another shape."""
    array = scores.detach().cpu().numpy() if isinstance(scores, Tensor) else scores
    array = np.asarray(array, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0 or np.isnan(array).any():
        raise ValueError(
            f"the scores of {name} must be [N] numbers, N >= 1, without NaN; got shape "
            f"{array.shape}"
        )
    return array
