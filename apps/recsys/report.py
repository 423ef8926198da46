"""What a data set is like, and whether its split leaks.

facts = report(data)       # a dict for JSON
print(as_text(facts))
"""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import scipy.sparse as sp

from apps.recsys.metrics import concentration
from apps.recsys.splits import PARTS, Dataset, known_items

CORES = (2, 5, 10, 20)
HEAD = (0.01, 0.1, 0.2)


def report(data: Dataset) -> dict[str, Any]:
    """Counts, density, long tail, cores, time span, side information, leaks."""
    whole = known_items(data.train, data.valid, data.test)
    n_users, n_items = data.shape
    users_of = np.bincount(whole.indices, minlength=n_items)
    items_of = np.diff(whole.indptr)
    return {
        "name": data.name,
        "split": data.split,
        "users": n_users,
        "items": n_items,
        "interactions": {name: int(data.part(name).nnz) for name in PARTS},
        "dropped": dict(data.dropped or {}),
        "density": whole.nnz / (n_users * n_items),
        "a user": _spread(items_of),
        "an item": _spread(users_of),
        "gini of items": concentration(users_of),
        "share of the most popular": {
            f"{share:.0%}": _head(users_of, share) for share in HEAD
        },
        "cores": {str(k): core_size(whole, k) for k in CORES},
        "time": _span(data),
        "side information": _side(data),
        "leakage": leakage(data),
    }


def leakage(data: Dataset) -> dict[str, Any]:
    """Counts of what a split should not have, or what one should know about it.

    "train and test": pairs in both parts, and so on. "unknown users of test": those
    with test but no training interactions, likewise items, and valid. "later than the
    first of test": share of training interactions; 0 only if the split is by global
    time, None without timestamps.
    """
    found: dict[str, Any] = {}
    keys = {name: _keys(data.part(name)) for name in PARTS}
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        both = np.intersect1d(keys[a], keys[b], assume_unique=True)
        found[f"{a} and {b}"] = len(both)
    trained_users = np.diff(data.train.indptr) > 0
    trained_items = np.bincount(data.train.indices, minlength=data.shape[1]) > 0
    for name in ("valid", "test"):
        part = data.part(name)
        users = np.diff(part.indptr) > 0
        items = np.bincount(part.indices, minlength=data.shape[1]) > 0
        found[f"unknown users of {name}"] = int((users & ~trained_users).sum())
        found[f"unknown items of {name}"] = int((items & ~trained_items).sum())
    later = None
    if data.times is not None and len(data.times.test):
        later = float((data.times.train > data.times.test.min()).mean())
    found["later than the first of test"] = later
    return found


def core_size(matrix: sp.csr_array, k: int) -> dict[str, int]:
    """Users, items and interactions of the k-core; all 0 if there is none."""
    items = matrix.indices
    users = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    while True:
        enough = np.bincount(users, minlength=matrix.shape[0])[users] >= k
        enough &= np.bincount(items, minlength=matrix.shape[1])[items] >= k
        if enough.all():
            break
        users, items = users[enough], items[enough]
    return {
        "users": len(np.unique(users)),
        "items": len(np.unique(items)),
        "interactions": len(users),
    }


def as_text(facts: dict[str, Any]) -> str:
    """The report on a page."""
    parts = ", ".join(f"{n:,} {name}" for name, n in facts["interactions"].items())
    lines = [
        f"{facts['name']}: {facts['users']:,} users, {facts['items']:,} items",
        f"split        {facts['split']}: {parts}",
        f"density      {facts['density']:.3%}",
    ]
    for side in ("a user", "an item"):
        spread = ", ".join(f"{name} {value:g}" for name, value in facts[side].items())
        lines.append(f"{side:13}{spread}")
    shares = ", ".join(
        f"the top {top} have {share:.0%}"
        for top, share in facts["share of the most popular"].items()
    )
    lines.append(f"long tail    {shares}; Gini {facts['gini of items']:.2f}")
    cores = ", ".join(
        f"{k}: {size['users']:,} x {size['items']:,}, {size['interactions']:,}"
        for k, size in facts["cores"].items()
    )
    lines.append(f"k-cores      {cores}")
    span = facts["time"]
    lines.append(
        "time         "
        + (f"{span['from']} to {span['to']}" if span else "no timestamps")
    )
    for reason, n in facts["dropped"].items():
        lines.append(f"left out     {n:,} rows: {reason}")
    for name, n in facts["side information"].items():
        lines.append(f"known        {name} of {n:,}")
    return "\n".join([*lines, *_leak_lines(facts["leakage"])])


def _leak_lines(leaks: dict[str, Any]) -> list[str]:
    lines = []
    for name, n in leaks.items():
        if name == "later than the first of test":
            if n:
                lines.append(
                    f"note         {n:.0%} of the training interactions are later than "
                    "the first one of test"
                )
        elif n and name.startswith("unknown"):
            lines.append(f"note         {n:,} {name}: without training interactions")
        elif n:
            lines.append(f"LEAK         {n:,} pairs are in both {name}")
    return lines


def _spread(counts: np.ndarray) -> dict[str, float]:
    quantiles = np.quantile(counts, [0, 0.5, 0.9, 1])
    values = dict(zip(("min", "median", "90 %", "max"), quantiles, strict=True))
    return {"mean": round(float(counts.mean()), 2)} | {
        name: float(value) for name, value in values.items()
    }


def _head(counts: np.ndarray, share: float) -> float:
    n = max(1, round(share * len(counts)))
    return float(np.sort(counts)[-n:].sum() / counts.sum())


def _span(data: Dataset) -> dict[str, str] | None:
    if data.times is None:
        return None
    times = np.concatenate(data.times)
    return {
        name: datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M")
        for name, value in (("from", times.min()), ("to", times.max()))
    }


def _side(data: Dataset) -> dict[str, int]:
    """How many users or items have a value, by column."""
    known = {}
    for table in (data.user_table, data.item_table):
        for column in [] if table is None else table.columns[1:]:
            values = table[column]
            known[column] = int((values.notna() & (values != "")).sum())
    return known


def _keys(part: sp.csr_array) -> np.ndarray:
    users = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
    return users * part.shape[1] + part.indices
