"""What would change a verdict: moved by so much, it changes; by less, it does not."""

import math
import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from apps.common.claims import Claim
from apps.common.verdicts import nearest, seeds_needed, verdict, would_change

RULES = ("> 0", ">= 0.5", "< 0.01", "<= -2", "in [0.9, 1.1]")
VALUES = st.lists(
    st.integers(-3000, 3000).map(lambda n: n / 1000), min_size=5, max_size=9
)


def claim(rule: str, **change) -> Claim:
    return Claim("c", 1, "s", "m", rule, "chapter", **change)


def sample(mean: float, spread: float, n: int) -> list[float]:
    """n values of exactly this mean and standard deviation, up to rounding."""
    raw = np.arange(n) - (n - 1) / 2
    return list(mean + raw * spread / raw.std(ddof=1))


@given(st.sampled_from(RULES), VALUES)
def test_a_mean_that_moves_as_said_changes_the_verdict(rule, values):
    judged = verdict(claim(rule), values)
    assume(judged.verdict != "inconclusive" and len(set(values)) > 1)
    text = would_change(claim(rule), values)
    steps = re.findall(r"(lower|higher) by ([-+.e\d]+)", text)
    (way, first), *rest = steps
    sign = 1 if way == "higher" else -1
    first = float(first)
    assume(first > 1e-3)  # three digits of less are below the rounding of the interval
    half = (judged.interval.high - judged.interval.low) / 2
    before, after = (
        verdict(claim(rule), [v + sign * first * factor for v in values]).verdict
        for factor in (0.99, 1.01)
    )
    assert before == judged.verdict
    narrow = rule.startswith("in") and 2 * half > 0.2  # it may reach across both ends
    assert after == "inconclusive" or (narrow and not rest) or 2 * half < 0.02 * first
    for _, second in rest:
        moved = [v + sign * float(second) * 1.01 for v in values]
        other = {"holds": "does not hold", "does not hold": "holds"}[judged.verdict]
        assert (
            verdict(claim(rule), moved).verdict == other
            or 0.02 * float(second) > 0.2 - 2 * half  # past the other end of [a, b]
        )
    if judged.verdict == "does not hold" and not rest:
        assert "cannot satisfy" in text


@given(st.floats(0.01, 10), st.floats(0.01, 10))
def test_so_many_seeds_decide_and_one_less_does_not(spread, gap):
    n = seeds_needed(spread, gap)
    if n is None:
        assert stats.t.ppf(0.975, 999) * spread / math.sqrt(1000) >= gap
        return

    def decided(k: int) -> bool:
        return verdict(claim("> 0", min_seeds=2), sample(gap, spread, k)).why is None

    close = 1e-9 * spread
    half = stats.t.ppf(0.975, n - 1) * spread / math.sqrt(n)
    assert decided(n) or gap - half < close
    assert n == 2 or not decided(n - 1)


def test_open_claims_say_how_many_seeds():
    values = sample(0.08, 0.13, 5)
    text = would_change(claim("> 0"), values)
    n = int(re.search(r"about (\d+) seeds", text)[1])
    assert text.endswith(": then it holds")
    assert "then it does not hold" in would_change(claim("> 0.2"), values)
    assert verdict(claim("> 0"), sample(0.08, 0.13, n)).verdict == "holds"
    assert verdict(claim("> 0"), sample(0.08, 0.13, n - 1)).verdict == "inconclusive"
    at_border = would_change(claim("> 0"), [-1.0, 1.0, -1.0, 1.0, 1e-6])
    assert "more than 1000 seeds" in at_border


@pytest.mark.parametrize(
    ("values", "profile", "words"),
    [
        ((), None, "a measurement in profile laptop, 5 seeds"),
        ((1.0,) * 5, "smoke", "a run in profile laptop, with 5 seeds"),
        ((1.0, 2.0), "laptop", "3 seeds more"),
        ((1.0, 2.0, 1.5, 1.0), "laptop", "1 seed more"),
        ((2.0,) * 5, "laptop", "a mean lower by 2.00: then it does not hold"),
    ],
)
def test_what_is_missing_comes_first(values, profile, words):
    assert would_change(claim("> 0"), values, profile) == words


def test_one_value_needs_another_even_if_the_claim_wants_one():
    text = would_change(claim("> 0", min_seeds=1), [1.0], "laptop")
    assert text == "1 seed more"


@pytest.mark.parametrize(
    ("rule", "value", "border"),
    [("> 0", 5, 0), ("< 2", -9, 2), ("in [1, 3]", 2.5, 3), ("in [1, 3]", -7, 1)],
)
def test_the_nearest_border(rule, value, border):
    assert nearest(claim(rule).parsed_rule, value) == border
