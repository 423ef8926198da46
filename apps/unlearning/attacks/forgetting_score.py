"""The forgetting score of the NeurIPS 2023 challenge.

For each record the best attack on a single number, the model's confidence in it, bounds
how close unlearned and retrained models are as distributions; the score counts how many
records are hard to tell.
"""

import math

import numpy as np

DELTA, WIDTH, LARGEST = 1e-5, 0.5, 50.0


def forgetting_score(unlearned: np.ndarray, retrained: np.ndarray) -> float:
    """F = mean over records of H(epsilon), in [0, 1]; larger = closer to retraining.

        H(epsilon) = 2^-floor(epsilon / 0.5)

    for buckets that end at or below ceil(log(M - 1)), else 0. unlearned, retrained:
    [M, F] confidences (`scores.logit_confidence`) of M models of each kind.

    A perfect unlearner is far below 1 (0.12 at M = 16, 0.07 at 64): chance finds some
    attack. So give it beside the score of retrained models against others, at the same
    M: values at different M do not compare.

    Source: Triantafillou et al. 2024, arXiv 2406.09073. Differs from their code: all
    thresholds and bands at the values themselves, not on a grid. The challenge
    multiplied F by the ratios of retain and test accuracy, see `final`.
    """
    epsilons = [epsilon(u, r) for u, r in zip(unlearned.T, retrained.T, strict=True)]
    limit = math.ceil(math.log(len(unlearned) - 1))
    return float(np.mean([weight(e, limit) for e in epsilons]))


def weight(epsilon: float, limit: int) -> float:
    """H.

    >>> weight(0.2, 3), weight(1.2, 3), weight(9.0, 3)
    (1.0, 0.25, 0.0)
    """
    bucket = math.floor(epsilon / WIDTH)
    return 2.0**-bucket if (bucket + 1) * WIDTH <= limit else 0.0


def epsilon(unlearned: np.ndarray, retrained: np.ndarray) -> float:
    """The largest empirical epsilon of an attack on one record, in [0, 50].

    Attacks say "unlearned" for confidences in an interval, or outside of one. With the
    rates of false alarms and misses over models and delta = 1e-5,

        epsilon = max(log(1 - delta - FPR) - log FNR, log(1 - delta - FNR) - log FPR)

    Attacks of which exactly one rate is 0 do not count; if both are, epsilon is 50.
    Where one sample's range is less than 1 % of the other's, too.

    unlearned, retrained: [M] each.

    >>> epsilon(np.array([1.0, 2.0, 3.0]), np.array([7.0, 8.0, 9.0]))
    50.0
    """
    u, r = (np.asarray(a, dtype=np.float64) for a in (unlearned, retrained))
    if len(u) < 3 or len(r) < 3 or not (np.isfinite(u).all() and np.isfinite(r).all()):
        raise ValueError("epsilon needs three or more finite confidences of each kind")
    ranges = sorted([np.ptp(u), np.ptp(r)])
    if ranges[0] < 0.01 * ranges[1]:
        return LARGEST
    # An interval is a pair of places among the sorted values.
    values = np.unique(np.concatenate([u, r]))
    below_u = np.searchsorted(np.sort(u), values, side="right")
    below_r = np.searchsorted(np.sort(r), values, side="right")
    below_u, below_r = (np.concatenate([[0], b]) for b in (below_u, below_r))
    first, last = np.triu_indices(len(below_u), k=1)
    inside_u = (below_u[last] - below_u[first]) / len(u)
    inside_r = (below_r[last] - below_r[first]) / len(r)
    found = 0.0
    for fpr, fnr in ((inside_r, 1 - inside_u), (1 - inside_r, inside_u)):
        fpr, fnr = np.round(fpr, 12), np.round(fnr, 12)
        if ((fpr == 0) & (fnr == 0)).any():
            return LARGEST
        counted = (fpr > 0) & (fnr > 0)
        if counted.any():
            found = max(found, _largest(fpr[counted], fnr[counted]))
    return min(found, LARGEST)


def _largest(fpr: np.ndarray, fnr: np.ndarray) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        one = np.log(1 - DELTA - fpr) - np.log(fnr)
        other = np.log(1 - DELTA - fnr) - np.log(fpr)
    both = np.concatenate([one, other])
    return float(np.nanmax(both, initial=0.0))


def final(
    score: float, retain: tuple[float, float], test: tuple[float, float]
) -> float:
    """F times (unlearned / retrained) accuracy on the retain set and on test data.

    >>> final(0.1, (0.9, 1.0), (0.8, 0.8))
    0.09
    """
    return round(score * retain[0] / retain[1] * test[0] / test[1], 12)
