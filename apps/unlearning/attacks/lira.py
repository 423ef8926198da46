"""U-LiRA: is a record told to be unlearned, and not unseen?

The attacker knows the method: it trains shadow models that learned the forget set and
unlearned it, and others that never saw it, and compares for each record the densities
of the model's confidence under both.
"""

import numpy as np
from scipy import stats

from apps.common.roc import Attack, attack


def ulira(
    unlearned: np.ndarray,
    retrained: np.ndarray,
    targets_unlearned: np.ndarray,
    targets_retrained: np.ndarray,
    *,
    shared: bool | None = None,
    fpr: float = 0.01,
) -> Attack:
    """The per-example likelihood ratio attack on unlearning.

        score = log N(c; mu_u, sigma_u) - log N(c; mu_r, sigma_r)

    c is `scores.logit_confidence`; mu and sigma are a record's over shadow models.

    Args:
        unlearned: [M, F], of M shadow models that learned and unlearned F records.
        retrained: [M', F], of shadow models that never saw them.
        targets_unlearned, targets_retrained: [T, F] and [T', F], of other models of
            both kinds, which the attack has to tell apart.
        shared: one sigma for all records; default: with fewer than 64 shadow models.

    Source: Hayes et al. 2024, arXiv 2403.01218, after Carlini et al. 2022; written from
    memory of both, not checked against their code.

    The interval is one over target models: the scores of one model move together,
    whatever the number of records.

    Raises ValueError for fewer than two shadow models, or other numbers of records.
    """
    arrays = [
        _matrix(name, values)
        for name, values in (
            ("unlearned", unlearned),
            ("retrained", retrained),
            ("targets_unlearned", targets_unlearned),
            ("targets_retrained", targets_retrained),
        )
    ]
    if len({array.shape[1] for array in arrays}) > 1:
        shapes = [array.shape for array in arrays]
        raise ValueError(f"all must be about the same records, got shapes {shapes}")
    if min(len(arrays[0]), len(arrays[1])) < 2:
        raise ValueError("U-LiRA needs at least two shadow models of each kind")
    few = min(len(arrays[0]), len(arrays[1])) < 64
    shared = few if shared is None else shared
    fits = [(a.mean(0), deviation(a, shared)) for a in arrays[:2]]
    of_unlearned, of_retrained = (
        stats.norm.logpdf(c, *fits[0]) - stats.norm.logpdf(c, *fits[1])
        for c in arrays[2:]
    )
    return attack(of_unlearned, of_retrained, fpr)


def deviation(values: np.ndarray, shared: bool) -> np.ndarray:
    """Standard deviation over models, [F]; pooled over records if `shared`.

    >>> deviation(np.array([[0.0, 0.0], [2.0, 4.0]]), shared=True)
    array([2.23606798, 2.23606798])
    """
    variance = values.var(0, ddof=1)
    if shared:
        variance = np.full_like(variance, variance.mean())
    return np.sqrt(np.maximum(variance, 1e-12))


def _matrix(name: str, values: np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape or not np.isfinite(array).all():
        raise ValueError(f"{name} must be [models, records] finite numbers")
    return array
