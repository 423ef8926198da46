"""How many bits each column of users and items is worth, for the error of scores.

A number rounded to b bits is off by about `spread 2^-b`. If column j of the users is
off by e_j, scores are off by `e_j v_j`, so over all pairs of users and items

    mean squared error of a score ~ sum_j  4^-b_j var(u_j) mean(v_j^2)
                                         + 4^-c_j var(v_j) mean(u_j^2)

b_j, c_j: bits of column j of the users and of the items; a column of 0 bits is replaced
by its mean, which is off by its variance. Each further bit divides a term by 4, so the
next bit always goes where the term is largest: reverse water-filling.

Cover, Thomas: Elements of information theory, 2006, section 10.3.3. Differs from it in
the distortion: of scores, not of vectors, which moves bits to the first columns.
"""

import heapq

import numpy as np

from apps.recsys.models.factors import Factors

MOST_BITS = 8


def bits_within(
    factors: Factors, budget: int, *, stored_users: bool = True
) -> tuple[np.ndarray, np.ndarray] | None:
    """Bits of the columns of users and items, [d] each, 0 ... 8.

    factors: turned to their principal axes. budget: bytes of all rows, each of whole
    bytes. All splits into bytes a user and bytes an item are tried, and the one of the
    least error is taken. stored_users: if False, users take no bytes (and no error).

    Returns None if not even a byte a row fits.

    >>> rng = np.random.default_rng(0)
    >>> sizes = 2.0 ** -np.arange(3)
    >>> factors = Factors(rng.normal(size=(50, 3)) * sizes,
    ...                   rng.normal(size=(90, 3)) * sizes)
    >>> [bits.tolist() for bits in bits_within(factors, 140)]
    [[5, 3, 0], [5, 3, 0]]
    """
    users, items = factors.users.astype(np.float64), factors.items.astype(np.float64)
    d, (n_users, n_items) = users.shape[1], (len(users), len(items))
    worth_users = users.var(0) * (items**2).mean(0)
    worth_items = items.var(0) * (users**2).mean(0)
    item_order, item_errors = _falling(worth_items)
    if not stored_users:
        if budget < n_items:
            return None
        size = min(d, budget // n_items)
        return np.zeros(d, np.int64), _counts(item_order[: 8 * size], d)
    user_order, user_errors = _falling(worth_users)
    best = None
    for size in range(1, d + 1):
        other = min(d, (budget - size * n_users) // n_items)
        if other < 1:
            break
        error = user_errors[8 * size] + item_errors[8 * other]
        if best is None or error < best[0]:
            best = error, size, other
    if best is None:
        return None
    _, size, other = best
    return _counts(user_order[: 8 * size], d), _counts(item_order[: 8 * other], d)


def _falling(worth: np.ndarray) -> tuple[list[int], list[float]]:
    """Columns in the order in which they get bits, and the error before each."""
    heap = [(-value, j) for j, value in enumerate(worth.tolist())]
    heapq.heapify(heap)
    given, left = [0] * len(worth), float(worth.sum())
    order, errors = [], [left]
    while heap:
        value, j = heapq.heappop(heap)
        order.append(j)
        given[j] += 1
        left += 0.75 * value
        errors.append(left)
        if given[j] < MOST_BITS:
            heapq.heappush(heap, (value / 4, j))
    return order, errors


def _counts(order: list[int], d: int) -> np.ndarray:
    return np.bincount(np.array(order, np.int64), minlength=d)
