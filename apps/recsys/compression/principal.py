"""Users and items turned to the axes of their scores, the most important first.

turned = principal_axes(model)              # the same scores
turned = principal_axes(model, rank=16)     # the nearest ones of rank 16
"""

import numpy as np

from apps.recsys.models.factors import Factors


def principal_axes(factors: Factors, rank: int | None = None) -> Factors:
    """Factors whose scores are the best approximation of rank `rank`.

    With `U V' = P S Q'` (singular values falling) users become `P S^(1/2)` and items
    `Q S^(1/2)`, their first `rank` columns: by Eckart and Young no other users and
    items of so few dimensions have a smaller sum of squared errors over all scores. All
    of them, rank d, leave scores as they were. Two QR decompositions and the SVD of a
    d x d matrix: no score is computed.

    The second moments of users and items, summed over their rows, are then the same
    diagonal matrix S: a column of either side matters as much as that of the other.

    Raises ValueError for a rank outside 1 ... d.

    >>> factors = Factors(np.array([[3.0, 4.0]]), np.array([[1.0, 1.0], [0.0, 1.0]]))
    >>> turned = principal_axes(factors, rank=1)
    >>> turned.scores(np.array([0])).round(4).tolist()  # one user: rank 1 suffices
    [[7.0, 4.0]]

    Eckart, Young: The approximation of one matrix by another of lower rank, 1936.
    """
    d = factors.items.shape[1]
    rank = d if rank is None else rank
    if not 1 <= rank <= d:
        raise ValueError(f"rank must be in 1 ... {d}, got {rank}")
    (left, upper), (right, lower) = (
        np.linalg.qr(side.astype(np.float64)) for side in (factors.users, factors.items)
    )
    p, values, q = np.linalg.svd(upper @ lower.T)
    rank = min(rank, len(values))
    roots = np.sqrt(values[:rank])
    users, items = left @ p[:, :rank] * roots, right @ q[:rank].T * roots
    return Factors(users.astype(np.float32), items.astype(np.float32))


def random_rotation(factors: Factors, seed: int = 0) -> Factors:
    """The same scores from vectors turned at random.

    A rotation spreads what a row has over all its numbers. They are then of one size,
    and few bits a number with one scale a row lose less; what it does to pruning is the
    opposite.
    """
    d = factors.items.shape[1]
    normal = np.random.default_rng(seed).standard_normal((d, d))
    turn, _ = np.linalg.qr(normal)
    users, items = (side @ turn for side in (factors.users, factors.items))
    return Factors(users.astype(np.float32), items.astype(np.float32))
