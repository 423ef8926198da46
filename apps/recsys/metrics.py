"""Ranking metrics, one value a user, and what a whole set of lists looks like.

    values = ranking_metrics(best.items, data.test, ks=(10, 20))
    values["ndcg@20"]          # [U], NaN for users without test items
    summary(values)            # {"ndcg@20": Interval, ...} over users

With n test items of a user, h_r = 1 where rank r (from 1) holds one of them, and k:

* recall = sum_{r <= k} h_r / n
* precision = sum_{r <= k} h_r / k
* hit = 1 if any h_r in the first k
* mrr = 1 / (rank of the first hit), 0 if it is beyond k
* map = sum_{r <= k} h_r precision@r / n  (as trec_eval's map_cut)
* ndcg = DCG / IDCG, DCG = sum_{r <= k} h_r / log2(r + 1), IDCG the DCG of the best
  possible list: the sum of 1 / log2(r + 1) over the first min(k, n) ranks
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import scipy.sparse as sp

from apps.common.statistics import Interval, mean_interval, paired_interval

KS = (5, 10, 20)
CELLS = 2**22  # of lists that are compared with test items at once
Metrics = dict[str, np.ndarray]


def ranking_metrics(
    ranked: np.ndarray, test: sp.csr_array, ks: Sequence[int] = KS
) -> Metrics:
    """{"recall@5": [U] float64, "ndcg@5": ..., ...} for each k; see the module.

    ranked: [U, K] integers, item indices, best first; -1 ends a list that is shorter.
    test: CSR [U, I]; every stored entry is a test item. ks: lengths of lists, at most
    K. Users without test items have NaN: they are left out of a mean, and their number
    belongs beside it.

    Raises ValueError for shapes or a k that do not fit, an item outside the matrix, an
    item that occurs twice in a list.

    >>> values = ranking_metrics(np.array([[2, 0, 1]]), sp.csr_array([[1, 1, 0]]), [2])
    >>> [round(float(values[f"{m}@2"][0]), 3) for m in ("recall", "map", "ndcg")]
    [0.5, 0.25, 0.387]

    Järvelin, Kekäläinen: Cumulated gain-based evaluation of IR techniques, 2002. The
    other definitions are those of trec_eval; only the list of mrr is cut.
    """
    hits, n_test = hit_matrix(ranked, test), _sizes(test)
    n_users, width = hits.shape
    for k in ks:
        if not 1 <= k <= width:
            raise ValueError(f"k = {k} needs lists of at least {k}, they have {width}")
    found = n_test > 0
    n = np.where(found, n_test, 1)
    ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, width + 2)))])
    users, places = _places(hits)  # of every hit, by user and by rank
    before = np.searchsorted(users, users)  # hits of other users, which come first
    ranks, counts = places + 1, np.arange(1, len(users) + 1) - before
    values: Metrics = {}
    for k in ks:
        within = ranks <= k
        rank, count = ranks[within], counts[within]
        summed = partial(np.bincount, users[within], minlength=n_users)
        total = summed()
        values[f"recall@{k}"] = total / n
        values[f"ndcg@{k}"] = (
            summed(weights=1 / np.log2(rank + 1)) / ideal[np.minimum(n, k)]
        )
        values[f"mrr@{k}"] = summed(weights=(count == 1) / rank)
        values[f"map@{k}"] = summed(weights=count / rank) / n
        values[f"hit@{k}"] = (total > 0).astype(np.float64)
        values[f"precision@{k}"] = total / k
    return {name: np.where(found, value, np.nan) for name, value in values.items()}


def hits_only_ndcg(ranked: np.ndarray, test: sp.csr_array, k: int) -> np.ndarray:
    """NDCG whose ideal list holds only the hits that were found, [U] float64.

    It measures order among the hits and not how many there are, so one hit on top of a
    list that misses nine test items is perfect. Some released code reports it; it is
    here to show what that does. Users without a hit have 0, without test items NaN.

    >>> ranked, test = np.array([[0, 3]]), sp.csr_array([[1, 1, 1, 0]])
    >>> hits_only_ndcg(ranked, test, 2).tolist()
    [1.0]
    """
    hits = hit_matrix(ranked, test)[:, :k]
    discounts = 1 / np.log2(np.arange(2, hits.shape[1] + 2))
    ideal = np.concatenate([[1.0], np.cumsum(discounts)])  # no hit: 0 / 1
    value = (hits * discounts).sum(1) / ideal[hits.sum(1)]
    value[_sizes(test) == 0] = np.nan
    return value


def hit_matrix(ranked: np.ndarray, test: sp.csr_array) -> np.ndarray:
    """[U, K] bool: which places of the lists hold a test item."""
    ranked, test = np.asarray(ranked), sp.csr_array(test)
    _check(ranked, test)
    hits = np.zeros(ranked.shape, bool)
    users = np.repeat(np.arange(len(ranked)), np.diff(test.indptr))
    size = max(1, CELLS // max(1, ranked.shape[1]))  # test items at a time
    for start in range(0, len(users), size):
        user, item = users[start : start + size], test.indices[start : start + size]
        entry, place = _places(ranked[user] == item[:, None])
        hits[user[entry], place] = True
    return hits


def _places(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`table.nonzero()` of two dimensions, several times faster."""
    return np.divmod(np.flatnonzero(table), max(1, table.shape[1]))


def summary(values: Mapping[str, np.ndarray], confidence: float = 0.95) -> dict:
    """{name: Interval} of the mean over users that have a value.

    The interval says how far other users of the same kind would move the mean; it says
    nothing about seeds or splits.
    """
    return {
        name: mean_interval(value[~np.isnan(value)], confidence)
        for name, value in values.items()
    }


def compare(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray],
    confidence: float = 0.95,
) -> dict[str, Interval]:  # fmt: skip
    """{name: Interval} of the mean difference ours - theirs, paired by user.

    Raises ValueError if they were measured on different users.
    """
    differences = {}
    for name in ours:
        a, b = ours[name], theirs[name]
        if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
            raise ValueError(f"{name}: the two were measured on different users")
        kept = ~np.isnan(a)
        differences[name] = paired_interval(a[kept], b[kept], confidence)
    return differences


def coverage(ranked: np.ndarray, n_items: int) -> float:
    """Share of the items that occur in at least one list, in [0, 1]."""
    return np.count_nonzero(_exposure(ranked, n_items)) / n_items


def gini(ranked: np.ndarray, n_items: int) -> float:
    """Gini coefficient of how often items are recommended, 0 (equally) to 1.

    `sum_j (2 j - I - 1) x_(j) / (I sum x)` with x sorted; items that occur in no list
    count, with 0.

    >>> gini(np.array([[0, 1]]), 2), gini(np.array([[0], [0]]), 4)
    (0.0, 0.75)
    """
    return concentration(_exposure(ranked, n_items))


def concentration(counts: np.ndarray) -> float:
    """Gini coefficient of counts; 0 if all are 0.

    >>> concentration(np.array([1, 1, 1])), concentration(np.array([0, 0, 0, 8]))
    (0.0, 0.75)
    """
    ordered, n = np.sort(counts).astype(np.float64), len(counts)
    total = ordered.sum()
    if total == 0:
        return 0.0
    weights = 2 * np.arange(1, n + 1) - n - 1
    return float(weights @ ordered / (n * total))


def novelty(ranked: np.ndarray, train: sp.csr_array) -> np.ndarray:
    """Mean surprise of a user's list in bits, `-log2(users of the item / U)`, [U].

    An item without training interactions counts as one with a single user. Empty lists
    have NaN.

    Zhou et al.: Solving the apparent diversity-accuracy dilemma, 2010.
    """
    n_users, n_items = train.shape
    users_of = np.bincount(sp.csr_array(train).indices, minlength=n_items)
    bits = -np.log2(np.maximum(users_of, 1) / n_users)
    shown = ranked >= 0
    total = np.where(shown, bits[np.where(shown, ranked, 0)], 0.0).sum(1)
    length = shown.sum(1)
    return np.where(length > 0, total / np.maximum(length, 1), np.nan)


def by_activity(train: sp.csr_array, shares: Sequence[float] = (1 / 3, 2 / 3)) -> dict:
    """{"light": [U] bool, "medium", "heavy"}: users by their training interactions.

    shares: where the sorted users are cut; equal users may land on either side, by
    index.
    """
    return _groups(_sizes(train), shares, ("light", "medium", "heavy"))


def by_popularity(
    train: sp.csr_array, shares: Sequence[float] = (0.8, 0.95)
) -> dict[str, np.ndarray]:
    """{"tail": [I] bool, "middle", "head"}: items by their training interactions.

    By default the head are the 5 % most popular items, the tail the 80 % least.
    """
    counts = np.bincount(sp.csr_array(train).indices, minlength=train.shape[1])
    return _groups(counts, shares, ("tail", "middle", "head"))


def only_items(test: sp.csr_array, chosen: np.ndarray) -> sp.csr_array:
    """The test part with the chosen items, [I] bool: for a slice by popularity.

    `ranking_metrics(ranked, only_items(test, groups["tail"]))` says how well tail items
    are found in the same lists. Users without such a test item get NaN.
    """
    table = sp.coo_array(test)
    keep = chosen[table.col]
    rows, columns = table.row[keep], table.col[keep]
    return sp.csr_array((table.data[keep], (rows, columns)), shape=test.shape)


def _groups(
    counts: np.ndarray, shares: Sequence[float], names: Sequence[str]
) -> dict[str, np.ndarray]:
    order = np.argsort(counts, kind="stable")
    cuts = [round(share * len(order)) for share in shares]
    groups = {}
    for name, part in zip(names, np.split(order, cuts), strict=True):
        groups[name] = np.zeros(len(order), bool)
        groups[name][part] = True
    return groups


def _exposure(ranked: np.ndarray, n_items: int) -> np.ndarray:
    return np.bincount(ranked[ranked >= 0], minlength=n_items)


def _sizes(matrix: sp.csr_array) -> np.ndarray:
    return np.diff(sp.csr_array(matrix).indptr)


def _check(ranked: np.ndarray, test: sp.csr_array) -> None:
    if ranked.ndim != 2 or len(ranked) != test.shape[0]:
        raise ValueError(
            f"ranked must be [{test.shape[0]} users, K], got shape {ranked.shape}"
        )
    if not np.issubdtype(ranked.dtype, np.integer):
        raise ValueError(f"ranked must hold item indices, got {ranked.dtype}")
    if ranked.size and ranked.max() >= test.shape[1]:
        raise ValueError(f"item {ranked.max()} is outside 0 ... {test.shape[1] - 1}")
    ordered = np.sort(ranked, 1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        raise ValueError(f"user {np.argwhere(twice)[0, 0]} has an item twice")
