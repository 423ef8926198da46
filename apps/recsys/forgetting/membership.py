"""Has this model learned from that user? Attacks that fit a recommender.

    fit = of_users(model, histories)             # [F], how well their items go together
    found = calibrated(fit, [of_users(m, histories) for m in references])
    roc.attack(found, calibrated(of_users(retrained, histories), ...))

A user's row is not where a user stays: items that somebody had are moved towards each
other, and the item vectors remember it. Who has the histories (the person, or who once
saw them) can ask whether they fit the model better than they fit models that never saw
them. The null is such a model.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from apps.recsys.models.closed_form import Model
from apps.recsys.models.factors import Factors

RIDGE = 0.1  # in units of the mean eigenvalue of V'V


def of_users(model: Model, histories: sp.csr_array) -> np.ndarray:
    """[F] float64: how well each history fits the items of the model.

    From vectors by `cohesion` of the items; else, where a model has `fold_in`, by the
    scores that one half of a history gives the other. histories: CSR [F, I], of users
    whom the model need not have. NaN for fewer than two items.

    Raises ValueError for a model that has neither.
    """
    if isinstance(model, Factors):
        return cohesion(model.items, histories)
    if hasattr(model, "fold_in"):
        return recall_of_halves(model.fold_in, histories)
    raise ValueError(
        f"{type(model).__name__} has neither vectors nor fold_in: no attack on users"
    )


def of_items(model: Model, histories: sp.csr_array) -> np.ndarray:
    """[G] float64: the same for items, by the vectors of their users.

    histories: CSR [G, U], the users of each item. For models of vectors alone.
    """
    if not isinstance(model, Factors):
        raise ValueError(
            f"{type(model).__name__} has no vectors of users: no attack on items"
        )
    return cohesion(model.users, histories)


def of_pairs(model: Model, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """[P] float64: the score of each pair, in standard deviations of the user's scores.

    users, items: [P] indices in the model.
    """
    found = np.empty(len(users))
    for user in np.unique(users):
        scores = model.scores(np.array([user]))[0].astype(np.float64)
        own = users == user
        found[own] = (scores[items[own]] - scores.mean()) / _spread(scores)
    return found


def cohesion(vectors: np.ndarray, groups: sp.csr_array) -> np.ndarray:
    """How much the members of a group point at each other, [F] float64.

    vectors: V, [n, d]. groups: CSR [F, n], a stored entry for each member. Each member
    i of a group H is scored by the others, `s_i = v_i' A sum_{j in H, j != i} v_j` with
    `A = (V'V + ridge I)^-1`, as anything else of the n is by all of H; the result is
    the mean of the members' scores in standard deviations above the mean of the rest.
    A takes out what all vectors share, and which way they are turned.

    NaN for a group of fewer than two, or of all.

    >>> v = np.array([[1.0, 0.1], [1.0, -0.1], [0.0, 1.0], [-1.0, 0.5]])
    >>> cohesion(v, sp.csr_array([[1, 1, 0, 0], [1, 0, 0, 1]])).round(2).tolist()
    [1.26, -2.35]
    """
    wide = vectors.astype(np.float64)
    gram = wide.T @ wide
    ridge = max(RIDGE * np.trace(gram) / len(gram), 1e-30)
    white = np.linalg.solve(gram + ridge * np.eye(len(gram)), wide.T)  # [d, n]
    own = np.einsum("nd,dn->n", wide, white)
    found = np.full(groups.shape[0], np.nan)
    for row in range(groups.shape[0]):
        members = groups.indices[groups.indptr[row] : groups.indptr[row + 1]]
        scores = wide[members].sum(0) @ white
        scores[members] -= own[members]
        found[row] = _standing(scores, members)
    return found


def recall_of_halves(fold_in, histories: sp.csr_array) -> np.ndarray:
    """Scores of one half of a history by the other, [F], as `cohesion`.

    fold_in: CSR [B, I] -> [B, I] scores. Halves are every other item; both are scored.
    """
    place = _places(histories)
    found = np.zeros(histories.shape[0])
    for parity in (0, 1):
        given = histories.copy()
        given.data = np.where(place % 2 == parity, 1, 0).astype(np.float32)
        given.eliminate_zeros()
        scores = fold_in(given).astype(np.float64)
        for row in range(histories.shape[0]):
            span = slice(histories.indptr[row], histories.indptr[row + 1])
            members = histories.indices[span]
            asked = members[place[span] % 2 != parity]
            found[row] += _standing(scores[row], members, asked) / 2
    return found


def calibrated(own: np.ndarray, references: Sequence[np.ndarray]) -> np.ndarray:
    """[F]: a model's values minus their mean over models that never saw the records.

    Some histories fit any model; what is above the references is this model's.
    Raises ValueError without references.
    """
    if not len(references):
        raise ValueError("calibration needs at least one reference model")
    return own - np.mean(references, axis=0)


def _standing(
    scores: np.ndarray, members: np.ndarray, asked: np.ndarray | None = None
) -> float:
    """Mean of the scores asked for, in deviations above the mean of no members."""
    asked = members if asked is None else asked
    rest = np.ones(len(scores), bool)
    rest[members] = False
    if len(members) < 2 or len(asked) == 0 or not rest.any():
        return np.nan
    others = scores[rest]
    return float((scores[asked].mean() - others.mean()) / _spread(others))


def _spread(scores: np.ndarray) -> float:
    return max(float(scores.std()), 1e-30)


def _places(matrix: sp.csr_array) -> np.ndarray:
    """The place of each stored entry in its row, from 0."""
    lengths = np.diff(matrix.indptr)
    return np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], lengths)
