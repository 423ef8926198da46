"""The full run of augmentation by language: all variants, many splits, on a GPU.

    python -m apps.recsys.language_full prepare --splits 100 110 --lm 100 105 --to made
    python -m apps.recsys.language_full run --made made --minutes 9 --out out
    python -m apps.recsys.language_full merge out --made made --results book/results

`prepare` needs the models and no GPU: it writes the ingredients that variants are mixed
from. `run` needs neither models nor a network, only MovieLens-100k in the cache. For
each pair of split and variant, the most important first, it trains the trials and
writes a row; it begins none that would end after `--minutes`, by the pace of the
slowest so far. Called again it goes on; several at a time, on GPUs and CPUs, share the
work.
`merge` writes the table of all rows for the chapter, and what decides its claims.
"""

import argparse
import fcntl
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from apps.common.full import Script, add_merge_flags, add_run_flags, kept
from apps.common.ledger import Ledger
from apps.common.provenance import stored_provenance
from apps.common.statistics import paired
from apps.recsys import ablation
from apps.recsys.ablation import PENALTIES, TRIALS, VARIANTS, trained
from apps.recsys.augmentation import LLMRecSettings
from apps.recsys.compression.packed import Packed, PackedAugmented, PackedGraph
from apps.recsys.config import Config, Source
from apps.recsys.evaluation import Evaluation, evaluate
from apps.recsys.ingredients import Ingredients, path_of
from apps.recsys.models.network import OnDevice
from apps.recsys.result import Result
from apps.recsys.tables import Sparse, encode
from sparsekit import atomic

CHAPTER = "when-the-graph-is-sparse"
TABLE = f"{CHAPTER}-runs"
# As the preset lightgcn-ml100k: where this runs, there may be nothing to read it with.
PLAIN = Config(
    model="lightgcn", dim=64, layers=2, l2=0.003, epochs=200, every=5, patience=10,
    batch=4096, lr=0.01,
)  # fmt: skip

# Recommenders in 153 kB, the bytes of 16 floats a user and item. Rules and rates are
# those of the chapter on dynamic sparse learning.
DENSE_16 = replace(
    PLAIN, dim=16, lr=0.05, epochs=160, every=10, patience=0, schedule="cosine"
)
SPARSE = replace(
    PLAIN, lr=0.02, epochs=80, every=10, patience=0, method="dsl", sparsity=1 - 14 / 64,
    options={"every": "1 epoch", "end": "75%", "gradient_steps": "1 epoch",
             "by_row": True},
)  # fmt: skip
SPARSER = replace(SPARSE, sparsity=1 - 8 / 64)
FEATURES = "int4"
BUDGET = ("153 kB, dense", "153 kB, sparse", "153 kB, sparse and text")

# What claims ask for: {metric: (of this, minus that, in this slice)}, split by split.
METRICS = {
    "llmrec_minus_lightgcn_ndcg20": ("llmrec", "lightgcn", "ndcg@20"),
    "llmrec_minus_no_lm_ndcg20": ("llmrec", "without lm", "ndcg@20"),
    "lm_minus_random_edges_ndcg20:cold": ("cold edges lm", "cold edges random", "cold"),
    "pruned_minus_unpruned_ndcg20:llmrec": ("llmrec", "llmrec, none pruned", "ndcg@20"),
    "restored_minus_plain_ndcg20:text": ("text restored", "text", "ndcg@20"),
    "text_minus_lightgcn_ndcg20": ("text", "lightgcn", "ndcg@20"),
    "text_minus_lightgcn_ndcg20:tail": ("text", "lightgcn", "tail"),
    "text_minus_shuffled_ndcg20": ("text", "text shuffled", "ndcg@20"),
    "base_edges_minus_lightgcn_ndcg20": ("edges base", "lightgcn", "ndcg@20"),
    "easy_minus_hard_ndcg20:noisy": (
        "noisy, easy kept", "noisy, hard kept", "ndcg@20"
    ),
    "text_minus_plain_ndcg20:153_kB": (BUDGET[2], BUDGET[1], "ndcg@20"),
}  # fmt: skip
NAMES = ("lightgcn", BUDGET[0], *VARIANTS, *BUDGET[1:])
LEAST = 5  # splits that decide a claim
FIRST = {name for pair in METRICS.values() for name in pair[:2]}


def jobs(made: Path, splits: Iterable[int]) -> list[tuple[int, str]]:
    """(split, name), as far as the language model made its part; claims come first.

    Those split by split; the rest variant by variant, so that what is measured at all
    is measured on all splits.
    """
    rest = [name for name in NAMES if name not in FIRST]
    found = [(split, name) for split in splits for name in NAMES if name in FIRST]
    found += [(split, name) for name in rest for split in splits]

    def is_made(split: int, name: str) -> bool:
        files = ablation.lm_files(name, split)
        return all(path_of(made, file).is_file() for file in files)

    return [(split, name) for split, name in found if is_made(split, name)]


def configs(
    name: str, split: int, mixed: Ingredients, folder: Path, changes: dict[str, Any]
) -> list[Config]:
    """The trials of a job."""
    common = {"seed": split, "split_seed": split, **changes}
    if name not in BUDGET:
        plain = replace(PLAIN, **common)
        return [ablation.config(plain, mixed, name, k, folder) for k in range(TRIALS)]
    if name == BUDGET[2]:
        text = ablation.config(replace(SPARSER, **common), mixed, "text", 0, folder)
        return [
            replace(text, llmrec=LLMRecSettings(items=weight, edges=0.0))
            for weight in ablation.WEIGHTS["items"]
        ]
    plain = replace(DENSE_16 if name == BUDGET[0] else SPARSE, **common)
    return [replace(plain, l2=penalty) for penalty in PENALTIES]


def packed(result: Result) -> Packed:
    """Tables of floats, with their zeros left out; projected features in few bits."""
    n_users = result.data.shape[0]
    halves = slice(None, n_users), slice(n_users, None)
    weight = result.network.state_dict()["embedding.weight"].detach().cpu().numpy()
    mask = result.masks.get("embedding.weight")
    tables = [
        encode(weight[half], "float32")
        if mask is None
        else Sparse.of(weight[half], mask[half].cpu().numpy(), "float32")
        for half in halves
    ]
    layers = result.config.layers
    if result.config.model == "lightgcn":
        return PackedGraph(*tables, layers)
    with torch.no_grad():
        start = result.network.project["text"](result.network.feature("text"))
    features = encode(start.cpu().numpy(), FEATURES)
    return PackedAugmented(*tables, features, result.config.llmrec.items, layers)


def evaluate_packed(model: Packed, result: Result) -> Evaluation:
    """On the test part, by torch: numba may be missing."""
    factors = model.model(result.data.train)
    users, items = torch.from_numpy(factors.users), torch.from_numpy(factors.items)
    ranking = OnDevice(lambda rows: users[rows] @ items.T, torch.device("cpu"))
    return evaluate(ranking, result.data, "test", [20])


def as_row(
    name: str, split: int, result: Result, values: list[float], mixed: Ingredients
) -> dict[str, Any]:
    """What is kept of a job; of its trials, the values on validation."""
    row = {
        "name": name,
        "split": split,
        "trial": int(np.argmax(values)),
        "valid": values,
        "epoch": result.epoch,
        "seconds": result.cost["train_seconds"],
        "device": result.config.device,
    }
    tested = result.evaluation
    if name in BUDGET:
        small = packed(result)
        tested = evaluate_packed(small, result)
        row |= {"bytes": small.nbytes, "unpacked": result.evaluation.means["ndcg@20"]}
    return row | {"metrics": ablation.sliced(tested, result.data, mixed.cold)}


def run(arguments: argparse.Namespace) -> None:
    """Trains as much as the time allows; jobs of other processes are left to them."""
    began, pace = time.perf_counter(), 0.0  # seconds for an epoch that is allowed
    changes: dict[str, Any] = {"device": arguments.device}
    if arguments.epochs is not None:
        changes |= {"epochs": arguments.epochs, "every": arguments.epochs}
    for split, name in jobs(arguments.made, range(*arguments.splits)):
        if arguments.names and name not in arguments.names:
            continue
        path = arguments.out / f"rows-{split}-{name.replace(' ', '-')}.json"
        with alone(path.with_suffix(".lock")) as free, TemporaryDirectory() as folder:
            if not free or path.exists():
                continue
            mixed = Ingredients.load(arguments.made, split)
            trials = configs(name, split, mixed, Path(folder), changes)
            epochs = sum(one.epochs for one in trials)
            if 60 * arguments.minutes - (time.perf_counter() - began) < pace * epochs:
                continue
            started = time.perf_counter()
            result, values = trained(trials)
            pace = max(pace, (time.perf_counter() - started) / epochs)
            write(path, as_row(name, split, result, values, mixed), arguments.commit)
        now = time.perf_counter()
        print(
            f"{now - began:5.0f} s, {now - started:3.0f} s  {split} {name}  "
            f"valid {max(values):.4f}", flush=True,
        )  # fmt: skip


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether no other process is in here with this path; ends with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def write(path: Path, row: dict[str, Any], commit: str | None) -> None:
    origin = stored_provenance("full", commit)
    atomic.write_text(path, json.dumps({"provenance": origin, "row": row}) + "\n")


def merge(folders: list[Path], results: Path, made: Path) -> list[Path]:
    """The rows of all parts in one table, and the values that decide claims."""
    paths = sorted(path for folder in folders for path in folder.rglob("rows-*.json"))
    if not paths:
        raise FileNotFoundError(f"no rows-*.json in {', '.join(map(str, folders))}")
    read = [json.loads(path.read_text("utf-8")) for path in paths]
    rows = {(one["row"]["split"], one["row"]["name"]): one["row"] for one in read}
    order = sorted(rows, key=lambda key: (NAMES.index(key[1]), key[0]))
    origin = read[0]["provenance"]
    splits = sorted({split for split, _ in rows})
    tables = {
        "rows": [rows[key] for key in order],
        "choices": [row for split in splits for row in choices(made, split)],
    }
    path = kept(results, TABLE)
    lines = [f'{{"provenance": {json.dumps(origin)}']
    for name, table in tables.items():
        lines.append(f'"{name}": [\n' + ",\n".join(map(json.dumps, table)) + "\n]")
    atomic.write_text(path, ",\n".join(lines) + "}\n")
    ledger = Ledger(CHAPTER, "full", folder=results, provenance=origin)
    for metric in METRICS:
        values = differences(list(rows.values()), *METRICS[metric])
        if len(values) < LEAST:
            print(f"{metric}: on {len(values)} splits, too few to decide a claim")
        else:
            ledger.record(metric, list(values.values()), seeds=list(values))
    return [path, ledger.path]


def choices(made: Path, split: int) -> list[dict[str, Any]]:
    """How often a candidate is in the user's validation part, by chooser.

    right: of the liked ones; wrong: of the disliked ones. A row for cold users, who
    have few such items, and one for all users, if all have a triplet.
    """
    mixed = Ingredients.load(made, split)
    valid = replace(PLAIN, split_seed=split).load().valid.toarray() > 0
    found = []
    for chooser, (liked, disliked) in mixed.edges.items():
        for who, group in (("cold", mixed.cold), ("all", np.ones_like(mixed.cold))):
            users = np.flatnonzero(group & (liked >= 0))
            if who == "all" and len(users) == mixed.cold.sum():
                continue
            found.append({
                "split": split, "chooser": chooser, "who": who, "users": len(users),
                "right": float(valid[users, liked[users]].mean()),
                "wrong": float(valid[users, disliked[users]].mean()),
            })  # fmt: skip
    return found


def differences(
    rows: list[dict[str, Any]], ours: str, theirs: str, name: str
) -> dict[int, float]:
    """{split: difference in a metric or slice}, of splits that have both."""
    found = {(r["name"], r["split"]): r["metrics"][name] for r in rows}
    return paired(found, ours, theirs)


def main(argv: list[str] | None = None) -> int:
    """Returns 2 for a usage error."""
    script = Script("apps.recsys.language_full")
    what = "what the variants are mixed from"
    preparing = script.verb("prepare", prepare, what)
    preparing.add_argument("--to", type=Path, required=True)
    preparing.add_argument("--lm", type=int, nargs=2, default=[100, 105])
    running = script.verb("run", run, "train, within the time")
    add_run_flags(running)
    running.add_argument("--made", type=Path, required=True, help="by prepare")
    running.add_argument("--names", nargs="+", help="variants; default: all")
    running.add_argument("--device", default="cuda")
    running.add_argument("--epochs", type=int, help="fewer, for a trial")
    for verb in (preparing, running):
        verb.add_argument(
            "--splits", type=int, nargs=2, default=[100, 110], help="from, and up to"
        )
    merging = script.verb("merge", print_merged, "parts into the book's results")
    add_merge_flags(merging)
    merging.add_argument("--made", type=Path, required=True)
    return script.run(argv)


def prepare(arguments: argparse.Namespace) -> None:
    from apps.recsys.preparation import make  # models, which a GPU box has not

    splits, lm = range(*arguments.splits), range(*arguments.lm)
    make(arguments.to, Source(), splits, lm=lm)


def print_merged(arguments: argparse.Namespace) -> None:
    where = (arguments.parts, arguments.results, arguments.made)
    print(*merge(*where), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
