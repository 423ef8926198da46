"""How good users and items are that were added without training.

    python -m benchmarks.recsys_fold_in                        # MovieLens-100k, 5 seeds
    python -m benchmarks.recsys_fold_in --dataset gowalla --seeds 2 --models als
    python -m benchmarks.recsys_fold_in --quick

New users: a fifth of the users is left out of training altogether. They show their
training items and are ranked for their test items, known items masked:

    trained     the model that had them in its training: what there is to reach
    folded      the model that had not, by `FoldIn`, settings chosen on the others'
                validation part
    summed      the same with the sum of the item vectors in place of `FoldIn`
    unstored    the model that had them, its user vectors thrown away: folded again

Beside them two hops, EASE, popularity and random lists, none of which had these users.

New items: a tenth of the items that have 10 users or more is left out of training and
then added by `updated` from the training part; users who have them are folded in again.
NDCG counts these items alone among all ("new items"), the others, or all of them.

ALS and EASE have settings chosen on validation for each training, MF and LightGCN fixed
ones and an epoch chosen on validation.

Each seed draws split, users, items and initial vectors anew; intervals (95 %) are over
seeds. A ratio is to "trained" of the same seed.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from apps.common.statistics import mean_interval
from apps.recsys import data as sources
from apps.recsys.artefact import Artefact
from apps.recsys.config import Config
from apps.recsys.evaluation import select
from apps.recsys.export import artefact_of
from apps.recsys.fold_in import choose, folded
from apps.recsys.interactions import Interactions
from apps.recsys.metrics import only_items, ranking_metrics
from apps.recsys.models.als import ALS
from apps.recsys.models.closed_form import EASE, Cooccurrence, Popularity
from apps.recsys.models.factors import Factors
from apps.recsys.scoring import FoldIn
from apps.recsys.splits import Dataset
from apps.recsys.topk import top_k_factors, top_k_scores
from apps.recsys.train import train
from apps.recsys.updates import updated
from benchmarks import reports
from benchmarks.reports import save, table

MODELS = ("als", "mf", "lightgcn")
LEFT_OUT_USERS, LEFT_OUT_ITEMS = 0.2, 0.1
LEAST_USERS = 10  # of an item that is left out
K = 20
SUM = 1e6  # l2 of a fold-in that is the sum of the vectors, in their mean square

_DATA: dict[str, Dataset] = {}


@dataclass(frozen=True)
class OnData(Config):
    """A training on a data set of `_DATA`."""

    def load(self) -> Dataset:
        return _DATA[self.dataset]


def fitted(name: str, data: Dataset, seed: int, quick: bool) -> Factors:
    if name == "als":
        dim, grid = (16, (10.0,)) if quick else (64, (1.0, 10.0, 40.0))
        settings = [ALS(dim, l2, a, seed=seed) for a in grid for l2 in (0.1, 1.0, 10.0)]
        return select(settings, data).best.fit(data.train)
    _DATA["given"] = data
    config = OnData(
        model=name, dataset="given", seed=seed, batch=4096, epochs=150, layers=2,
        lr=0.01 if name == "lightgcn" else 0.005,
        l2=0.003 if name == "lightgcn" else 0.01,
    )  # fmt: skip
    if quick:
        config = replace(config, dim=8, epochs=2, every=2)
    return train(config).model


def ndcg(lists: np.ndarray, wanted: sp.csr_array) -> float:
    return float(np.nanmean(ranking_metrics(lists, wanted, [K])[f"ndcg@{K}"]))


def without(data: Dataset, users: np.ndarray, items: np.ndarray) -> Dataset:
    """The data with these rows and columns of train and valid emptied."""
    keep_users, keep_items = np.ones(data.shape[0], bool), np.ones(data.shape[1], bool)
    keep_users[users], keep_items[items] = False, False

    def emptied(part: sp.csr_array) -> sp.csr_array:
        rows = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
        kept = keep_users[rows] & keep_items[part.indices]
        pairs = (rows[kept], part.indices[kept])
        ones = np.ones(int(kept.sum()), np.float32)
        return sp.csr_array((ones, pairs), shape=part.shape)

    return replace(data, train=emptied(data.train), valid=emptied(data.valid))


@dataclass(frozen=True)
class Guests:
    """Users who were left out: what they show, what is masked, what is wanted."""

    rows: np.ndarray
    history: sp.csr_array
    known: sp.csr_array
    wanted: sp.csr_array

    @classmethod
    def of(cls, data: Dataset, rows: np.ndarray) -> "Guests":
        known = data.known("test")[rows]
        return cls(rows, data.train[rows], known, data.test[rows])

    def by_vectors(self, users: np.ndarray, items: np.ndarray) -> float:
        return ndcg(top_k_factors(users, items, K, self.known).items, self.wanted)

    def by_scores(self, scores: Callable[[np.ndarray], np.ndarray]) -> float:
        return ndcg(top_k_scores(scores, K, self.known).items, self.wanted)


def new_users(
    data: Dataset, models: dict[str, Factors], seed: int, quick: bool
) -> dict[str, dict[str, float]]:
    """{model: {way: NDCG@20}} of the users who were left out.

    models: those that had all users and items in their training.
    """
    rng = np.random.default_rng(seed)
    able = (np.diff(data.train.indptr) > 0) & (np.diff(data.test.indptr) > 0)
    able = np.flatnonzero(able)
    rows = np.sort(rng.choice(able, int(LEFT_OUT_USERS * len(able)), replace=False))
    guests = Guests.of(data, rows)
    others = without(data, rows, np.empty(0, int))
    found: dict[str, dict[str, float]] = {}
    for name, full in models.items():
        part = fitted(name, others, seed, quick)
        ways = {"trained": guests.by_vectors(full.users[rows], full.items)}
        for way, model, seen in (("folded", part, others), ("unstored", full, data)):
            fold = choose(model.items, seen, seed=seed).best
            vectors = folded(fold, guests.history, model.items)
            ways[way] = guests.by_vectors(vectors, model.items)
        unit = float((part.items.astype(np.float64) ** 2).sum(1).mean())
        vectors = folded(FoldIn(0.0, SUM * unit), guests.history, part.items)
        ways["summed"] = guests.by_vectors(vectors * np.float32(SUM), part.items)
        found[name] = ways
    beside = {"two hops": Cooccurrence(), "popularity": Popularity()}
    if data.shape[1] <= EASE().most_items:
        grid = [EASE(l2) for l2 in (50.0, 100.0, 200.0, 400.0, 800.0)]
        beside["EASE"] = select(grid, others).best
    for name, settings in beside.items():
        fit = settings.fit(others.train)
        found[name] = {
            "folded": guests.by_scores(lambda r, m=fit: m.fold_in(guests.history[r]))
        }
    found["random"] = {
        "folded": guests.by_scores(lambda r: rng.random((len(r), data.shape[1])))
    }
    return found


def new_items(
    data: Dataset, models: dict[str, Factors], seed: int, quick: bool
) -> dict[str, dict[str, float]]:
    """{model: {way: NDCG@20}}: of items that were left out, and of all others.

    models: as in `new_users`.
    """
    rng = np.random.default_rng(seed)
    able = np.bincount(data.train.indices, minlength=data.shape[1]) >= LEAST_USERS
    able = np.flatnonzero(able)
    late = np.sort(rng.choice(able, int(LEFT_OUT_ITEMS * len(able)), replace=False))
    is_late = np.isin(np.arange(data.shape[1]), late)
    others = without(data, np.empty(0, int), late)
    known = data.known("test")
    wanted = {
        "all items": data.test,
        "new items": only_items(data.test, is_late),
        "old items": only_items(data.test, ~is_late),
    }

    def measured(way: str, lists: np.ndarray) -> dict[str, float]:
        return {f"{way}, {kind}": ndcg(lists, part) for kind, part in wanted.items()}

    found: dict[str, dict[str, float]] = {}
    for name, full in models.items():
        lists = top_k_factors(full.users, full.items, K, known).items
        found[name] = measured("trained", lists)
        part = fitted(name, others, seed, quick)
        users, items = added(part, others, data, late)
        lists = top_k_factors(users, items, K, known).items
        found[name] |= measured("updated", lists)
    counts = Popularity().fit(data.train)
    lists = top_k_scores(counts.scores, K, known).items
    found["popularity"] = measured("trained", lists)
    return found


def added(
    part: Factors, others: Dataset, data: Dataset, late: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [U, d] and [I, d] after an update, in the order of `data`."""
    kept = np.setdiff1d(np.arange(data.shape[1]), late)
    before = replace(
        others, item_ids=data.item_ids[kept], item_table=None, titles=None,
        **{name: sp.csr_array(getattr(others, name)[:, kept])
           for name in ("train", "valid", "test")},
    )  # fmt: skip
    fold = choose(part.items[kept], before).best
    artefact = artefact_of(
        Factors(part.users, part.items[kept]), before, history=before.train,
        fold_in=fold,
    )  # fmt: skip
    newer = updated(artefact, log_of(data, late))
    order = np.array([newer.item_ids.find(i) for i in data.item_ids])
    users, items = tables(newer)
    return users, items[order]


def log_of(data: Dataset, late: np.ndarray) -> Interactions:
    """The training interactions with these items."""
    columns = sp.csr_array(data.train[:, late])
    users = np.repeat(np.arange(data.shape[0]), np.diff(columns.indptr))
    return Interactions(
        "late", users.astype(np.int32), columns.indices.astype(np.int32),
        data.user_ids, data.item_ids[late],
    )  # fmt: skip


def tables(artefact: Artefact) -> tuple[np.ndarray, np.ndarray]:
    model = artefact.model
    return model.users.rows(slice(None)), model.items.rows(slice(None))


def summary(runs: list[dict[str, dict[str, float]]]) -> list[dict[str, Any]]:
    """Means over seeds, and ratios to "trained", with intervals."""
    rows = []
    for name, ways in runs[0].items():
        for way in ways:
            values = [run[name][way] for run in runs]
            base = way.replace(way.partition(",")[0], "trained")
            row = {"model": name, "way": way, "values": values}
            row["ndcg@20"] = vars(mean_interval(values))
            if base in ways and base != way:
                ratios = [run[name][way] / run[name][base] for run in runs]
                row["ratio"] = vars(mean_interval(ratios))
            rows.append(row)
    return rows


def markdown(report: dict[str, Any]) -> list[str]:
    lines = []
    for title in ("new users", "new items"):
        rows = (
            f"{row['model']} | {row['way']} | {shown(row['ndcg@20'])} | "
            + (shown(row["ratio"]) if "ratio" in row else "")
            for row in report[title]
        )
        lines += ["", f"## {title}: {report['dataset']}, {report['seeds']} seeds", ""]
        lines += table("model | way | NDCG@20 | to trained", rows)
    return lines[1:]


def shown(interval: dict[str, float]) -> str:
    if np.isnan(interval["low"]):
        return f"{interval['value']:.4f}"
    return f"{interval['value']:.4f} [{interval['low']:.4f}, {interval['high']:.4f}]"


def main() -> None:
    parser = reports.parser(__doc__, quick="small, two seeds", seeds=5)
    parser.add_argument("--dataset", default="ml100k", choices=sources.NAMES)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    args = parser.parse_args()
    n = 2 if args.quick else args.seeds
    users, items = [], []
    for seed in range(n):
        data = sources.load(args.dataset, seed=seed)
        models = {name: fitted(name, data, seed, args.quick) for name in args.models}
        users.append(new_users(data, models, seed, args.quick))
        items.append(new_items(data, models, seed, args.quick))
        print(f"seed {seed}: {json.dumps([users[-1], items[-1]])}", flush=True)
    report = {
        "dataset": args.dataset, "seeds": n,
        "new users": summary(users), "new items": summary(items),
    }  # fmt: skip
    name = f"recsys_fold_in_{args.dataset}"
    save(args.out / f"{name}.json", report, markdown(report))


if __name__ == "__main__":
    main()
