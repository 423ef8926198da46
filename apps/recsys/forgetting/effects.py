"""What forgetting did to the others: their lists, beside those of a retrained model."""

import numpy as np
import scipy.sparse as sp

from apps.common.statistics import Interval, mean_interval

K = 20


def difference(ours: np.ndarray, theirs: np.ndarray) -> Interval:
    """Mean of a metric's difference over users who have it in both, [U] each."""
    both = ~(np.isnan(ours) | np.isnan(theirs))
    return mean_interval((ours - theirs)[both])


def same_items(ours: np.ndarray, theirs: np.ndarray, k: int = K) -> np.ndarray:
    """[U] share of the first k items that two lists share; NaN for an empty one.

    ours, theirs: [U, K] int, -1 beyond the end of a list.

    >>> same_items(np.array([[1, 2], [-1, -1]]), np.array([[2, 3], [0, 1]]), 2).tolist()
    [0.5, nan]
    """
    found = np.full(len(ours), np.nan)
    for row, (a, b) in enumerate(zip(ours[:, :k], theirs[:, :k], strict=True)):
        a, b = a[a >= 0], b[b >= 0]
        if len(a) and len(b):
            found[row] = len(np.intersect1d(a, b)) / max(len(a), len(b))
    return found


def in_neighbours_lists(
    ranked: np.ndarray, train: sp.csr_array, histories: sp.csr_array,
    neighbours: int = 20, k: int = K,
) -> np.ndarray:  # fmt: skip
    """[F]: the share of a forgotten user's items in the lists of their neighbours.

    Neighbours are the users of `train` (CSR [U, I]) with the most similar histories, by
    cosine, among those who have a list. ranked: [U, K]; histories: CSR [F, I]. NaN for
    an empty history.
    """
    listed = np.flatnonzero(ranked[:, 0] >= 0)
    lengths = np.maximum(np.diff(train.indptr), 1)
    shared = (histories @ train[listed].T).toarray() / np.sqrt(lengths[listed])
    found = np.full(histories.shape[0], np.nan)
    for row in range(histories.shape[0]):
        own = histories.indices[histories.indptr[row] : histories.indptr[row + 1]]
        if len(own) and len(listed):
            near = listed[np.argsort(-shared[row], kind="stable")[:neighbours]]
            items = ranked[near, :k]
            found[row] = np.isin(items, own)[items >= 0].mean()
    return found
