"""Models ranked over all items, and the choice of settings on the validation part.

chosen = select([EASE(l2=l2) for l2 in (50, 200, 800)], data)
result = evaluate(chosen.best.fit(data.final().train), data, "test")
result.means["ndcg@20"]
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from apps.common import processes
from apps.common.statistics import Interval
from apps.recsys import metrics
from apps.recsys.models.closed_form import Model, Recommender
from apps.recsys.splits import Dataset


@dataclass(frozen=True)
class Evaluation:
    """part: "valid" or "test". ranked: [U, K] int32, -1 beyond the end of a list.

    values: {"ndcg@20": [U] float64, ...}, NaN for users who have nothing in the part,
    or nothing in the training part.
    """

    part: str
    ranked: np.ndarray
    values: metrics.Metrics

    @property
    def means(self) -> dict[str, float]:
        return {name: float(np.nanmean(value)) for name, value in self.values.items()}

    @property
    def intervals(self) -> dict[str, Interval]:
        return metrics.summary(self.values)


def evaluate(
    model: Model, data: Dataset, part: str, ks: Sequence[int] = metrics.KS
) -> Evaluation:
    """Metrics of full rankings; all that is known before `part` is masked.

    Only users who have something in the part are scored, and in the training part: to
    others a model would give what it began with. Their lists are empty. Several
    processes rank a part of the users each.

    Raises ValueError if nobody is left.
    """
    wanted, known = data.part(part), data.known(part)
    trained = np.diff(data.train.indptr) > 0
    users = np.flatnonzero((np.diff(wanted.indptr) > 0) & trained)
    if wanted.nnz == 0:
        raise ValueError(f"the {part} part is empty")
    if len(users) == 0:
        raise ValueError(f"no user of the {part} part has training interactions")
    mine = users[processes.rows(len(users))]
    items = best_items(model, mine, max(ks), known)
    items = processes.gathered(items, len(users))
    ranked = np.full((data.shape[0], max(ks)), -1, np.int32)
    ranked[users, : items.shape[1]] = items  # narrower if there are fewer items
    values = metrics.ranking_metrics(ranked, wanted, ks)
    known_to_it = {name: np.where(trained, v, np.nan) for name, v in values.items()}
    return Evaluation(part, ranked, known_to_it)


def of_items(
    tested: Evaluation, data: Dataset, items: np.ndarray, ks: Sequence[int]
) -> metrics.Metrics:
    """The metrics of the same lists by test interactions with some items alone.

    items: [I] bool. NaN for users who were not ranked for, or have none of the items.
    """
    part = metrics.only_items(data.part(tested.part), items)
    left_out = np.isnan(next(iter(tested.values.values())))
    values = metrics.ranking_metrics(tested.ranked, part, ks)
    return {name: np.where(left_out, np.nan, v) for name, v in values.items()}


def new_users(data: Dataset, part: str) -> int:
    """Users of a part without training interactions, who are not ranked for."""
    there = np.diff(data.part(part).indptr) > 0
    return int((there & (np.diff(data.train.indptr) == 0)).sum())


def best_items(
    model: Model, users: np.ndarray, k: int, known: sp.csr_array
) -> np.ndarray:
    """[B, k] int32: the best unknown items of each of the users, -1 where none is left.

    A model with a method `best(users, k, known)` ranks by itself: by inner products
    without all scores, or on a GPU. known: CSR [U, I].
    """
    if hasattr(model, "best"):
        return model.best(users, k, known)
    from apps.recsys.topk import top_k_scores  # numba, which a GPU box may not have

    return top_k_scores(model.scores, k, known, users=users).items


@dataclass(frozen=True)
class Selection:
    """best: the settings that won. table: (settings, value on validation) of all."""

    metric: str
    best: Recommender
    table: tuple[tuple[Recommender, float], ...]


def select(
    candidates: Sequence[Recommender], data: Dataset, metric: str = "ndcg@20"
) -> Selection:
    """The settings with the best mean on the validation part; the first of equal ones.

    Fitted on the training part alone. The test part is not looked at: it may be empty.
    """
    if not candidates:
        raise ValueError("no settings to choose from")
    k = int(metric.split("@")[1])
    blind = _without_test(data)
    table = [
        (c, evaluate(c.fit(blind.train), blind, "valid", [k]).means[metric])
        for c in candidates
    ]
    best = max(table, key=lambda row: row[1])[0]  # max keeps the first
    return Selection(metric, best, tuple(table))


def _without_test(data: Dataset) -> Dataset:
    return replace(data, test=sp.csr_array(data.shape, dtype=np.float32))
