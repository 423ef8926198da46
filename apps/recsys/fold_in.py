"""Which fold-in fits the vectors of a model: chosen on the validation part.

choice = choose(model.items, data)
choice.best                     # FoldIn(unseen=0.1, l2=...)
choice.value                    # NDCG@20 of the validation part, folded
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from apps.recsys.metrics import ranking_metrics
from apps.recsys.scoring import FoldIn
from apps.recsys.splits import Dataset
from apps.recsys.topk import top_k_factors

UNSEEN = (0.0, 0.001, 0.01, 0.1, 1.0)
L2 = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)  # times the mean of |v|^2
K = 20
MOST_USERS = 2000  # whose scores tell how long vectors have to be


@dataclass(frozen=True)
class Choice:
    """best: what won. value: its NDCG@20. table: (FoldIn, value) of all.

    users: how many the values are means of.
    """

    best: FoldIn
    value: float
    table: tuple[tuple[FoldIn, float], ...]
    users: int


def choose(
    items: np.ndarray,
    data: Dataset,
    *,
    unseen: Sequence[float] = UNSEEN,
    l2: Sequence[float] = L2,
    most_users: int = 2000,
    seed: int = 0,
) -> Choice:
    """The settings with the best mean NDCG@20 on validation; the first of equal ones.

    Users are folded in from their training items, as if they were new; at most
    `most_users` of those with validation items, drawn by `seed`. items: [I, d] float32.
    l2: in units of the mean squared length of the vectors.

    The vectors must not have seen the validation part: too little l2 would win, at the
    new users' expense. They have seen these users' training items, so the value
    flatters a little; `benchmarks/recsys_fold_in.py` measures users that no vector has
    seen.

    Raises ValueError if nobody has both parts, or all vectors are 0.
    """
    both = (np.diff(data.train.indptr) > 0) & (np.diff(data.valid.indptr) > 0)
    users = np.flatnonzero(both)
    if len(users) == 0:
        raise ValueError(
            "nobody has training and validation items: give the fold-in settings"
        )
    if len(users) > most_users:
        rng = np.random.default_rng(seed)
        users = np.sort(rng.choice(users, most_users, replace=False))
    known, wanted = data.train[users], data.valid[users]
    unit = mean_square(items)
    if not unit > 0:
        raise ValueError("all vectors of items are 0: there is nothing to fold in")
    k = min(K, len(items))
    table = []
    for share in unseen:
        for factor in l2:
            fold = FoldIn(share, factor * unit)
            vectors = folded(fold, known, items)
            ranked = top_k_factors(vectors, items, k, known, threads=1).items
            values = ranking_metrics(ranked, wanted, [k])[f"ndcg@{k}"]
            table.append((fold, float(np.nanmean(values))))
    best, value = max(table, key=lambda row: row[1])  # max keeps the first
    return Choice(best, value, tuple(table), len(users))


def mean_square(vectors: np.ndarray) -> float:
    """Mean squared length of the rows."""
    return float((vectors.astype(np.float64) ** 2).sum(1).mean())


def folded(fold: FoldIn, histories: sp.csr_array, items: np.ndarray) -> np.ndarray:
    """[B, d] float32: the vectors of users with these histories, CSR [B, I].

    Users without a history have the vector 0.
    """
    wide = items.astype(np.float64)
    gram = wide.T @ wide
    vectors = np.zeros((histories.shape[0], items.shape[1]), np.float32)
    for row in np.flatnonzero(np.diff(histories.indptr)):
        own = histories.indices[histories.indptr[row] : histories.indptr[row + 1]]
        vectors[row] = fold.vector(items[own], gram)
    return vectors


def level(rows: np.ndarray, columns: np.ndarray, pairs: sp.csr_array) -> float:
    """Mean inner product over the stored pairs. rows: [R, d], columns: [C, d]."""
    total = 0.0
    for row in np.flatnonzero(np.diff(pairs.indptr)):
        own = pairs.indices[pairs.indptr[row] : pairs.indptr[row + 1]]
        total += float(rows[row] @ columns[own].sum(0))
    return total / max(1, pairs.nnz)


def scale_of(
    users: np.ndarray, items: np.ndarray, old: sp.csr_array, fold: FoldIn
) -> float:
    """What gives folded users the mean score of trained ones over their own items."""
    rows = np.flatnonzero(np.diff(old.indptr))
    if len(rows) > MOST_USERS:
        rng = np.random.default_rng(0)
        rows = np.sort(rng.choice(rows, MOST_USERS, replace=False))
    before = level(folded(fold, old[rows], items), items, old[rows])
    trained = level(users[rows], items, old[rows])
    return trained / before if trained > 0 and before > 0 else 1.0
