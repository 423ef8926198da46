"""Who did what when: a table of interactions, and what may be done to it.

    log = read("ratings.csv")
    log = without_duplicates(log, keep="last")
    log = at_least(log, rating=4)
    log = k_core(log, users=5, items=5)

Ids are text of any kind. Users and items have indices in the order of their ids, so
that the order of a file's rows does not matter: by number if all ids are whole numbers,
else by text.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

Keep = Literal["raise", "first", "last"]


@dataclass(frozen=True)
class Interactions:
    """N rows, one an interaction.

    users, items: [N] int32, indices. user_ids: [U] and item_ids: [I] object, text.
    ratings: [N] float32 and timestamps: [N] float64, seconds since 1970; None if the
    source has none. user_table, item_table: pandas tables with a row for each user or
    item, in the order of their indices; None if there is no side information.
    dropped: {reason: rows} that were left out on the way.
    """

    name: str
    users: np.ndarray
    items: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray
    ratings: np.ndarray | None = None
    timestamps: np.ndarray | None = None
    user_table: "pd.DataFrame | None" = None
    item_table: "pd.DataFrame | None" = None
    dropped: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.users)

    @property
    def titles(self) -> np.ndarray | None:
        """[I] object, from the item table's `title_column`."""
        if self.item_table is None:
            return None
        column = title_column(self.item_table.columns[1:])
        return None if column is None else self.item_table[column].to_numpy(object)


def title_column(columns: Iterable[str]) -> str | None:
    """The column that holds titles: the first named like "title", else a "name".

    >>> title_column(["sku", "Product title"]), title_column(["brand", "product_name"])
    ('Product title', 'product_name')
    """
    columns = list(columns)
    for wanted in (r"title", r"(^|\W|_)name$"):
        for column in columns:
            if re.search(wanted, column, re.IGNORECASE):
                return column
    return None


def without_duplicates(log: Interactions, keep: Keep = "last") -> Interactions:
    """One row for each pair of user and item.

    keep: "first" or "last" by timestamp (equal ones, or none at all: by row), or
    "raise", which makes a repeated pair an error. The number of rows that go is counted
    as dropped.
    """
    if keep not in ("raise", "first", "last"):
        raise ValueError(f"keep must be raise, first or last, got {keep!r}")
    key = log.users.astype(np.int64) * len(log.item_ids) + log.items
    if log.timestamps is None:
        order = np.argsort(key, kind="stable")
    else:
        order = np.lexsort((log.timestamps, key))
    key = key[order]
    new = np.ones(len(key), bool)
    new[1:] = key[1:] != key[:-1]
    if new.all():
        return log
    if keep == "raise":
        user, item = divmod(int(key[~new][0]), len(log.item_ids))
        rows = np.sort(order[key == key[~new][0]])[:2] + 1
        raise ValueError(
            f"{log.name}: user {log.user_ids[user]!r} and item {log.item_ids[item]!r} "
            f"occur together in rows {rows[0]} and {rows[1]} (the header not counted); "
            f"{len(key) - new.sum():,} rows repeat a pair: choose keep='first' or "
            "'last'"
        )
    chosen = new if keep == "first" else np.append(new[1:], True)
    return rows_of(log, np.sort(order[chosen]), "duplicate")


def at_least(log: Interactions, rating: float) -> Interactions:
    """The rows rated `rating` or higher: ratings become "liked it"."""
    if log.ratings is None:
        raise ValueError(f"{log.name} has no ratings to compare with {rating}")
    kept = np.flatnonzero(log.ratings >= rating)
    return rows_of(log, kept, f"rating below {rating:g}")


def k_core(log: Interactions, users: int = 5, items: int = 5) -> Interactions:
    """The largest part where each user has `users` and each item `items` rows or more.

    Found by leaving out what has fewer until nothing has: the result does not depend on
    the order. Count pairs, not repetitions: `without_duplicates` comes first.

    Raises ValueError if nothing is left.
    """
    kept = core_rows(log, users, items)
    return rows_of(log, kept, f"outside the core of {users} a user, {items} an item")


def core_rows(log: Interactions, users: int, items: int) -> np.ndarray:
    """Rows of `log` in the k-core, sorted; empty if there is none."""
    kept = np.arange(len(log))
    while True:
        u, i = log.users[kept], log.items[kept]
        enough = np.bincount(u, minlength=len(log.user_ids))[u] >= users
        enough &= np.bincount(i, minlength=len(log.item_ids))[i] >= items
        if enough.all():
            return kept
        kept = kept[enough]


def rows_of(log: Interactions, rows: np.ndarray, reason: str) -> Interactions:
    """The chosen rows; users and items without any are gone, the others counted."""
    if len(rows) == 0:
        raise ValueError(f"{log.name}: no interaction is left after: {reason}")
    dropped = dict(log.dropped or {})
    if len(rows) < len(log):
        dropped[reason] = dropped.get(reason, 0) + len(log) - len(rows)
    users, user_rows = _compress(log.users[rows], len(log.user_ids))
    items, item_rows = _compress(log.items[rows], len(log.item_ids))
    return replace(
        log,
        users=users,
        items=items,
        user_ids=log.user_ids[user_rows],
        item_ids=log.item_ids[item_rows],
        ratings=None if log.ratings is None else log.ratings[rows],
        timestamps=None if log.timestamps is None else log.timestamps[rows],
        user_table=_table_rows(log.user_table, user_rows),
        item_table=_table_rows(log.item_table, item_rows),
        dropped=dropped,
    )


def id_order(ids: np.ndarray) -> np.ndarray:
    """Positions that sort ids: by number if all are whole numbers, else by text.

    Leading zeros make an id text ("007" is not "7").

    >>> id_order(np.array(["10", "9"], object)), id_order(np.array(["b", "9"], object))
    (array([1, 0]), array([1, 0]))
    """
    try:
        numbers = ids.astype(str).astype(np.int64)
    except (ValueError, OverflowError):
        return np.argsort(ids, kind="stable")
    if (numbers.astype(str) != ids.astype(str)).any():
        return np.argsort(ids, kind="stable")
    return np.argsort(numbers, kind="stable")


def _compress(codes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes renumbered without gaps, and which old ones are left."""
    left = np.bincount(codes, minlength=n) > 0
    number = np.cumsum(left, dtype=np.int32) - 1
    return number[codes].astype(np.int32), np.flatnonzero(left)


def _table_rows(table: Any, rows: np.ndarray) -> Any:
    return None if table is None else table.iloc[rows].reset_index(drop=True)
