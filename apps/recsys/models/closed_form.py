"""Baselines without gradient descent: settings with `fit(train)`, models with scores.

    model = EASE(l2=250).fit(data.train)
    model.scores(np.array([3, 7]))            # [2, I] float32, larger = recommend
    model.fold_in(histories)                  # the same for users it has never seen

All of them are linear in a user's history, so folding in a new user is exact.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.linalg as la
import scipy.sparse as sp


class Model(Protocol):
    """What a fitted recommender can do."""

    def scores(self, users: np.ndarray) -> np.ndarray:
        """users: [B] int64, indices; returns [B, I] float32, larger = recommend."""


class Recommender(Protocol):
    """Settings of a model: a frozen dataclass."""

    def fit(self, train: sp.csr_array) -> Model:
        """train: CSR [U, I], a stored entry for each interaction."""


@dataclass(frozen=True)
class Linear:
    """scores = history @ weights. train: CSR [U, I]; weights: [I, I], maybe sparse."""

    train: sp.csr_array
    weights: np.ndarray | sp.csr_array

    def scores(self, users: np.ndarray) -> np.ndarray:
        return self.fold_in(self.train[users])

    def fold_in(self, histories: sp.csr_array) -> np.ndarray:
        """Scores for new users: CSR [B, I], a stored 1 for each of their items."""
        return _dense(histories @ self.weights)


@dataclass(frozen=True)
class Counts:
    """The same scores for everyone. counts: [I] float32."""

    counts: np.ndarray

    def scores(self, users: np.ndarray) -> np.ndarray:
        return np.tile(self.counts, (len(users), 1))

    def fold_in(self, histories: sp.csr_array) -> np.ndarray:
        return np.tile(self.counts, (histories.shape[0], 1))


@dataclass(frozen=True)
class Popularity:
    """Items by their number of users."""

    def fit(self, train: sp.csr_array) -> Counts:
        counts = np.bincount(train.indices, minlength=train.shape[1])
        return Counts(counts.astype(np.float32))


@dataclass(frozen=True)
class ItemKNN:
    """`score(u, i) = sum_{j in history(u)} s_ji`, each i with its `neighbours` best j.

    `s_ji = c_ji / (sqrt(c_j c_i) + shrink)`: c_ji users of both items, c_i of one.
    neighbours: kept for each item; equal similarities go to the lower index. shrink:
    number of users by which a similarity is not yet trusted.

    Deshpande, Karypis: Item-based top-N recommendation algorithms, 2004.
    """

    neighbours: int = 100
    shrink: float = 10.0

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.shrink < 0:
            raise ValueError(
                f"neighbours must be at least 1 and shrink at least 0, got "
                f"{self.neighbours} and {self.shrink}"
            )

    def fit(self, train: sp.csr_array) -> Linear:
        ones = _binary(train)
        n_items = train.shape[1]
        roots = np.sqrt(np.bincount(ones.indices, minlength=n_items))
        by_item = ones.T.tocsr()
        kept = [
            self._best(by_item[rows] @ ones, rows, roots)
            for rows in np.array_split(np.arange(n_items), -(-n_items // 1024))
        ]
        # Row i holds the neighbours of i; the weights want them in column i.
        return Linear(ones, sp.csr_array(sp.vstack(kept).T))

    def _best(
        self, shared: sp.csr_array, items: np.ndarray, roots: np.ndarray
    ) -> sp.csr_array:
        """The largest similarities of each row of co-occurrences."""
        rows = np.repeat(np.arange(len(items)), np.diff(shared.indptr))
        columns = shared.indices
        values = shared.data / (roots[items[rows]] * roots[columns] + self.shrink)
        other = columns != items[rows]
        rows, columns, values = rows[other], columns[other], values[other]
        order = np.lexsort((columns, -values, rows))
        rows = rows[order]
        starts = np.searchsorted(rows, np.arange(len(items)))
        near = np.arange(len(rows)) - starts[rows] < self.neighbours
        order = order[near]
        return sp.csr_array(
            (values[order].astype(np.float32), (rows[near], columns[order])),
            shape=shared.shape,
        )


@dataclass(frozen=True)
class EASE:
    """Item weights by ridge regression of every item on all others.

    `B = -P / diag(P)` column by column with a diagonal of zero,
    `P = (X'X + l2 I)^-1`: the minimum of `|X - X B|^2 + l2 |B|^2` with `diag(B) = 0`.

    Takes 4 I^2 bytes for the result and about I^3 operations: raises ValueError beyond
    `most_items`.

    Steck: Embarrassingly shallow autoencoders for sparse data, 2019, eq. 8.
    """

    l2: float = 250.0
    most_items: int = 20_000

    def __post_init__(self) -> None:
        if self.l2 <= 0:
            raise ValueError(f"l2 must be positive, got {self.l2}")

    def fit(self, train: sp.csr_array) -> Linear:
        n_items = train.shape[1]
        if n_items > self.most_items:
            raise ValueError(
                f"EASE on {n_items:,} items needs {4 * n_items**2 / 1e9:.1f} GB for "
                f"its weights; raise most_items (now {self.most_items:,}) to allow it"
            )
        ones = _binary(train)
        gram = (ones.T @ ones).toarray(order="F")
        gram[np.diag_indices(n_items)] += np.float32(self.l2)
        # The inverse in place: half a matrix, mirrored.
        factor, bad = la.lapack.spotrf(gram, lower=1, overwrite_a=1)
        inverse, worse = la.lapack.spotri(factor, lower=1, overwrite_c=1)
        if bad or worse:
            raise ValueError(f"the regression is singular: raise l2 above {self.l2}")
        inverse = np.tril(inverse)
        inverse += np.tril(inverse, -1).T
        weights = inverse / -np.diag(inverse)
        weights[np.diag_indices(n_items)] = 0
        return Linear(ones, np.ascontiguousarray(weights))


@dataclass(frozen=True)
class Cooccurrence:
    """`scores = R N'N`, `N = D_u^(-1/2) R D_i^(-1/2)`: two hops, nothing learned.

    R: the interactions, D: diagonal matrices of the degrees of users and items. What a
    user had, times how often items go together if heavy users and popular items count
    less. Two sparse products a block of users; no matrix of items x items is kept.

    Differs from a graph convolution in the first factor: R and not N.
    """

    def fit(self, train: sp.csr_array) -> "TwoHops":
        ones = _binary(train)
        by_user = np.maximum(np.diff(ones.indptr), 1)
        by_item = np.maximum(np.bincount(ones.indices, minlength=train.shape[1]), 1)
        normal = ones.copy()
        users = np.repeat(by_user, np.diff(ones.indptr))
        normal.data = (1 / np.sqrt(users * by_item[ones.indices])).astype(np.float32)
        return TwoHops(ones, normal, normal.T.tocsr())


@dataclass(frozen=True)
class TwoHops:
    """The fitted `Cooccurrence`. train, normal: CSR [U, I]; back: CSR [I, U]."""

    train: sp.csr_array
    normal: sp.csr_array
    back: sp.csr_array

    def scores(self, users: np.ndarray) -> np.ndarray:
        return self.fold_in(self.train[users])

    def fold_in(self, histories: sp.csr_array) -> np.ndarray:
        return _dense((histories @ self.back) @ self.normal)


def _binary(train: sp.csr_array) -> sp.csr_array:
    ones = sp.csr_array(train, dtype=np.float32, copy=True)
    ones.data[:] = 1
    return ones


def _dense(scores: np.ndarray | sp.csr_array) -> np.ndarray:
    array = scores.toarray() if sp.issparse(scores) else scores
    return np.ascontiguousarray(array, dtype=np.float32)
