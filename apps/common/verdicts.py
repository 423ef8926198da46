"""From a rule and values, one a seed, to a verdict, and to what would change it.

verdict(claim, [0.2, 0.3, 0.1, 0.2, 0.3]).verdict         "holds"
would_change(claim, [0.2, 0.3, 0.1, 0.2, 0.3])            a sentence
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from apps.common.claims import PROFILES, Claim, Rule
from apps.common.statistics import Interval, mean_interval
from sparsekit.spelling import choice

HOLDS, FAILS = "holds", "does not hold"
INCONCLUSIVE, PLANNED = "inconclusive", "planned"
MANY = 1000  # seeds; more than anybody runs


@dataclass(frozen=True)
class Verdict:
    """What the measurements say about a claim.

    verdict: "holds", "does not hold" or "inconclusive"; interval: None without
    measurements; why: the reason of "inconclusive", None otherwise.
    """

    verdict: str
    interval: Interval | None
    why: str | None


def verdict(
    claim: Claim, values: Sequence[float], profile: str | None = None
) -> Verdict:
    """Judges a claim by its rule and the 95 % interval (Student t) of the values.

    "holds" if the whole interval satisfies the rule, "does not hold" if all of it
    violates the rule, else "inconclusive"; so too for fewer values than the claim's
    `min_seeds`, and for a profile below its `min_profile`.

    values: one a seed, finite. Raises ValueError for NaN or infinity.

    >>> claim = Claim("c", 1, "a gain", "gain", "> 0", "chapter")
    >>> verdict(claim, [0.2, 0.3, 0.1, 0.2, 0.3]).verdict
    'holds'
    >>> verdict(claim, [0.2, 0.3]).why
    '2 seeds, 5 are needed'
    """
    if len(values) == 0:
        how = "" if claim.min_profile == "laptop" else f" PROFILE={claim.min_profile}"
        return Verdict(INCONCLUSIVE, None, f"no measurement yet: make book{how}")
    interval = mean_interval(values)
    rule = claim.parsed_rule
    if profile is not None and rank(profile) < rank(claim.min_profile):
        why = f"measured in profile {profile}, {claim.min_profile} is needed"
    elif interval.n < claim.min_seeds:
        why = f"{counted(interval.n)}, {claim.min_seeds} are needed"
    elif interval.n == 1:
        why = "one value has no interval"
    elif rule.satisfied(interval.low, interval.high):
        return Verdict(HOLDS, interval, None)
    elif rule.violated(interval.low, interval.high):
        return Verdict(FAILS, interval, None)
    else:
        why = f"the interval reaches across the rule's border ({claim.rule})"
    return Verdict(INCONCLUSIVE, interval, why)


def would_change(
    claim: Claim, values: Sequence[float], profile: str | None = None
) -> str:
    """What would change the verdict on a claim: seeds, a profile, another mean.

    Computed from rule, interval, profile and number of seeds. With the spread of the
    values as it is, it says how many seeds would decide a claim that the interval
    leaves open, or how far the mean of a decided one would have to move.

    >>> claim = Claim("c", 1, "a gain", "gain", "> 0", "chapter")
    >>> would_change(claim, [0.2, 0.3, 0.1, 0.2, 0.3])
    'a mean lower by 0.116: then inconclusive; lower by 0.324: then it does not hold'
    >>> would_change(claim, [0.2, -0.1, 0.1, 0.2, 0.0])
    'about 13 seeds of this spread, if the mean stays at 0.0800: then it holds'
    """
    judged = verdict(claim, values, profile)
    interval = judged.interval
    if interval is None:
        return f"a measurement in profile {claim.min_profile}, {claim.min_seeds} seeds"
    if profile is not None and rank(profile) < rank(claim.min_profile):
        return f"a run in profile {claim.min_profile}, with {claim.min_seeds} seeds"
    if interval.n < max(2, claim.min_seeds):
        missing = max(2, claim.min_seeds) - interval.n
        return f"{counted(missing)} more"
    border = nearest(claim.parsed_rule, interval.value)
    if judged.verdict == INCONCLUSIVE:
        return _more_seeds(interval, values, claim.parsed_rule, border)
    return _another_mean(judged.verdict, interval, border, claim.parsed_rule)


def _more_seeds(
    interval: Interval, values: Sequence[float], rule: Rule, border: float
) -> str:
    """How many seeds make the interval end at the border, and what it then says."""
    n = seeds_needed(float(np.std(values, ddof=1)), abs(interval.value - border))
    mean = f"if the mean stays at {short(interval.value)}"
    if n is None:
        return (
            f"more than {MANY} seeds of this spread {mean}: a difference this close to "
            f"the border ({border:g}) needs a larger effect or a smaller spread"
        )
    inside = rule.low < interval.value < rule.high
    then = "it holds" if inside else "it does not hold"
    return f"about {max(n, interval.n + 1)} seeds of this spread, {mean}: then {then}"


def seeds_needed(spread: float, gap: float) -> int | None:
    """The smallest n > 1 with t(0.975, n - 1) spread / sqrt(n) < gap; None beyond 1000.

    spread: standard deviation over seeds; gap: from the mean to the border.

    >>> seeds_needed(1.0, 1.0), seeds_needed(1.0, 0.01)
    (7, None)
    """
    n = np.arange(2, MANY + 1)
    half = stats.t.ppf(0.975, n - 1) * spread / np.sqrt(n)
    enough = n[half < gap]
    return int(enough[0]) if len(enough) else None


def _another_mean(judged: str, interval: Interval, border: float, rule: Rule) -> str:
    """How far the mean must move, the interval as wide as it is."""
    half = (interval.high - interval.low) / 2
    gap = abs(interval.value - border)
    way = "lower" if interval.value > border else "higher"
    other = "it does not hold" if judged == HOLDS else "it holds"
    if half == 0:  # equal values: nothing lies between the two verdicts
        return f"a mean {way} by {short(gap)}: then {other}"
    inconclusive = f"a mean {way} by {short(gap - half)}: then inconclusive"
    if judged == FAILS and 2 * half > rule.high - rule.low:
        return f"{inconclusive}; an interval this wide cannot satisfy the rule"
    return f"{inconclusive}; {way} by {short(gap + half)}: then {other}"


def nearest(rule: Rule, value: float) -> float:
    """The border of a rule that is nearest to a value."""
    borders = [end for end in (rule.low, rule.high) if math.isfinite(end)]
    return min(borders, key=lambda end: abs(value - end))


def short(value: float) -> str:
    """Three significant digits."""
    return f"{value:#.3g}".rstrip(".")


def counted(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def rank(profile: str) -> int:
    """Place of a profile in smoke, laptop, full; ValueError for another."""
    if profile not in PROFILES:
        raise ValueError(choice(f"profile {profile!r} is unknown", profile, PROFILES))
    return PROFILES.index(profile)
