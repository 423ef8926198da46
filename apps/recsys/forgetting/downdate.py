"""EASE's weights after interactions are gone, exactly, without fitting again.

    weights = downdated(weights, before, after, l2=250.0)

What the weights B tell about `P = (X'X + l2 I)^-1` is enough to get P back, and with P
a change of f rows of X costs products with f columns instead of an inversion.
"""

import numpy as np
import scipy.linalg as la
import scipy.sparse as sp


def inverse_of(weights: np.ndarray, train: sp.csr_array, l2: float) -> np.ndarray:
    """`P = (X'X + l2 I)^-1`, [I, I] float64, from `B = I - P / diag(P)`.

    weights: B, [I, I] with a diagonal of 0, fitted on X = train, CSR [U, I].

    Since `(X'X + l2 I) P = I`, the diagonal of P is
    `P_jj = 1 / (G_jj - sum_k G_jk B_kj)`, G = X'X + l2 I: no inversion.

    >>> from apps.recsys.models.closed_form import EASE
    >>> x = sp.csr_array(np.array([[1, 1], [0, 1]], np.float32))
    >>> inverse_of(EASE(l2=1.0).fit(x).weights, x, 1.0).round(4).tolist()
    [[0.6, -0.2], [-0.2, 0.4]]
    """
    ones = _binary(train)
    wide = weights.astype(np.float64)
    gram_weights = ones.T @ (ones @ wide)  # off the diagonal l2 adds nothing
    counts = np.bincount(ones.indices, minlength=ones.shape[1])
    diagonal = 1 / (counts + l2 - np.diag(gram_weights))
    inverse = -wide * diagonal
    inverse[np.diag_indices(len(wide))] = diagonal
    return (inverse + inverse.T) / 2


def downdated(
    weights: np.ndarray, before: sp.csr_array, after: sp.csr_array, l2: float
) -> np.ndarray:
    """B of `EASE(l2).fit(after)`, [I, I] float32, from that of `fit(before)`.

    before, after: CSR [U, I] over the same users and items; a user who is gone has an
    empty row in `after`, an item that is gone an empty column. With C = diag(-1, 1)
    over old and new versions U of the rows that differ, by Woodbury's identity

        `P' = P - P U' (C^-1 + U P U')^-1 U P`.

    An item without any interaction left is taken out first, by the inverse of a block:
    it would make every one of its users a row that differs.

    Costs O(I^2 f) for f rows that differ, against O(I^3) of a fit; in float64, so that
    what limits the result is the float32 of the given weights (about 1e-6).

    Raises ValueError for other shapes, or weights that are not those of `before`.

    Sherman & Morrison 1950, Woodbury 1950; Steck: EASE, 2019, eq. 8.
    """
    if before.shape != after.shape or weights.shape != (before.shape[1],) * 2:
        raise ValueError(
            f"weights {weights.shape}, before {before.shape} and after {after.shape} "
            "must be about the same users and items"
        )
    inverse = inverse_of(weights, before, l2)
    if not (np.diag(inverse) > 0).all():
        raise ValueError("the weights are not those of `before` with this l2")
    old, new = _binary(before), _binary(after)
    empty = np.flatnonzero((_degrees(new) == 0) & (_degrees(old) > 0))
    if len(empty):
        inverse = _without_items(inverse, empty, l2)
        old = _cleared(old, empty)
    differing = sp.csr_array(old - new)
    differing.eliminate_zeros()
    changed = np.flatnonzero(np.diff(differing.indptr))
    if len(changed):
        rows = np.concatenate([old[changed].toarray(), new[changed].toarray()])
        signs = np.repeat([-1.0, 1.0], len(changed))
        used = rows.any(axis=1)
        rows, signs = rows[used], signs[used]
        products = rows @ inverse
        core = np.diag(signs) + products @ rows.T
        inverse -= products.T @ la.solve(core, products, assume_a="sym")
    weights = inverse / -np.diag(inverse)
    weights[np.diag_indices(len(weights))] = 0
    return np.ascontiguousarray(weights, np.float32)


def _without_items(inverse: np.ndarray, items: np.ndarray, l2: float) -> np.ndarray:
    """P once the columns `items` of X are 0: a block of its own, 1 / l2 each."""
    block = inverse[np.ix_(items, items)]
    links = inverse[:, items]
    inverse = inverse - links @ la.solve(block, links.T, assume_a="pos")
    inverse[items] = 0
    inverse[:, items] = 0
    inverse[items, items] = 1 / l2
    return inverse


def _cleared(matrix: sp.csr_array, items: np.ndarray) -> sp.csr_array:
    cleared = matrix.copy()
    cleared.data[np.isin(cleared.indices, items)] = 0
    cleared.eliminate_zeros()
    return cleared


def _degrees(matrix: sp.csr_array) -> np.ndarray:
    return np.bincount(matrix.indices, minlength=matrix.shape[1])


def _binary(train: sp.csr_array) -> sp.csr_array:
    ones = sp.csr_array(train, dtype=np.float64, copy=True)
    ones.data[:] = 1
    return ones
