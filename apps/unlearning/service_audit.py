"""The audit of a batch: is the new model told apart from retrained ones?

    found = compare(of_original, of_unlearned, [of_reference, of_another, ...])

Every number is given for the original model (the ceiling), the unlearned one and models
retrained without the erased records (the null).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from apps.common.images import Split
from apps.common.statistics import Interval
from apps.unlearning import metrics
from apps.unlearning.attacks.rmia import ratios, wins

Values = dict[str, dict[str, np.ndarray]]  # part -> {"correct", "confidence"} -> [N]
# One or two arrays [R, N] with one mean: a row a reference, a column a record. An AUC
# has two, over erased and over fresh records.
Halves = Sequence[np.ndarray]


@dataclass(frozen=True)
class Settings:
    """references: models retrained without the erased records, at least 2. margin: the
    whole interval of every attack's gap must lie within it, on both sides of 0."""

    references: int = 3
    margin: float = 0.1

    def __post_init__(self) -> None:
        if self.references < 2:
            raise ValueError(
                f"references must be at least 2, got {self.references}: one shows "
                "nothing of how far retrained models differ from each other"
            )
        if not 0 < self.margin <= 0.5:
            raise ValueError(f"margin must be in (0, 0.5], got {self.margin}")


def combined(value: float, parts: Sequence[tuple[float, int]]) -> Interval:
    """A 95 % interval from independent sources of error.

    parts: (v, n) of each: n numbers with variance v, of which `value` takes the mean.
    The standard error is sqrt(sum v / n), and Student's t has the degrees of freedom of
    Welch and Satterthwaite, sum(v/n)^2 / sum((v/n)^2 / (n - 1)). n of the interval:
    that of the first part.

    >>> print(combined(0.5, [(0.04, 100), (0.0001, 3)]))
    0.5 [0.4586, 0.5414], n = 100
    """
    errors = [(v / n, n - 1) for v, n in parts]
    if any(freedom < 1 for _, freedom in errors):
        return Interval(value, math.nan, math.nan, parts[0][1])
    total = sum(error for error, _ in errors)
    if total == 0:
        return Interval(value, value, value, parts[0][1])
    freedom = total**2 / sum(error**2 / n for error, n in errors)
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(total)
    return Interval(value, value - half, value + half, parts[0][1])


def rmia(target: np.ndarray, others: np.ndarray, n_erased: int) -> np.ndarray:
    """RMIA's score of each record, in [0, 1]; larger = more like a member.

    target: [N] probabilities of the label by the model under attack; others: [M, N] by
    models that saw no record. The first n_erased records are the targets; the others
    are the population, and the negatives: `attacks.rmia` takes other ones for each.
    """
    ratio = ratios(torch.from_numpy(target), torch.from_numpy(others))
    return wins(ratio, ratio[n_erased:])


def distance(target: np.ndarray, others: np.ndarray, n_erased: int) -> np.ndarray:
    """How far the label's probability is from what it is for models that saw no record.

    Over-forgetting some records and keeping others can leave every AUC of a one-sided
    attack at 1/2; this one sees both.
    """
    return np.abs(target - others.mean(0))


def plain(target: np.ndarray, others: np.ndarray, n_erased: int) -> np.ndarray:
    """The probability of the label: one threshold for all records, the weak attack."""
    return target


ATTACKS: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "rmia": rmia,
    "distance": distance,
    "confidence": plain,
}
SAID = {
    "rmia": "RMIA: how likely the label is, against models that never saw the record",
    "distance": "how far the label's probability is from such models', either way",
    "confidence": "the probability of the label: weak, one threshold for all records",
}


def placements(scores: np.ndarray, n_erased: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each erased record the share of fresh ones below it, of each fresh record the
    share of erased ones above it; ties count half. Both have the AUC as their mean.

    DeLong, DeLong and Clarke-Pearson, 1988: their variances give that of the AUC.
    """
    erased, fresh = scores[:n_erased], scores[n_erased:]

    def below(values: np.ndarray, among: np.ndarray) -> np.ndarray:
        among = np.sort(among)
        left = np.searchsorted(among, values, side="left")
        return (left + np.searchsorted(among, values, side="right")) / (2 * len(among))

    return below(erased, fresh), 1 - below(fresh, erased)


def compare(original: Values, unlearned: Values, references: Sequence[Values]) -> dict:
    """{"metrics": [...], "attacks": [...]}: each a name, what it is about, and an
    Interval for original, unlearned, retrained, gap and control.

    gap is unlearned - retrained, control is original - retrained: what the attack sees
    if nothing is unlearned. Their intervals cover both that other records could have
    been drawn, and that other references could have been trained.
    """
    rows = []
    for name, about, part in (
        ("UA", "share of the erased records that is classified wrongly", "erased"),
        ("RA", "accuracy on the records that stay", "kept"),
        ("TA", "accuracy on records that no model has seen", "fresh"),
    ):
        values = [m[part]["correct"] for m in (original, unlearned, *references)]
        if name == "UA":
            values = [1 - correct for correct in values]
        retrained = np.stack(values[2:])  # [R, N]
        o, u = (np.broadcast_to(v, retrained.shape) for v in values[:2])
        rows.append(_row(name, about, [o], [u], [retrained]))
    attacks = [
        _attacked(name, attack, original, unlearned, references)
        for name, attack in ATTACKS.items()
    ]
    return {"metrics": rows, "attacks": attacks}


def _attacked(
    name: str,
    attack: Callable[[np.ndarray, np.ndarray, int], np.ndarray],
    original: Values,
    unlearned: Values,
    references: Sequence[Values],
) -> dict[str, Any]:
    """Each reference is attacked with the others as OUT models, and so are the two
    models beside it: the same attacker for all three."""
    n = len(unlearned["erased"]["confidence"])
    outs = np.stack([_both(reference) for reference in references])
    halves = []
    for model in (_both(original), _both(unlearned), None):
        pairs = []
        for i, reference in enumerate(outs):
            target = reference if model is None else model
            scores = attack(target, np.delete(outs, i, axis=0), n)
            pairs.append(placements(scores, n))
        halves.append([np.stack(side) for side in zip(*pairs, strict=True)])
    about = "AUC of erased records against fresh ones, by "
    return _row(name, about + SAID[name], *halves)


def _row(
    name: str, about: str, original: Halves, unlearned: Halves, retrained: Halves
) -> dict[str, Any]:
    return {
        "name": name,
        "about": about,
        "original": _mean(original),
        "unlearned": _mean(unlearned),
        "retrained": _mean(retrained),
        "gap": _mean([u - r for u, r in zip(unlearned, retrained, strict=True)]),
        "control": _mean([o - r for o, r in zip(original, retrained, strict=True)]),
    }


def _mean(halves: Halves) -> Interval:
    """The mean over all, with the errors of records and of references."""
    records = [(_variance(half.mean(0)), half.shape[1]) for half in halves]
    references = (_variance(halves[0].mean(1)), len(halves[0]))
    return combined(float(halves[0].mean()), [*records, references])


def _variance(values: np.ndarray) -> float:
    return float(np.var(values, ddof=1)) if len(values) > 1 else math.nan


def _both(values: Values) -> np.ndarray:
    """Probability of the label of the erased, then of the fresh records."""
    return np.concatenate([values[part]["confidence"] for part in ("erased", "fresh")])


def values_of(model: nn.Module, parts: dict[str, Split]) -> Values:
    """What `compare` takes, of one model."""
    found: Values = {}
    for name, split in parts.items():
        samples = metrics.per_sample(model, split)
        found[name] = {
            key: samples[key].double().numpy() for key in ("correct", "confidence")
        }
    return found
