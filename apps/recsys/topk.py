"""The K best items of every user among all items, exactly, without users x items.

    best = top_k_factors(user_vectors, item_vectors, k=20, known=data.train)
    best = top_k_scores(model.scores, n_users=943, k=20, known=data.train)
    best.items     # [U, K] int32, best first

Known items are left out. Equal scores go to the lower item index. Memory: one tile of
scores a thread, whatever the numbers of users and items.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numba
import numpy as np
import scipy.sparse as sp
from threadpoolctl import ThreadpoolController

TILE_USERS = 128
TILE_ITEMS = 1024  # a tile of scores is 0.5 MB: it is read while it is in the cache
SMALL = 4096  # so few items are multiplied at once, in their own order
BLOCK = 64  # scores that are compared with the K-th best together
GROUPS = 128  # of scores of a first tile, whose largest tell what is too low
Scores = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Ranking:
    """items: [U, K] int32, best first; -1 where no item is left to recommend.

    scores: [U, K] float32, not increasing; -inf where items is -1.
    """

    items: np.ndarray
    scores: np.ndarray


def top_k_factors(
    users: np.ndarray,
    items: np.ndarray,
    k: int,
    known: sp.csr_array | None = None,
    *,
    threads: int | None = None,
) -> Ranking:
    """The k items with the largest inner products, for each user.

    users: [U, d], items: [I, d], used as float32. known: CSR [U, I], whose stored
    entries are never recommended. threads: default $OMP_NUM_THREADS, or one a core;
    each runs single-threaded matrix products of its own.

    More than 4,096 items are visited by falling length in tiles of 1,024. By Cauchy
    and Schwarz, `<u, v> <= |u| |v|`, so a user is done as soon as |u| times the next
    length is below the k-th best score: of trained factors, whose lengths differ much,
    most items are never multiplied. A tile is scanned while it is in the cache, 64
    scores at a time, of which usually none beats the k-th best. Scores are float32,
    whose last bit may depend on the tile.

    Raises ValueError for shapes that do not fit, k < 1, and scores that are NaN.

    >>> best = top_k_factors(np.eye(2), np.array([[1, 0], [3, 5], [2, 5]]), k=2)
    >>> best.items.tolist()
    [[1, 2], [1, 2]]
    """
    users, items = _factors(users, "users"), _factors(items, "items")
    if users.shape[1] != items.shape[1]:
        raise ValueError(
            f"users have {users.shape[1]} dimensions, items have {items.shape[1]}"
        )
    n_users, n_items = len(users), len(items)
    best = _empty(n_users, n_items, k)
    lengths, names = _lengths(items), None
    tile_items = n_items if n_items <= SMALL else TILE_ITEMS
    if n_items > tile_items:
        names = np.argsort(-lengths, kind="stable").astype(np.int32)
        items, lengths = items[names], lengths[names]
    indptr, places = _known(known, n_users, n_items, names)
    # Rounding of a product of d terms stays below this.
    reach = _lengths(users) * (1 + 2 * (users.shape[1] + 2) * np.finfo(np.float32).eps)
    least = np.finfo(np.float32).tiny * users.shape[1]

    def fill(start: int) -> None:
        rows = np.arange(start, min(start + TILE_USERS, n_users))
        tile = np.empty(len(rows) * tile_items, np.float32)
        cursor = indptr[rows]
        for first in range(0, n_items, tile_items):
            bound = reach[rows] * lengths[first] + least
            open_ = bound >= best.scores[rows, -1]
            rows, cursor = rows[open_], cursor[open_]
            if len(rows) == 0:
                return
            width = min(tile_items, n_items - first)
            scores = tile[: len(rows) * width].reshape(-1, width)
            np.matmul(users[rows], items[first : first + width].T, out=scores)
            _scan(scores, rows, first, cursor, indptr, places, best, names)

    with _pools().limit(limits=1, user_api="blas"):
        _run(fill, range(0, n_users, TILE_USERS), threads)
    return best


def top_k_scores(
    scores: Scores,
    k: int,
    known: sp.csr_array | None = None,
    *,
    users: np.ndarray | None = None,
    n_users: int | None = None,
    block: int = 512,
) -> Ranking:
    """As `top_k_factors`, from any function: users [B] int64 -> scores [B, I].

    users: indices of the users to rank for, default all of `n_users` (default the rows
    of `known`); row r of the result belongs to users[r]. block: users a call. The
    scores that the function returns may be overwritten.

    Raises ValueError as `top_k_factors`.

    >>> best = top_k_scores(lambda users: np.array([[1.0, 3, 3]]), k=2, n_users=1)
    >>> best.items.tolist(), best.scores.tolist()
    ([[1, 2]], [[3.0, 3.0]])
    """
    users = _users(users, n_users, known)
    best: Ranking | None = None
    for start in range(0, len(users), block):
        rows = users[start : start + block]
        values = np.ascontiguousarray(scores(rows), dtype=np.float32)
        if values.ndim != 2 or len(values) != len(rows):
            raise ValueError(
                f"scores must be [{len(rows)}, items] for {len(rows)} users, got "
                f"shape {values.shape}"
            )
        if not values.flags.writeable:
            values = values.copy()
        if best is None:
            n_items = values.shape[1]
            if known is not None and known.shape[1] != n_items:
                raise ValueError(
                    f"known has {known.shape[1]} items, the scores have {n_items}"
                )
            best = _empty(len(users), n_items, k)
        part = None if known is None else known[rows]
        indptr, indices = _known(part, len(rows), values.shape[1])
        block_best = Ranking(
            best.items[start : start + block], best.scores[start : start + block]
        )
        own = np.arange(len(rows))
        _scan(values, own, 0, indptr[:-1].copy(), indptr, indices, block_best)
    if best is None:
        raise ValueError("no users to rank items for")
    return best


@lru_cache(maxsize=1)
def _pools() -> ThreadpoolController:
    """The loaded libraries' thread pools: finding them takes milliseconds."""
    return ThreadpoolController()


def _run(fill: Callable[[int], None], starts: range, threads: int | None) -> None:
    if threads is None:
        threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    if threads == 1:
        for start in starts:
            fill(start)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(fill, starts):
            pass


def _scan(
    scores: np.ndarray, rows: np.ndarray, first: int, cursor: np.ndarray,
    indptr: np.ndarray, places: np.ndarray, best: Ranking,
    names: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Takes a tile of scores, a line for each of `rows`, into the best so far."""
    ordered = names is None
    if names is None:
        names = np.arange(first + scores.shape[1], dtype=np.int32)
    bad = _insert(
        scores, rows, first, cursor, indptr[rows + 1], places, names, ordered,
        best.items, best.scores,
    )  # fmt: skip
    if bad >= 0:
        raise ValueError(f"a score of user {bad} is NaN")


@numba.njit(nogil=True, cache=True)
def _insert(  # type: ignore
    scores, rows, first, cursor, ends, places, names, ordered, items, values
):
    """Line by line; the row of a line with NaN, or -1.

    places: of known items in the order of the lines' columns, sorted; cursor moves
    along them. names: the item at each place; ordered: whether they rise, so that an
    equal score of a later place never wins. items, values: [U, K], best so far, sorted.
    """
    width, k = scores.shape[1], items.shape[1]
    low = np.float32(-np.inf)
    largest = np.empty(GROUPS, np.float32)
    for i in range(len(rows)):
        line, top, where = scores[i], values[rows[i]], items[rows[i]]
        place = cursor[i]
        while place < ends[i] and places[place] < first + width:
            line[places[place] - first] = low
            place += 1
        cursor[i] = place
        floor = low
        if top[k - 1] == low and k <= GROUPS and width >= 2 * GROUPS:
            floor = np.nextafter(_floor(line, k, largest), low)
        for block in range(-(-width // BLOCK)):
            begin = block * BLOCK
            part = line[begin : begin + BLOCK]
            gate = top[k - 1] if ordered else np.nextafter(top[k - 1], low)
            gate = max(gate, floor)
            # How many may enter, NaN among them. The fixed length and 32-bit count let
            # the compiler compare 16 scores at once.
            entering = np.uint32(0)
            if len(part) == BLOCK:
                for j in range(BLOCK):
                    entering += np.uint32(not (part[j] <= gate))
            else:
                for j in range(len(part)):
                    entering += np.uint32(not (part[j] <= gate))
            j = 0
            while entering > 0:
                score = part[j]
                if not (score <= gate):
                    entering -= np.uint32(1)
                    if score != score:
                        return rows[i]
                    _enter(score, names[first + begin + j], top, where)
                j += 1
    return -1


@numba.njit(nogil=True, cache=True)
def _floor(line, k, largest):  # type: ignore
    """A score that k of the line reach or more, and not many more; -inf if unknown.

    The line is dealt out to groups; k groups whose largest score reaches a value prove
    that k scores do. The value is found by halving. largest: [GROUPS], work space.
    """
    largest[:] = line[:GROUPS]
    for begin in range(GROUPS, len(line) - GROUPS + 1, GROUPS):
        part = line[begin : begin + GROUPS]
        for g in range(GROUPS):
            largest[g] = part[g] if part[g] > largest[g] else largest[g]
    low, high, known = np.float32(np.inf), np.float32(-np.inf), 0
    for g in range(GROUPS):
        if -np.inf < largest[g] < np.inf:
            low, high = min(low, largest[g]), max(high, largest[g])
            known += 1
    if known < k:
        return np.float32(-np.inf)
    for _ in range(8):
        middle = low + (high - low) / np.float32(2)
        reached = np.uint32(0)
        for g in range(GROUPS):
            reached += np.uint32(largest[g] >= middle)
        if reached >= k:
            low = middle
        else:
            high = middle
    return low


@numba.njit(nogil=True, cache=True)
def _enter(score, item, top, where):  # type: ignore
    """Puts a score into its place of a sorted list; what is last falls out."""
    spot = len(top)
    while spot > 0 and (
        top[spot - 1] < score or (top[spot - 1] == score and where[spot - 1] > item)
    ):
        if spot < len(top):
            top[spot], where[spot] = top[spot - 1], where[spot - 1]
        spot -= 1
    if spot < len(top):
        top[spot], where[spot] = score, item


def _factors(values: np.ndarray, name: str) -> np.ndarray:
    array = np.ascontiguousarray(values, dtype=np.float32)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name} must be [{name}, d], got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} hold NaN or infinity")
    return array


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """Euclidean length of each row, in float64."""
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))


def _users(
    users: np.ndarray | None, n_users: int | None, known: sp.csr_array | None
) -> np.ndarray:
    if users is not None:
        return np.asarray(users, dtype=np.int64)
    if n_users is None:
        if known is None:
            raise ValueError("say which users: users=, n_users= or known=")
        n_users = known.shape[0]
    return np.arange(n_users)


def _known(
    known: sp.csr_array | None,
    n_users: int,
    n_items: int,
    names: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Row pointers and sorted places of known items, int64 and int32.

    names: the item at each place; default item i at place i.
    """
    if known is None:
        return np.zeros(n_users + 1, np.int64), np.zeros(0, np.int32)
    known = sp.csr_array(known)
    if known.shape != (n_users, n_items):
        raise ValueError(
            f"known must be {n_users} users x {n_items} items, got {known.shape}"
        )
    if names is not None:
        place = np.empty(n_items, np.int32)
        place[names] = np.arange(n_items, dtype=np.int32)
        known = sp.csr_array(
            (known.data, place[known.indices], known.indptr), shape=known.shape
        )
    if not known.has_sorted_indices:
        known = known.sorted_indices()
    return known.indptr.astype(np.int64), known.indices.astype(np.int32, copy=False)


def _empty(n_users: int, n_items: int, k: int) -> Ranking:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    shape = (n_users, min(k, n_items))
    return Ranking(np.full(shape, -1, np.int32), np.full(shape, -np.inf, np.float32))
