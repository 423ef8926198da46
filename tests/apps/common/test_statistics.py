"""Intervals against scipy, closed forms and simulated coverage."""

import math
from operator import truediv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from apps.common.statistics import (
    Interval,
    bootstrap_interval,
    mean_interval,
    paired,
    paired_interval,
)

numbers = st.integers(-(10**6), 10**6).map(lambda n: n / 1000)
samples = st.lists(numbers, min_size=2, max_size=13)


@settings(deadline=None)
@given(samples, st.floats(0.01, 0.99))
def test_mean_interval_is_scipys(values, confidence) -> None:
    found = mean_interval(values, confidence)
    assert found.n == len(values)
    assert found.value == pytest.approx(math.fsum(values) / len(values), abs=1e-6)
    if len(set(values)) == 1:
        assert found.low == found.value == found.high
        return
    low, high = stats.t.interval(
        confidence, len(values) - 1, loc=np.mean(values), scale=stats.sem(values)
    )
    ends = (found.low, found.high)
    np.testing.assert_allclose(ends, (low, high), rtol=1e-9, atol=1e-9 * (high - low))


def test_two_values_have_the_closed_form_of_cauchy() -> None:
    # Student t with one degree of freedom: tan(pi (p - 1/2)).
    found = mean_interval([1.0, 4.0], confidence=0.9)
    half = math.tan(math.pi * (0.95 - 0.5)) * 1.5
    assert found == Interval(
        2.5, pytest.approx(2.5 - half), pytest.approx(2.5 + half), 2
    )


def test_one_value_has_no_interval_and_equal_values_one_of_no_width() -> None:
    one = mean_interval([0.3])
    assert (one.value, one.n) == (0.3, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert mean_interval([0.1] * 7) == Interval(0.1, 0.1, 0.1, 7)


def test_the_mean_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    found = [mean_interval(rng.normal(3, 2, size=5), 0.9) for _ in range(2000)]
    covered = np.mean([i.low <= 3 <= i.high for i in found])
    assert covered == pytest.approx(0.9, abs=0.03)  # four standard errors


@given(samples, st.randoms(use_true_random=False))
def test_paired_is_the_mean_of_differences(values, random) -> None:
    others = [random.uniform(-5, 5) for _ in values]
    differences = [a - b for a, b in zip(values, others, strict=True)]
    assert paired_interval(values, others) == mean_interval(differences)


def test_pairing_sees_what_two_intervals_hide() -> None:
    shared = np.random.default_rng(1).normal(0, 10, size=11)
    ours, theirs = shared + 0.1 + 0.01 * np.arange(11), shared
    paired = paired_interval(ours, theirs)
    assert paired.low > 0
    t, p = stats.ttest_rel(ours, theirs)
    assert p < 0.05
    assert t == pytest.approx(
        paired.value / ((paired.high - paired.low) / 2 / stats.t.ppf(0.975, 10))
    )
    assert mean_interval(ours).low < mean_interval(theirs).high


@pytest.mark.parametrize("method", ["percentile", "BCa"])
@pytest.mark.parametrize("statistic", [np.mean, np.median, np.std])
def test_bootstrap_is_scipys_on_the_values_themselves(method, statistic) -> None:
    values = np.random.default_rng(3).gamma(2.0, size=31)
    found = bootstrap_interval(
        values, statistic, 0.9, n_resamples=500, method=method, seed=7
    )
    direct = stats.bootstrap(
        (values,),
        statistic,
        vectorized=False,
        confidence_level=0.9,
        n_resamples=500,
        method=method,
        rng=np.random.default_rng(7),
    ).confidence_interval
    assert found.value == statistic(values)
    assert (found.low, found.high, found.n) == (*map(pytest.approx, direct), 31)


def test_bootstrap_draws_whole_rows_and_leaves_the_global_state() -> None:
    x = np.random.default_rng(2).normal(size=29)
    rows = np.stack([x, 2 * x + 1], axis=1)  # correlation 1 in every resample

    def correlation(sample) -> float:
        return np.corrcoef(sample.T)[0, 1]

    before = np.random.get_state()[1].copy()  # noqa: NPY002  (is it left alone?)
    found = bootstrap_interval(rows, correlation, n_resamples=200)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert (found.low, found.high, found.n) == (pytest.approx(1), pytest.approx(1), 29)
    again = bootstrap_interval(rows[:, 0], n_resamples=200)
    assert again == bootstrap_interval(rows[:, 0], n_resamples=200)
    assert again != bootstrap_interval(rows[:, 0], n_resamples=200, seed=1)


def test_the_bootstrap_covers_roughly_as_it_says() -> None:
    rng = np.random.default_rng(8)
    draws = rng.exponential(size=(150, 40))
    found = [
        bootstrap_interval(d, n_resamples=200, seed=i) for i, d in enumerate(draws)
    ]
    covered = np.mean([i.low <= 1 <= i.high for i in found])
    assert 0.85 < covered <= 0.99  # percentile intervals of skewed samples: a bit short


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_bootstrap_of_equal_values_has_no_width(method) -> None:
    assert bootstrap_interval([0.2] * 5, method=method) == Interval(0.2, 0.2, 0.2, 5)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "values is empty"),
        ([1.0, math.nan], "NaN or infinity in 1 of 2 places, first at 1"),
        ([math.inf], "NaN or infinity"),
        ("abc", "must be numbers"),
        ([1, "x"], "must be numbers"),
        ([[1, 2], [3]], "must be numbers"),
        (3.0, "must be a list"),
        ([None], "NaN or infinity"),
    ],
)
def test_bad_values_are_named(values, words) -> None:
    for interval in (mean_interval, bootstrap_interval):
        with pytest.raises(ValueError, match=words):
            interval(values)


@pytest.mark.filterwarnings("ignore:The BCa confidence interval")  # scipy's, for nan
def test_bad_arguments_are_named() -> None:
    for confidence in (0, 1, 95, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            mean_interval([1, 2], confidence)
        with pytest.raises(ValueError, match="between 0 and 1"):
            bootstrap_interval([1, 2], confidence=confidence)
    with pytest.raises(ValueError, match=r"got shape \(1, 2\)"):
        mean_interval([[1, 2]])
    with pytest.raises(ValueError, match="got 2 and 3"):
        paired_interval([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="at least two"):
        bootstrap_interval([1.0])
    with pytest.raises(ValueError, match="'percentile' or 'BCa'"):
        bootstrap_interval([1, 2], method="bca")
    with pytest.raises(ValueError, match="statistic of the values is nan"):
        bootstrap_interval([1, 2], lambda sample: math.nan)
    with pytest.raises(ValueError, match="not finite for some resamples"):
        bootstrap_interval(
            [0.0, 1.0, 2.0], lambda s: 1 / np.ptp(s) if np.ptp(s) else math.nan
        )


def test_an_interval_prints_itself() -> None:
    assert str(Interval(0.92, 0.91, 0.93, 5)) == "0.92 [0.91, 0.93], n = 5"


measured = st.dictionaries(
    st.tuples(st.sampled_from(["ours", "theirs", "dense"]), st.integers(0, 5)),
    st.floats(1, 100),
)


@given(measured)
def test_pairs_are_of_seeds_that_both_have(values) -> None:
    found = paired(values, "ours", "theirs")
    ratios = paired(values, "ours", "theirs", truediv)
    assert list(found) == list(ratios) == sorted(found)
    for seed in range(6):
        a, b = values.get(("ours", seed)), values.get(("theirs", seed))
        assert (seed in found) == (a is not None and b is not None)
        if seed in found:
            assert (found[seed], ratios[seed]) == (a - b, a / b)
