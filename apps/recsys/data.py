"""Data sets by name or from files, split and ready to train on.

data = load("ml100k")                            # ratings >= 4, random 80/10/10
data = load("ml100k", split="leave_one_out")
data = load("gowalla")                           # $SPARSEKIT_DATA, its own split
data = load("clicks.csv", Preparation(core=5), split="global_time")
data = load("clicks.csv", where={"event": "buy"}, catalogue="items.csv")
"""

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from apps.common import datasets, wheels
from apps.common.arrays import open_arrays
from apps.recsys import interactions, splits
from apps.recsys.interactions import Interactions, Keep
from apps.recsys.reading import read
from apps.recsys.side_tables import side_table
from apps.recsys.splits import Dataset
from sparsekit.spelling import choice

NAMES = ("ml100k", "gowalla")
Split = Literal["random", "leave_one_out", "global_time", "none"]


@dataclass(frozen=True)
class Preparation:
    """What happens to interactions before the split, in this order.

    duplicates: which row of a repeated pair counts. rating: the least that counts as
    liked; None takes every interaction. core: interactions that each user and item must
    have, over and over; 1 for no such limit.
    """

    duplicates: Keep = "last"
    rating: float | None = None
    core: int = 1

    def __call__(self, log: Interactions) -> Interactions:
        log = interactions.without_duplicates(log, self.duplicates)
        if self.rating is not None:
            log = interactions.at_least(log, self.rating)
        if self.core > 1:
            log = interactions.k_core(log, self.core, self.core)
        return log


LIKED = Preparation(rating=4)


def load(
    source: str | Path,
    preparation: Preparation | None = None,
    *,
    split: Split = "random",
    seed: int = 0,
    test: str | Path | None = None,
    **reading: Any,
) -> Dataset:
    """A data set with its three parts.

    source: "ml100k", "gowalla" or a file. preparation: default ratings of at least 4
    for ml100k, all else as it is. test: a file with the test part; then the source is
    the training part and `split` does not matter, as for gowalla. reading: how files
    are read, see `reading.read`.

    Raises ValueError and FileNotFoundError that name the fix.
    """
    if source in NAMES and (reading.get("where") or reading.get("catalogue")):
        raise ValueError(f"where and catalogue are for files of your own, not {source}")
    path = Path(source)
    if source not in NAMES and not path.suffix and not path.exists():
        known = choice(f"dataset {str(source)!r} is unknown", str(source), NAMES)
        raise FileNotFoundError(
            f"{known}, or give a file: .csv, .tsv, .parquet, .inter"
        )
    if source == "gowalla":
        return gowalla(seed=seed)
    if source == "ml100k":
        log = (preparation or LIKED)(ml100k())
    else:
        log = (preparation or Preparation())(read(source, **reading))
    if test is not None:
        # A core would leave out test items of the file: it is not applied there.
        prepare = replace(preparation or Preparation(), core=1)
        return splits.given(log, prepare(read(test, **reading)), seed=seed)
    return split_by(log, split, seed)


def split_by(log: Interactions, split: Split, seed: int = 0) -> Dataset:
    """The split of that name with its default shares.

    Raises ValueError for fewer than two users or two items: nothing can be ranked.
    """
    if len(log.user_ids) < 2 or len(log.item_ids) < 2:
        raise ValueError(
            f"{log.name} has {len(log.user_ids)} user(s) and {len(log.item_ids)} "
            "item(s): nothing to compare; are the columns the right ones?"
        )
    if split == "none":
        return splits.undivided(log)
    if split == "random":
        return splits.random_ratio(log, seed=seed)
    if split == "leave_one_out":
        return splits.leave_one_out(log, seed=seed)
    if split == "global_time":
        return splits.global_time(log)
    raise ValueError(
        f"split must be random, leave_one_out, global_time or none, got {split!r}"
    )


def ml100k() -> Interactions:
    """MovieLens-100k: 100,000 ratings of 943 users and 1,682 films, with side tables.

    For research; GroupLens allows no redistribution and no commercial use.

    Harper, Konstan: The MovieLens datasets: history and context, 2015.
    """
    table = datasets.load_ml100k().interactions
    users, user_ids = _coded(table["user_id"].to_numpy())
    items, item_ids = _coded(table["item_id"].to_numpy())
    return Interactions(
        name="ml100k",
        users=users,
        items=items,
        user_ids=user_ids,
        item_ids=item_ids,
        ratings=table["rating"].to_numpy(np.float32),
        timestamps=table["timestamp"].to_numpy(np.float64),
        user_table=_movielens_table("user", user_ids),
        item_table=_movielens_table("item", item_ids),
        dropped={},
    )


def gowalla(*, seed: int = 0, valid: float = 0.1) -> Dataset:
    """Gowalla check-ins: 29,858 users, 40,981 places, the split of LightGCN.

    810,128 pairs to train on, of which a share of each user's becomes the validation
    part (`final()` gives all of them back), and 217,242 to test. No times, no titles.

    Cho, Myers, Leskovec: Friendship and mobility, 2011; He et al.: LightGCN, 2020.
    """
    path = datasets.find("gowalla")
    with open_arrays(path, "train", "test") as arrays:
        parts = [arrays["train"], arrays["test"]]
        if any(part.ndim != 2 or part.shape[1] != 2 for part in parts):
            raise ValueError("train and test must be rows of user, item")
    logs = []
    for part in parts:
        (users, user_ids), (items, item_ids) = _coded(part[:, 0]), _coded(part[:, 1])
        logs.append(Interactions("gowalla", users, items, user_ids, item_ids))
    return splits.given(*logs, valid, seed=seed)


def _coded(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [N] int32 and ids as text, in the order of the numbers."""
    ids, codes = np.unique(numbers, return_inverse=True)
    return codes.astype(np.int32), ids.astype(str).astype(object)


def _movielens_table(kind: str, ids: np.ndarray) -> Any:
    name = f"recbole/dataset_example/ml-100k/ml-100k.{kind}"
    with datasets.wheel("recbole") as archive:
        content = wheels.member(archive, name, limit=10_000_000)
    return side_table(io.BytesIO(content), ids)
