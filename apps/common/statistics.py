"""Intervals: over seeds, over samples, over paired differences.

mean_interval([0.91, 0.93, 0.92])            over seeds, Student t
paired_interval(ours, theirs)                over seeds that both used
paired(values, "ours", "theirs")             the differences themselves, by seed
bootstrap_interval(rows, statistic=median)   any statistic of a sample
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import sub
from typing import Any

import numpy as np
from scipy import stats

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Interval:
    """A value with its interval.

    value: the estimate; low, high: ends of the interval, nan where one value alone
    leaves it unknown; n: how many values it rests on.
    """

    value: float
    low: float
    high: float
    n: int

    def plain(self) -> dict[str, float | int | None]:
        """As JSON has it, which knows no NaN: an unknown end is None."""
        ends = {"value": self.value, "low": self.low, "high": self.high}
        return {k: None if math.isnan(v) else v for k, v in ends.items()} | {
            "n": self.n
        }

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}], n = {self.n}"


def mean_interval(values: Values, confidence: float = 0.95) -> Interval:
    """Mean of independent values with its Student t interval.

    `mean ± t((1 + confidence) / 2, n - 1) s / sqrt(n)`, s the standard deviation with
    n - 1 in the denominator. values: n numbers, say one a seed. One value has no
    interval: its ends are nan. Equal values have one of width zero.

    Raises ValueError for no values, NaN or infinity.

    >>> print(mean_interval([0.90, 0.92, 0.94]))
    0.92 [0.8703, 0.9697], n = 3

    Student: The probable error of a mean, 1908.
    """
    _check_confidence(confidence)
    sample = _numbers(values, "values")
    if sample.ndim != 1:
        raise ValueError(f"values must be a list of numbers, got shape {sample.shape}")
    n, mean = len(sample), float(sample.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    # Rounding in the mean must not give equal values a width.
    if np.ptp(sample) == 0:
        return Interval(float(sample[0]), float(sample[0]), float(sample[0]), n)
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * sample.std(ddof=1) / math.sqrt(n)
    return Interval(mean, mean - float(half), mean + float(half), n)


def paired_interval(a: Values, b: Values, confidence: float = 0.95) -> Interval:
    """Mean of a - b over pairs, with its Student t interval.

    a, b: [n], one value a seed, in the same order of seeds. Where a seed moves both in
    the same direction, this is much narrower than the difference of two intervals.

    Raises ValueError for different lengths, no values, NaN or infinity.

    >>> print(paired_interval([0.90, 0.95, 0.85], [0.88, 0.92, 0.84]))
    0.02 [-0.004841, 0.04484], n = 3
    """
    first, second = _numbers(a, "a"), _numbers(b, "b")
    if first.shape != second.shape:
        raise ValueError(
            f"a and b must have one value for each seed, got {len(first)} and "
            f"{len(second)}"
        )
    return mean_interval(first - second, confidence)


def paired(
    values: Mapping[tuple[Any, int], float],
    a: Any,
    b: Any,
    operation: Callable[[float, float], float] = sub,
) -> dict[int, float]:
    """{seed: value of a - value of b}, over the seeds that both have.

    values: {(label, seed): value}. operation: another than the difference, say truediv.

    >>> paired({("ours", 0): 5, ("theirs", 0): 3, ("ours", 1): 4}, "ours", "theirs")
    {0: 2}
    """
    seeds = sorted(seed for label, seed in values if label == a)
    return {
        seed: operation(values[a, seed], values[b, seed])
        for seed in seeds
        if (b, seed) in values
    }


def bootstrap_interval(
    values: Values,
    statistic: Callable[[Any], float] = np.mean,
    confidence: float = 0.95,
    *,
    n_resamples: int = 1000,
    method: str = "percentile",
    seed: int = 0,
) -> Interval:
    """Any statistic of a sample with its bootstrap interval.

    values: [n] or [n, k]; rows are drawn with replacement. statistic: takes an array
    like `values`, returns a number. method: "percentile", or "BCa" (Efron, 1987), which
    corrects for bias and skewness and calls the statistic n more times. The same seed
    gives the same interval; the global random state is not used.

    Raises ValueError for fewer than two rows, NaN or infinity, or a statistic that is
    not a finite number.

    >>> print(bootstrap_interval([1.0, 2.0, 4.0, 7.0, 11.0], statistic=np.median))
    4 [1, 11], n = 5

    Efron: Bootstrap methods: another look at the jackknife, 1979. The work is scipy's.
    """
    _check_confidence(confidence)
    if method not in ("percentile", "BCa"):
        raise ValueError(f"method must be 'percentile' or 'BCa', got {method!r}")
    sample = _numbers(values, "values")
    n = len(sample)
    if n < 2:
        raise ValueError("a bootstrap needs at least two values, got one")
    value = float(statistic(sample))
    if not math.isfinite(value):
        raise ValueError(f"the statistic of the values is {value}, not a finite number")
    if (sample == sample[0]).all():  # every resample is the sample itself
        return Interval(value, value, value, n)
    # Resampling row numbers serves samples of any shape.
    result = stats.bootstrap(
        (np.arange(n),),
        lambda rows: float(statistic(sample[rows.astype(int)])),
        vectorized=False,
        confidence_level=confidence,
        n_resamples=n_resamples,
        method=method,
        rng=np.random.default_rng(seed),
    )
    low, high = map(float, result.confidence_interval)
    if math.isnan(low) or math.isnan(high):
        spread = result.bootstrap_distribution
        if not np.isfinite(spread).all():
            raise ValueError("the statistic is not finite for some resamples")
        low, high = float(spread.min()), float(spread.max())  # BCa: no spread at all
    return Interval(value, low, high, n)


def _numbers(values: Values, name: str) -> np.ndarray:
    """A float64 array of at least one row; ValueError for anything not finite."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers: {error}") from None
    if array.ndim == 0:
        raise ValueError(f"{name} must be a list of numbers, got {values!r}")
    if array.size == 0:
        raise ValueError(f"{name} is empty: an interval needs at least one value")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=tuple(range(1, array.ndim))))
    if len(bad):
        raise ValueError(
            f"{name} has NaN or infinity in {len(bad)} of {len(array)} places, "
            f"first at {bad[0]}"
        )
    return array


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
