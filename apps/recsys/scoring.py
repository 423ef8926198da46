"""Scores of all items for one user, from packed tables or item weights; numpy only.

model.trained(user)              # [I] float32, from the user's own vector
model.folded(history)            # [I] float32, for a history it has never seen
model.explained(history, items)  # [K, H]: what each item of the history adds
best(scores, k)                  # the k largest, best first
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from apps.recsys.ragged import Ragged
from apps.recsys.tables import Table
from apps.recsys.tables.stored import blocks


class Scorer(Protocol):
    """A model that can be served. Items are indices, a history an array of them."""

    @property
    def n_items(self) -> int: ...
    def trained(self, user: int) -> np.ndarray | None:
        """[I] float32; None if nothing of the user's own is stored."""

    def folded(self, history: np.ndarray) -> np.ndarray:
        """[I] float32."""

    def explained(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        """[K, H]; its sums over the history are the items' scores of `folded`."""

    def similar(self, item: int) -> np.ndarray:
        """[I] float32, larger = more alike."""


@dataclass(frozen=True)
class FoldIn:
    """A user's vector from a history H and the item vectors v, in closed form.

    The u that minimises
        `sum_{i in H} (1 - u.v_i)^2 + unseen sum_i (u.v_i)^2 + l2 |u|^2`, which is
        `u = A^-1 sum_{j in H} v_j`,
        `A = sum_{j in H} v_j v_j' + unseen V'V + l2 I`.

    So `u.v_i = sum_{j in H} v_i' A^-1 v_j`: each item of the history adds its own part
    to a score. unseen: weight of an item that is not in the history, as a wanted score
    of 0; l2: towards short vectors. With l2 -> infinity u turns to the sum of the
    history's vectors.

    Hu, Koren, Volinsky: Collaborative filtering for implicit feedback datasets, 2008,
    eq. 4 and section 5; there unseen = 1 and what is in the history weighs 1 + alpha.
    """

    unseen: float
    l2: float

    def __post_init__(self) -> None:
        if not (0 <= self.unseen < np.inf and 0 < self.l2 < np.inf):
            raise ValueError(
                f"unseen must be 0 or more and l2 positive, got {self.unseen} and "
                f"{self.l2}"
            )

    def parts(self, chosen: np.ndarray, gram: np.ndarray) -> np.ndarray:
        """`A^-1 v_j` for each item of the history, [H, d] float64; u is their sum.

        chosen: [H, d], the v_j. gram: [d, d], V'V over all items.
        """
        return np.linalg.solve(self._matrix(chosen, gram), chosen.T).T

    def vector(self, chosen: np.ndarray, gram: np.ndarray) -> np.ndarray:
        """u, [d] float64, as `parts`."""
        total = chosen.sum(0, dtype=np.float64)
        return np.linalg.solve(self._matrix(chosen, gram), total)

    def _matrix(self, chosen: np.ndarray, gram: np.ndarray) -> np.ndarray:
        chosen = chosen.astype(np.float64)
        matrix = chosen.T @ chosen + self.unseen * gram
        matrix[np.diag_indices(len(matrix))] += self.l2
        return matrix


@dataclass(frozen=True)
class FactorScorer:
    """score(u, i) = u.v_i. users: [U, d], None if only histories are served; items:
    [I, d]."""

    users: Table | None
    items: Table
    fold_in: FoldIn

    def __post_init__(self) -> None:
        if self.users is not None and self.users.shape[1] != self.items.shape[1]:
            raise ValueError(
                f"users have {self.users.shape[1]} dimensions, items have "
                f"{self.items.shape[1]}"
            )

    @property
    def n_items(self) -> int:
        return self.items.shape[0]

    @cached_property
    def gram(self) -> np.ndarray:
        """[d, d] float64: V'V."""
        d = self.items.shape[1]
        total = np.zeros((d, d))
        for part in blocks(self.items):
            rows = self.items.rows(part).astype(np.float64)
            total += rows.T @ rows
        return total

    @cached_property
    def lengths(self) -> np.ndarray:
        """[I] float64: |v_i|."""
        return lengths(self.items)

    def trained(self, user: int) -> np.ndarray | None:
        if self.users is None:
            return None
        return self._scores(self.users.rows(np.array([user]))[0])

    def folded(self, history: np.ndarray) -> np.ndarray:
        vector = self.fold_in.vector(self.items.rows(history), self.gram)
        return self._scores(vector.astype(np.float32))

    def explained(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        parts = self.fold_in.parts(self.items.rows(history), self.gram)
        return self.items.rows(items) @ parts.T

    def similar(self, item: int) -> np.ndarray:
        """Cosines; 0 where one of the two vectors is 0."""
        scores = self._scores(self.items.rows(np.array([item]))[0])
        both = (self.lengths * self.lengths[item]).astype(np.float32)
        return np.divide(scores, both, out=np.zeros_like(scores), where=both > 0)

    def _scores(self, vector: np.ndarray) -> np.ndarray:
        return self.items.scores(vector[None])[0]


@dataclass(frozen=True)
class LinearScorer:
    """score(i) = sum over j in the history of w_ji. weights: I lists of the items i
    that j speaks for; values: [nnz] float32 or float16, the w_ji in that order."""

    weights: Ragged
    values: np.ndarray

    @property
    def n_items(self) -> int:
        return len(self.weights)

    def trained(self, user: int) -> np.ndarray | None:
        return None

    def folded(self, history: np.ndarray) -> np.ndarray:
        offsets = self.weights.offsets
        parts = [slice(offsets[j], offsets[j + 1]) for j in history.tolist()]
        scores = np.zeros(self.n_items)
        for part in parts:  # an item occurs once in a part
            scores[self.weights.values[part]] += self.values[part]
        return scores.astype(np.float32)

    def explained(self, history: np.ndarray, items: np.ndarray) -> np.ndarray:
        found = np.zeros((len(items), len(history)))
        for column, j in enumerate(history.tolist()):
            near = self.weights[j]
            place = np.minimum(np.searchsorted(near, items), max(0, len(near) - 1))
            hit = near[place] == items if len(near) else np.zeros(len(items), bool)
            start = self.weights.offsets[j]
            found[hit, column] = self.values[start + place[hit]]
        return found

    def similar(self, item: int) -> np.ndarray:
        """What the item alone speaks for."""
        return self.folded(np.array([item]))


def lengths(table: Table) -> np.ndarray:
    """[n] float64, of the rows; not finite where a number is not."""
    found = np.empty(table.shape[0])
    for part in blocks(table):
        rows = table.rows(part)
        found[part] = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
    return np.sqrt(found)


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest scores, best first; equal ones: the lower index first.

    scores: [I]; -inf is never among the best, so there may be fewer than k.

    Raises ValueError for NaN and +inf.

    >>> best(np.array([1.0, 3.0, -np.inf, 3.0, 2.0]), 3).tolist()
    [1, 3, 4]
    """
    n = len(scores)
    k = min(k, n)
    if k == 0:
        return np.empty(0, np.int64)
    least = np.partition(scores, n - k)[n - k :]
    if not least.max() < np.inf:  # NaN sorts last
        raise ValueError("a score is NaN or infinite")
    chosen = np.flatnonzero(scores >= max(least[0], np.finfo(scores.dtype).min))
    order = np.lexsort((chosen, -scores[chosen]))
    return chosen[order[:k]]
