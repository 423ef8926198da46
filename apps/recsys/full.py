"""The GPU run: LightGCN on Gowalla, dense and sparse, and what the book keeps of it.

    python -m apps.recsys.full run --minutes 9 --out runs/a
    python -m apps.recsys.full run --minutes 9 --out runs/b --recipes dense dsl-0.1
    python -m apps.recsys.full merge runs/a runs/b --results book/results
    python -m apps.recsys.full bytes runs/a runs/b --results book/results
    python -m apps.recsys.full budget runs/*/published.npz --results book/results

`run` trains recipe by recipe, seed by seed, and begins no training that would end after
`--minutes`, by the pace of the slowest so far. After each it writes runs.json, and for
the first seed the table and the metrics of every user to RECIPE.npz (values as float16,
the mask as bits). Called again it goes on. Several GPUs take different recipes.
`merge` writes the table of all runs for the chapter, and what decides its claims.
`bytes` packs learned tables in fewer and fewer bits and ranks the test part again, on a
CPU. `budget` packs the vectors that published tables give, a training each, by the
recipes of `sparsekit recsys budget`.

All recipes but "published" share one setting, which was chosen on the validation part
(learning rate, penalty, for dense and sparse recipes apart); here they are trained on
the training and the validation part, for a fixed number of epochs, and tested once.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from operator import sub, truediv
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apps.common.arrays import open_arrays
from apps.common.config import settings
from apps.common.full import (
    Script,
    add_merge_flags,
    add_run_flags,
    kept,
    read_rows,
    read_runs,
    write_json,
    write_runs,
)
from apps.common.ledger import Ledger
from apps.common.statistics import paired
from apps.recsys.budget import budget
from apps.recsys.compression.packed import PackedGraph
from apps.recsys.config import Config
from apps.recsys.data import load
from apps.recsys.evaluation import evaluate
from apps.recsys.result import Result
from apps.recsys.tables import Sparse, encode
from apps.recsys.train import train
from sparsekit import atomic
from sparsekit.masks import pack, unpack

CHAPTER = "dynamic-sparse-learning"
NAME, BYTES = f"{CHAPTER}-runs", f"{CHAPTER}-bytes"
BUDGET, EIGHTH = f"{CHAPTER}-budget", "packed_over_dense_ndcg20:gowalla_eighth"
FINISHED = ("fewer bits", "svd int4", "bits by worth", "fitted bits")
# What claims ask for: {metric: (operation, recipe, recipe)} on NDCG@20, seed by seed.
METRICS = {
    "dsl_over_dense_ndcg20:gowalla_half": (truediv, "dsl-released-0.5", "dense"),
    "repaired_minus_small_dense_ndcg20:gowalla": (sub, "dsl-0.2", "dim-16"),
}
DENSE_KINDS = ("float16", "int8", "int4", "int3", "int2", "int1")
SPARSE_KINDS = ("float16", "int8", "int4")
TABLE = "embedding.weight"

PUBLISHED = Config(
    dataset="gowalla", train_on="all", draw="users", layers=3, dim=64, l2=1e-4, lr=1e-3,
    batch=2048, epochs=1000, every=1000,
)  # fmt: skip
DENSE = replace(
    PUBLISHED, lr=0.01, schedule="cosine", batch=8192, epochs=300, every=300
)
SPARSE = replace(DENSE, lr=0.02, l2=3e-4)
RELEASED = {"every": "4 epochs", "end": "100%"}  # 3000 steps of 1024 pairs, all along
REPAIRED = {
    "every": "1 epoch", "end": "75%", "gradient_steps": "0.5 epochs", "by_row": True,
}  # fmt: skip
GRADUAL = {"every": "1 epoch", "end": "50%"}


def recipes() -> dict[str, Config]:
    """Settings by name; what comes first is measured first."""
    found = {"published": PUBLISHED, "dense": DENSE}
    for method, name, options, densities in (
        ("gradual", "gradual", GRADUAL, (0.2, 0.1)),
        ("dsl", "dsl", REPAIRED, (0.2, 0.1)),
        ("dsl", "dsl-released", RELEASED, (0.5, 0.2, 0.1)),
        ("static", "static", {}, (0.2,)),
    ):
        for density in densities:
            found[f"{name}-{density:g}"] = replace(
                SPARSE, method=method, sparsity=1 - density, options=options
            )
    small = {f"dim-{dim}": replace(DENSE, dim=dim) for dim in (32, 16, 8)}
    return found | small


def run(arguments: argparse.Namespace) -> None:
    """Trains as much as the time allows."""
    began, pace = time.perf_counter(), 0.0  # seconds for each of `steps`
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    rows = read_rows(out) if (out / "runs.json").exists() else []
    done = {(row["recipe"], row["seed"]) for row in rows}
    changes: dict[str, Any] = {"device": arguments.device}
    if arguments.epochs is not None:
        changes |= {"epochs": arguments.epochs, "every": arguments.epochs}
    if arguments.dataset is not None:
        changes["dataset"] = arguments.dataset
    for seed in arguments.seeds:
        for name in arguments.recipes:
            config = replace(recipes()[name], seed=seed, **changes)
            steps = config.epochs / config.batch  # of equal data, up to a factor
            left = 60 * arguments.minutes - (time.perf_counter() - began)
            if (name, seed) in done or left < pace * steps:
                continue
            started = time.perf_counter()
            result = train(config)
            pace = max(pace, (time.perf_counter() - started) / steps)
            rows.append(as_row(name, result))
            write_runs(out, {"rows": rows}, arguments.commit)
            if seed == arguments.seeds[0]:
                write_table(out / f"{name}.npz", result)
            values = {k: result.metrics[k].value for k in ("recall@20", "ndcg@20")}
            shown = " ".join(f"{k} {v:.4f}" for k, v in values.items())
            now = time.perf_counter()
            times = f"{now - began:6.0f} s, {now - started:.0f} s"
            print(f"{times}  {name} {seed}  {shown}", flush=True)


def as_row(name: str, result: Result) -> dict[str, Any]:
    """What is kept of a training: settings, metrics with intervals over users, cost."""
    row = {
        "recipe": name,
        "seed": result.config.seed,
        "settings": settings(result.config),
        "metrics": {k: asdict(v) for k, v in result.metrics.items()},
        "cost": dict(result.cost),
        "density": result.history[-1].get("density", 1.0),
        "exploration": result.history[-1].get("exploration", 1.0),
    }
    mask = result.masks.get(TABLE)
    if mask is not None:
        sizes = mask.sum(1).float().cpu()
        users, items = sizes.split(list(result.data.shape))
        marks = torch.tensor([0, 0.1, 0.5, 0.9, 1])
        row["row_sizes"] = {
            "quantiles": sizes.quantile(marks).tolist(),
            "users": float(users.mean()),
            "items": float(items.mean()),
            "rank_correlation_items": rank_correlation(
                items.numpy(), np.asarray(result.data.known("test").sum(0)).ravel()
            ),
        }
    return row


def rank_correlation(sizes: np.ndarray, counts: np.ndarray) -> float | None:
    """Spearman's; None where all sizes are equal."""
    from scipy.stats import spearmanr

    return None if np.ptp(sizes) == 0 else float(spearmanr(sizes, counts).statistic)


def write_table(path: Path, result: Result) -> None:
    """The table, float16 where alive, and NDCG and recall of every user."""
    weight = dict(result.network.named_parameters())[TABLE].detach().cpu()
    mask = result.masks.get(TABLE, torch.ones_like(weight, dtype=torch.bool)).cpu()
    values = {k: result.evaluation.values[k] for k in ("ndcg@20", "recall@20")}
    arrays = {
        "shape": np.array(weight.shape),
        "mask": pack(mask).numpy(),
        "values": weight[mask].half().numpy(),
        **{key: value.astype(np.float32) for key, value in values.items()},
    }
    atomic.write(path, lambda file: np.savez_compressed(file, **arrays))


def merge(parts: list[Path], results: Path) -> list[Path]:
    """One table of the runs of all parts, in the order of `recipes`, and the ledger.

    Where it comes from is said by the first part.
    """
    order = list(recipes())
    rows = [row for part in parts for row in read_rows(part)]
    rows.sort(key=lambda row: (order.index(row["recipe"]), row["seed"]))
    origin = read_runs(parts[0])["provenance"]
    path = write_json(kept(results, NAME), {"provenance": origin, "rows": rows})
    return [path, record(results)]


def record(results: Path) -> Path:
    """The ledger, of what is stored in `results`, in the seeds that have it."""
    runs = json.loads(kept(results, NAME).read_text())
    ledger = Ledger(CHAPTER, "full", folder=results, provenance=runs["provenance"])
    found = {
        (row["recipe"], row["seed"]): row["metrics"]["ndcg@20"]["value"]
        for row in runs["rows"]
    }
    for metric, (operation, first, second) in METRICS.items():
        values = paired(found, first, second, operation)
        if values:
            ledger.record(metric, list(values.values()), seeds=list(values))
    path = kept(results, BUDGET)
    if path.exists():
        curve = json.loads(path.read_text())
        eighth = next(b for b in curve["budgets"] if b["bytes"] == curve["eighth"])
        best = eighth["recipes"][eighth["best"]]["ndcg@20"]
        shares = [
            a / b for a, b in zip(best, curve["fixed"]["dense"]["ndcg@20"], strict=True)
        ]
        ledger.record(EIGHTH, shares, seeds=curve["seeds"], recipe=eighth["best"])
    return ledger.path


def budget_of(tables: list[Path], results: Path, config: Config) -> list[Path]:
    """Recipes for fewer bytes on published tables, one training each, and the ledger.

    The tables have seen the validation part: agreement with their own lists chooses.
    """
    data = config.load()
    graph, factors = data.final().train, []
    for path in tables:
        weight, _ = read_table(path)
        users, items = np.split(weight, [data.shape[0]])
        packed = PackedGraph(
            encode(users, "float32"), encode(items, "float32"), config.layers
        )
        factors.append(packed.model(graph))
    dense = factors[0].users.nbytes + factors[0].items.nbytes
    eighth = round(dense / 8)
    seeds = range(len(factors))
    curve = budget(config, [eighth], seeds, recipes=FINISHED, factors=factors)
    print(curve.table())
    content = curve.content() | {"eighth": eighth}
    content["provenance"].pop("command", None)  # its paths have no place there
    path = write_json(kept(results, BUDGET), content)
    return [path, record(results)]


def read_table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The table that `write_table` wrote, float32, zero where absent, and its mask."""
    with open_arrays(path, "shape", "mask", "values") as stored:
        shape = tuple(stored["shape"].tolist())
        mask = unpack(torch.from_numpy(stored["mask"]), shape).numpy()
        weight = np.zeros(shape, np.float32)
        weight[mask] = stored["values"].astype(np.float32)
    return weight, mask


def pack_and_test(parts: list[Path], results: Path, dataset: str) -> Path:
    """NDCG@20 and bytes of every table as floats and as integers of few bits."""
    data = load(dataset)
    graph, n_users = data.final().train, data.shape[0]
    rows = []
    for path in sorted(path for part in parts for path in part.glob("*.npz")):
        weight, mask = read_table(path)
        for kind in SPARSE_KINDS if not mask.all() else DENSE_KINDS:
            users, items = (
                encode(weight[half], kind)
                if mask.all()
                else Sparse.of(weight[half], mask[half], kind)
                for half in (slice(None, n_users), slice(n_users, None))
            )
            packed = PackedGraph(users, items, PUBLISHED.layers)
            tested = evaluate(packed.model(graph), data, "test", [20])
            rows.append(
                {
                    "recipe": path.stem,
                    "kind": kind,
                    "bytes": packed.nbytes,
                    "ndcg@20": tested.means["ndcg@20"],
                    "recall@20": tested.means["recall@20"],
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return write_json(kept(results, BYTES), {"rows": rows})


def main(argv: list[str] | None = None) -> int:
    """Returns 2 for a usage error."""
    names = list(recipes())
    script = Script("apps.recsys.full")
    running = script.verb("run", run, "train, within the time")
    add_run_flags(running)
    running.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    running.add_argument("--recipes", nargs="+", choices=names, default=names)
    running.add_argument("--device", default="cuda")
    running.add_argument("--epochs", type=int, help="fewer, for a trial")
    running.add_argument("--dataset", help="another one, for a trial")
    merging = script.verb("merge", print_merged, "parts into the book's results")
    add_merge_flags(merging)
    packing = script.verb("bytes", print_packed, "tables in few bits, tested again")
    add_merge_flags(packing)
    spending = script.verb("budget", print_budget, "the recipes for fewer bytes")
    spending.add_argument("tables", type=Path, nargs="+", help="published.npz")
    spending.add_argument("--results", type=Path, required=True)
    for parser in (packing, spending):
        parser.add_argument("--dataset", default="gowalla", help="that of the runs")
    return script.run(argv)


def print_merged(arguments: argparse.Namespace) -> None:
    print(*merge(arguments.parts, arguments.results), sep="\n")


def print_packed(arguments: argparse.Namespace) -> None:
    print(pack_and_test(arguments.parts, arguments.results, arguments.dataset))


def print_budget(arguments: argparse.Namespace) -> None:
    config = replace(PUBLISHED, dataset=arguments.dataset)
    print(*budget_of(arguments.tables, arguments.results, config), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
