"""Interactions split into a training, a validation and a test part.

    data = leave_one_out(log, seed=0)      # the last of a user is test, the one before
    data = global_time(log)                # the last 10 % of all are test
    data = random_ratio(log, seed=0)       # 10 % of each user
    data = given(train_log, test_log, seed=0)

There is always a validation part: what is chosen is chosen there, and the test part is
looked at once. `data.final()` then trains on both others.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from apps.recsys.interactions import Interactions, id_order

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)


class Times(NamedTuple):
    """Seconds since 1970, [nnz] float64, in the order of each part's stored entries."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """Three parts of one set of users and items, and what is known about those.

    train, valid, test: CSR [U, I] float32, 1 where there is an interaction, sorted
    columns. user_ids: [U] and item_ids: [I] object, text. split: how it was split, in
    words. times: None if the source has none. titles: [I] object, user_table and
    item_table as in `Interactions`. dropped: {reason: rows} left out before.
    """

    name: str
    split: str
    train: sp.csr_array
    valid: sp.csr_array
    test: sp.csr_array
    user_ids: np.ndarray
    item_ids: np.ndarray
    times: Times | None = None
    titles: np.ndarray | None = None
    user_table: "pd.DataFrame | None" = None
    item_table: "pd.DataFrame | None" = None
    dropped: dict[str, int] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Users, items."""
        return self.train.shape

    def part(self, name: str) -> sp.csr_array:
        if name not in PARTS:
            raise ValueError(f"part must be {', '.join(PARTS)}, got {name!r}")
        return getattr(self, name)

    def known(self, part: str) -> sp.csr_array:
        """What is known, hence masked, when `part` is ranked for: all earlier parts.

        Made once and kept: write to a copy of it.
        """
        self.part(part)
        if part == "train":
            raise ValueError("rank for valid or test, not for train")
        if part not in self._known:
            earlier = (self.train,) if part == "valid" else (self.train, self.valid)
            self._known[part] = known_items(*earlier)
        return self._known[part]

    @cached_property
    def _known(self) -> dict[str, sp.csr_array]:
        return {}

    def final(self) -> "Dataset":
        """With the validation part moved into train: for the one test at the end."""
        times = None
        if self.times is not None:
            times = self.times._replace(
                train=_merged_times(self), valid=np.zeros(0, np.float64)
            )
        empty = sp.csr_array(self.shape, dtype=np.float32)
        return replace(
            self, train=self.known("test"), valid=empty, times=times,
            split=f"{self.split}; trained on train and valid",
        )  # fmt: skip


def known_items(*parts: sp.csr_array) -> sp.csr_array:
    """The union of interactions: what a user is known to have at evaluation.

    To rank for validation mask the training part, to rank for test mask both.

    >>> a, b = sp.csr_array([[1, 0, 0]]), sp.csr_array([[1, 0, 1]])
    >>> known_items(a, b).indices.tolist()
    [0, 2]
    """
    total = _pattern(parts[0]).copy()
    for part in parts[1:]:
        total = total + _pattern(part)
    total.data[:] = 1
    total.sort_indices()
    return total


def _pattern(part: sp.csr_array) -> sp.csr_array:
    """Ones where it stores anything; with the indices of `part`, not copies."""
    part = sp.csr_array(part)
    ones = np.ones(len(part.indices), np.float32)
    return sp.csr_array((ones, part.indices, part.indptr), shape=part.shape)


def leave_one_out(log: Interactions, *, seed: int = 0) -> Dataset:
    """The last interaction of a user is test, the last but one validation.

    Users with fewer than three keep all of theirs in train. Equal times are ordered at
    random, by the seed: stamps are coarse (a third of MovieLens-100k's users have
    several films in their last second), and in the order of item indices the test part
    would hold those that came late into the catalogue, which few users have. The result
    depends on the pairs, their times and the seed, not on the order of the rows. Note
    that other users' later interactions stay in train, so the future is seen;
    `global_time` has none of that.

    Raises ValueError without timestamps.
    """
    times = _times(log)
    order, place, n = _shuffled(log, seed)
    order = order[np.lexsort((times[order], log.users[order]))]  # stable
    label = np.full(len(log), TRAIN, np.int8)
    label[order[(n >= 3) & (place == n - 1)]] = TEST
    label[order[(n >= 3) & (place == n - 2)]] = VALID
    return _dataset(log, label, f"temporal leave-one-out, {seed=} for equal times")


def global_time(log: Interactions, valid: float = 0.1, test: float = 0.1) -> Dataset:
    """All of the last interactions are test, those before them validation.

    valid, test: shares of the interactions, as near as equal times allow: those stay
    together, in the later part. Users and items that only occur later remain, without
    training interactions: `leakage` counts them.

    Raises ValueError without timestamps, or if they leave a part empty.
    """
    _check_shares(valid, test)
    times = _times(log)
    ordered = np.sort(times)
    first_test = ordered[len(ordered) - max(1, round(test * len(ordered)))]
    before = round((valid + test) * len(ordered))
    first_valid = ordered[len(ordered) - max(2, before)]
    label = np.where(times >= first_valid, VALID, TRAIN).astype(np.int8)
    label[times >= first_test] = TEST
    return _dataset(log, label, f"global time {_shares(valid, test)}")


def undivided(log: Interactions) -> Dataset:
    """All are train, for a model whose settings are given: nothing can be chosen."""
    label = np.full(len(log), TRAIN, np.int8)
    return _dataset(log, label, "not split", may_be_empty=PARTS[1:])


def random_ratio(
    log: Interactions, valid: float = 0.1, test: float = 0.1, *, seed: int = 0
) -> Dataset:
    """A share of each user's interactions, at random.

    A user with n interactions gives round(test n) to test and round(valid n) to
    validation, halves up, and keeps at least one. The result depends on the pairs and
    the seed, not on the order of the rows.
    """
    _check_shares(valid, test)
    label = np.full(len(log), TRAIN, np.int8)
    order, place, n = _shuffled(log, seed)
    n_test = np.floor(test * n + 0.5)
    n_valid = np.floor(valid * n + 0.5)
    n_test = np.minimum(n_test, n - 1)
    n_valid = np.minimum(n_valid, n - 1 - n_test)
    label[order[place < n_test + n_valid]] = VALID
    label[order[place < n_test]] = TEST
    return _dataset(log, label, f"random {_shares(valid, test)} of each user, {seed=}")


def given(
    train: Interactions,
    test: Interactions,
    valid: Interactions | float = 0.1,
    *,
    seed: int = 0,
) -> Dataset:
    """Parts that come as files; `valid` may be a share of each user's train part.

    Pairs that occur in two parts are not removed: `leakage` counts them.
    """
    logs = [train, test] if isinstance(valid, float) else [train, valid, test]
    log, label = _joined(logs)
    if isinstance(valid, float):
        _check_shares(valid, 0.0)
        label[label == 1] = TEST
        mine = np.flatnonzero(label == TRAIN)
        order, place, n = _shuffled(train, seed)
        chosen = place < np.minimum(np.floor(valid * n + 0.5), n - 1)
        label[mine[order[chosen]]] = VALID
        how = f"given, validation {valid:.0%} of each user's train part, {seed=}"
    else:
        how = "given"
    return _dataset(log, label, how)


def _joined(logs: list[Interactions]) -> tuple[Interactions, np.ndarray]:
    """One log over the union of ids, and which one a row comes from, [N] int8."""
    ids, codes = {}, {}
    for side in ("user", "item"):
        every = np.concatenate([getattr(log, f"{side}_ids") for log in logs])
        union = np.array(list(dict.fromkeys(every)), object)
        union = union[id_order(union)]
        index = {name: i for i, name in enumerate(union)}
        ids[side] = union
        codes[side] = np.concatenate(
            [
                np.array([index[name] for name in getattr(log, f"{side}_ids")],
                         np.int32)[getattr(log, f"{side}s")]
                for log in logs
            ]
        )  # fmt: skip
    stamped = all(log.timestamps is not None for log in logs)
    dropped: dict[str, int] = {}
    for log in logs:
        for reason, n in (log.dropped or {}).items():
            dropped[reason] = dropped.get(reason, 0) + n
    joined = Interactions(
        name=logs[0].name,
        users=codes["user"],
        items=codes["item"],
        user_ids=ids["user"],
        item_ids=ids["item"],
        timestamps=np.concatenate([log.timestamps for log in logs])
        if stamped
        else None,
        user_table=_joined_tables([log.user_table for log in logs], ids["user"]),
        item_table=_joined_tables([log.item_table for log in logs], ids["item"]),
        dropped=dropped,
    )
    label = np.repeat(np.arange(len(logs), dtype=np.int8), [len(log) for log in logs])
    return joined, label


def _joined_tables(tables: list[Any], ids: np.ndarray) -> Any:
    import pandas as pd

    tables = [table for table in tables if table is not None]
    if not tables:
        return None
    key = tables[0].columns[0]
    table = pd.concat(tables).drop_duplicates(key).set_index(key)
    return table.reindex(ids).rename_axis(key).reset_index()


def _dataset(
    log: Interactions,
    label: np.ndarray,
    split: str,
    may_be_empty: tuple[str, ...] = (),
) -> Dataset:
    shape = (len(log.user_ids), len(log.item_ids))
    parts, times = [], []
    for which, name in enumerate(PARTS):
        rows = np.flatnonzero(label == which)
        if len(rows) == 0 and name not in may_be_empty:
            raise ValueError(
                f"{log.name}, {split}: the {name} part is empty; there are too few "
                "interactions for this split"
            )
        key = log.users[rows].astype(np.int64) * shape[1] + log.items[rows]
        key, first = np.unique(key, return_index=True)
        if len(key) < len(rows):
            raise ValueError(
                f"{log.name} repeats pairs of user and item: choose which one counts "
                "with without_duplicates first"
            )
        pointers = np.searchsorted(key, np.arange(shape[0] + 1) * shape[1])
        parts.append(
            sp.csr_array(
                (np.ones(len(key), np.float32), (key % shape[1]).astype(np.int32),
                 pointers.astype(np.int32)), shape=shape,
            )
        )  # fmt: skip
        if log.timestamps is not None:
            times.append(log.timestamps[rows][first])
    return Dataset(
        log.name, split, *parts, log.user_ids, log.item_ids,
        times=Times(*times) if times else None, titles=log.titles,
        user_table=log.user_table, item_table=log.item_table, dropped=log.dropped,
    )  # fmt: skip


def _shuffled(
    log: Interactions, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows by user and at random within; place in the user's list; its length."""
    canonical = np.lexsort((log.items, log.users))
    draw = np.random.default_rng(seed).random(len(log))
    order = canonical[np.lexsort((draw, log.users[canonical]))]
    users = log.users[order]
    n = np.bincount(users, minlength=len(log.user_ids))
    place = np.arange(len(users)) - (np.cumsum(n) - n)[users]
    return order, place, n[users]


def _merged_times(data: Dataset) -> np.ndarray:
    """Times of train and valid in the order of their union."""
    keys = []
    for part in (data.train, data.valid):
        users = np.repeat(np.arange(data.shape[0]), np.diff(part.indptr))
        keys.append(users * data.shape[1] + part.indices)
    values = np.concatenate([data.times.train, data.times.valid])
    _, first = np.unique(np.concatenate(keys), return_index=True)
    return values[first]


def _times(log: Interactions) -> np.ndarray:
    if log.timestamps is None:
        raise ValueError(
            f"{log.name} has no timestamps: split at random, or name their column"
        )
    return log.timestamps


def _check_shares(valid: float, test: float) -> None:
    if not (0 < valid < 1 and 0 <= test < 1 and valid + test < 1):
        raise ValueError(
            f"valid and test must be shares that leave some to train, got {valid} and "
            f"{test}"
        )


def _shares(valid: float, test: float) -> str:
    return f"{1 - valid - test:.0%}/{valid:.0%}/{test:.0%}"
