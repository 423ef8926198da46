"""Is the file that is served still good? Its lists against what happened afterwards.

    found = backtest(load("model.safetensors"), read("today.csv"))
    found.values["ndcg@20"]                 # [U], users of the log that the file knows
    print(found.table())

For each of them all items are ranked but those of the history, as `recommend` does, and
what the user turned to since is what should be on top. Popularity, as the file counts
it, is ranked for the same users: a model that does not beat it is not worth serving.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from apps.common.tables import plain, shown
from apps.recsys.artefact import Artefact
from apps.recsys.batch import lists
from apps.recsys.export import matrix_of
from apps.recsys.interactions import Interactions
from apps.recsys.metrics import KS, Metrics, compare, ranking_metrics, summary
from apps.recsys.ragged import Ids
from apps.recsys.topk import top_k_scores


@dataclass(frozen=True)
class Backtest:
    """values: {"ndcg@20": [U], ...} of the file's lists; popular: of popularity's.

    counts: interactions of the log, by what became of them.
    """

    values: Metrics
    popular: Metrics
    counts: dict[str, int]

    def content(self) -> dict[str, Any]:
        """Means with intervals over users, and differences paired by user."""
        found = {
            "metrics": summary(self.values),
            "popularity": summary(self.popular),
            "differences": compare(self.values, self.popular),
        }
        told = {
            part: {name: interval.plain() for name, interval in of_part.items()}
            for part, of_part in found.items()
        }
        return {**told, "interactions": self.counts}

    def table(self) -> str:
        """Plain text."""
        ours, theirs = summary(self.values), summary(self.popular)
        differences = compare(self.values, self.popular)
        rows = [
            {
                "metric": name,
                "the file": shown(ours[name], 4),
                "popularity": shown(theirs[name], 4),
                "difference": shown(differences[name], 4, sign=True),
            }
            for name in ours
        ]
        n = len(next(iter(self.values.values())))
        counts = ", ".join(f"{n:,} {what}" for what, n in self.counts.items())
        return plain(
            rows,
            f"\n{n:,} users, with 95 % intervals; differences are paired by user.",
            f"Interactions: {counts}.",
        )


def backtest(artefact: Artefact, log: Interactions, ks: Sequence[int] = KS) -> Backtest:
    """Metrics of an artefact's lists on a later log.

    Tested are pairs of a user and an item of the file, not in the history. What the
    file cannot know, and what it knows already, is counted and left out; a pair counts
    once.

    Raises ValueError if nothing is left to test on.
    """
    users = _indices(artefact.user_ids, log.user_ids)[log.users]
    items = _indices(artefact.item_ids, log.item_ids)[log.items]
    n_items = len(artefact.item_ids)
    known = (users >= 0) & (items >= 0)
    keys = np.unique(users[known] * n_items + items[known])
    history = matrix_of(artefact.history, n_items)
    old = np.repeat(np.arange(len(artefact.user_ids)), np.diff(history.indptr))
    new = np.setdiff1d(keys, old * n_items + history.indices, assume_unique=True)
    counts = {
        "tested": len(new),
        "of unknown users": int((users < 0).sum()),
        "of unknown items": int(((users >= 0) & (items < 0)).sum()),
        "in the history already": len(keys) - len(new),
        "repeated": int(known.sum()) - len(keys),
    }
    if not len(new):
        told = ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)
        raise ValueError(f"{log.name} has nothing to test the file on: {told}")
    rows, place = np.unique(new // n_items, return_inverse=True)
    ones = np.ones(len(new), np.float32)
    wanted = sp.csr_array((ones, (place, new % n_items)), (len(rows), n_items))
    widest = min(max(ks), n_items)
    ranked = np.concatenate(
        [found.items for _, found, _ in lists(artefact, rows, widest)]
    )
    popularity = artefact.popularity.astype(np.float32)
    popular = top_k_scores(
        lambda some: np.tile(popularity, (len(some), 1)), widest, history[rows],
        n_users=len(rows),
    ).items  # fmt: skip
    ks = [k for k in ks if k <= widest]
    return Backtest(
        ranking_metrics(ranked, wanted, ks),
        ranking_metrics(popular, wanted, ks),
        counts,
    )


def _indices(known: Ids, ids: np.ndarray) -> np.ndarray:
    """[n] int64, -1 where an id is not known."""
    found = (known.find(one) for one in ids)
    return np.array([-1 if i is None else i for i in found], np.int64)
