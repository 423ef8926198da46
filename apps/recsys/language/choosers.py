"""Scores of candidates without a language model: the controls of every comparison.

    by_scores(offered, popularity(offered, counts))

Each returns [U, K] float64, larger = would like more, NaN where nothing is offered.
"""

from collections.abc import Sequence

import numpy as np

from apps.recsys.language.catalogue import Catalogue


def base_order(offered: np.ndarray) -> np.ndarray:
    """The order of the base recommender: its best candidate is liked, its last not."""
    ranks = np.broadcast_to(-np.arange(offered.shape[1], dtype=float), offered.shape)
    return _where_offered(offered, ranks)


def at_random(offered: np.ndarray, seed: int) -> np.ndarray:
    """Uniform numbers."""
    return _where_offered(offered, np.random.default_rng(seed).random(offered.shape))


def popularity(offered: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """counts: [I], interactions of each item in train."""
    return _where_offered(offered, counts[offered].astype(float))


def similarity(
    offered: np.ndarray, read: Sequence[np.ndarray], vectors: np.ndarray
) -> np.ndarray:
    """Mean inner product of a candidate's vector with those of the user's items.

    vectors: [I, d] with rows of length 1 or 0, as an encoder's, or `genre_vectors`.
    """
    scores = np.zeros(offered.shape)
    for user, history in enumerate(read):
        if len(history):
            scores[user] = vectors[offered[user]] @ vectors[history].mean(0)
    return _where_offered(offered, scores)


def genre_vectors(items: Catalogue) -> np.ndarray:
    """[I, G] float32: 1 for each genre, scaled to length 1; rows without genres are 0.

    >>> genre_vectors(Catalogue(("A", "B"), (None, None), (("War",), ()))).tolist()
    [[1.0], [0.0]]
    """
    names = {genre: k for k, genre in enumerate(items.all_genres)}
    rows = np.zeros((len(items), len(names)), np.float32)
    for i, genres in enumerate(items.genres):
        rows[i, [names[genre] for genre in genres]] = 1
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(lengths, 1)


def _where_offered(offered: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return np.where(offered >= 0, scores, np.nan)
