"""Recipes without vectors: weights between items, the largest that fit."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np
import scipy.sparse as sp

from apps.recsys.compression import pruning
from apps.recsys.compression.candidate import Candidate, Recipe, Subject
from apps.recsys.compression.packed import PackedWeights
from apps.recsys.evaluation import select
from apps.recsys.models.closed_form import EASE, ItemKNN, Linear, Recommender
from apps.recsys.tables import Sparse

EASE_L2 = (50.0, 100.0, 250.0, 500.0, 1000.0, 2000.0)
KNN = tuple(
    ItemKNN(neighbours, shrink)
    for neighbours in (20, 50, 100, 200)
    for shrink in (0.0, 10.0, 50.0)
)
MOST_ITEMS = 10_000  # for EASE, whose weights are dense first


def ease(subject: Subject, budget: int) -> Iterator[Candidate]:
    """Ridge regression, its l2 chosen on validation, then pruned."""
    if subject.data.shape[1] > MOST_ITEMS or not subject.data.valid.nnz:
        return
    yield from _pruned(*fitted_ease(subject), budget)


def item_knn(subject: Subject, budget: int) -> Iterator[Candidate]:
    """Neighbours by cosine, their number and shrinkage chosen, then pruned."""
    if subject.data.valid.nnz:
        yield from _pruned(*_fitted("item knn", KNN, subject), budget)


def fitted_ease(subject: Subject) -> tuple[Linear, Recommender]:
    """EASE with the best l2 on validation, and its settings."""
    return _fitted("ease", [EASE(l2) for l2 in EASE_L2], subject)


def _fitted(
    name: str, settings: Sequence[Recommender], subject: Subject
) -> tuple[Linear, Recommender]:
    def fit() -> tuple[Linear, Recommender]:
        best = select(settings, subject.data).best
        return best.fit(subject.data.train), best

    return subject.once(name, fit, any_seed=True)


def _pruned(model: Linear, best: Recommender, budget: int) -> Iterator[Candidate]:
    chosen_settings = {k: v for k, v in asdict(best).items() if k != "most_items"}
    weights = sp.coo_array(model.weights)
    n = weights.shape[0]
    for values in ("float16", "int8"):
        for by in ("table", "column"):
            n_kept = pruning.fitting(n, n, budget, values)
            kept = _largest(weights, min(n_kept, weights.nnz), by)
            if len(kept) == 0:
                continue
            order = kept[np.lexsort((weights.col[kept], weights.row[kept]))]
            table = Sparse.of_entries(
                weights.shape,
                np.bincount(weights.row[order], minlength=n),
                weights.col[order],
                weights.data[order],
                values,
            )
            yield Candidate(
                chosen_settings | {
                    "values": values, "by": by, "an item": round(len(kept) / n, 1),
                },
                PackedWeights(table),
            )  # fmt: skip


def _largest(weights: sp.coo_array, n_kept: int, by: str) -> np.ndarray:
    """Which entries stay: the largest of all, or as many for each recommended item."""
    size = -np.abs(weights.data)
    if by == "table":
        return np.argsort(size, kind="stable")[:n_kept]
    order = np.lexsort((size, weights.col))
    columns = weights.col[order]
    place = np.arange(len(order)) - np.searchsorted(columns, columns)
    return order[place < n_kept // weights.shape[1]]


ITEM_WEIGHTS = (
    Recipe("ease", "the largest item weights of EASE", ease, any_seed=True),
    Recipe("item knn", "the nearest items", item_knn, any_seed=True),
)
