"""The GPU run: CIFAR-10, ResNet-18, dense and pruned, and what the book keeps of it.

    python -m apps.unlearning.full run --search 100 --seeds 0 --minutes 9 --out runs/a
    python -m apps.unlearning.full run --chosen runs/a/runs.json --seeds 1 --out runs/b
    python -m apps.unlearning.full merge runs/a runs/b --results book/results

`run` starts workers that share the tasks of `full_plan`, on one or several GPUs, and
ends them after `--minutes`; runs.json in `--out` is written anew every few seconds,
with all that is complete. `--search` chooses the settings of every method on validation
records of a seed that measures nothing; `--chosen` takes them from an earlier run.
`merge` writes the table of all runs for the chapter, and what decides its claims.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apps.common.config import settings
from apps.common.full import (
    Rows,
    Script,
    add_merge_flags,
    add_run_flags,
    kept,
    read_runs,
    write_json,
    write_runs,
)
from apps.common.ledger import Ledger
from apps.common.statistics import paired
from apps.unlearning.config import Config
from apps.unlearning.full_plan import Task, plan, work
from apps.unlearning.full_settings import FINER, FORGET, base
from sparsekit import atomic

CHAPTER = "prune-first-then-unlearn"
NAME = f"{CHAPTER}-cifar10"
FOUR = ("finetune", "gradient_ascent", "fisher", "influence")
NAMES = ("UA", "MIA", "RA", "TA")
SEEDS = 3  # that a claim needs
SEARCHES = ("search", "refine", "finer")
LISTS = (*SEARCHES, "seeds", "class_only", "random_only", "control")


def run(arguments: argparse.Namespace) -> None:
    """Starts the workers, gathers what they have, ends them in time."""
    if torch.cuda.is_available():
        torch.cuda.init()  # the trainings are the workers', but this one says where
    until = time.monotonic() + 60 * arguments.minutes
    out: Path = arguments.out
    folder = arguments.work or out / "work"
    folder.mkdir(parents=True, exist_ok=True)
    for left in (*folder.glob("*.taken"), *folder.glob("*.failed")):
        left.unlink()  # of a run that was ended
    earlier: Rows = []
    if arguments.chosen is not None:
        earlier = json.loads(arguments.chosen.read_text())["search"]
        earlier.sort(key=source, reverse=True)
        # Where a grid was moved or made finer, that search is what counts.
        arguments.earlier = arguments.source = source(earlier[-1])
    for name in SEARCHES:
        for seed in getattr(arguments, name):
            arguments.source = f"{name}-{seed}"
    if not arguments.source:
        raise ValueError("give --search SEED, or --chosen runs.json of an earlier run")
    own = {task.name for task in tasks_of(arguments)}
    for found in earlier:
        for place in (source(found), arguments.source):
            name = f"{place}-{found['forget']}-{found['pruner']}"
            if name not in own:
                atomic.write_text(folder / f"{name}.json", json.dumps(found))
    command = [sys.executable, "-m", "apps.unlearning.full", "work", *flags(arguments)]
    workers = []
    for number in range(arguments.workers):
        gpus = arguments.gpus
        environment = dict(os.environ)
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(gpus[number % len(gpus)])
        workers.append(subprocess.Popen(command, env=environment))
    try:
        while time.monotonic() < until and any(w.poll() is None for w in workers):
            time.sleep(min(5.0, max(0.0, until - time.monotonic())))
            gather(folder, arguments)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()
        gather(folder, arguments)


def flags(arguments: argparse.Namespace) -> list[str]:
    """What a worker must be told."""
    found = ["--work", str(arguments.work or arguments.out / "work")]
    for name in LISTS:
        found += [f"--{name.replace('_', '-')}", *map(str, getattr(arguments, name))]
    found += ["--skip", *arguments.skip]
    for name in ("source", "earlier", "profile", "epochs", "dataset"):
        if getattr(arguments, name) is not None:
            found += [f"--{name}", str(getattr(arguments, name))]
    return found + ["--compile"] * arguments.compile + ["--timed"] * arguments.timed


def begin_work(arguments: argparse.Namespace) -> None:
    """A worker: `run` starts several."""
    from apps.unlearning.full_worker import Worker

    torch.backends.cudnn.benchmark = True
    config, source = configured(arguments), arguments.source
    worker = Worker(
        arguments.work, config, source, arguments.earlier, arguments.compile
    )
    work(arguments.work, tasks_of(arguments), source, worker.run)


def source(search: dict[str, Any]) -> str:
    """Kind and seed of a search; before there were two kinds, none was noted."""
    return f"{search.get('kind', 'search')}-{search['seed']}"


def configured(arguments: argparse.Namespace) -> Config:
    named = {"epochs": arguments.epochs, "dataset": arguments.dataset}
    changes = {name: value for name, value in named.items() if value is not None}
    if arguments.profile == "smoke":
        changes = {"epochs": 3, "batch": 50} | changes
    return base(arguments.profile, **changes)


def tasks_of(arguments: argparse.Namespace) -> list[Task]:
    only = {"class": arguments.class_only, "random": arguments.random_only}
    tasks = plan(
        search=arguments.search, refine=arguments.refine, finer=arguments.finer,
        seeds=arguments.seeds, only=only, control=arguments.control,
        timed=arguments.timed,
    )  # fmt: skip
    skipped = tuple(arguments.skip)
    return [task for task in tasks if not task.name.startswith(skipped)]


def gather(folder: Path, arguments: argparse.Namespace) -> None:
    """runs.json, of all tasks that are complete."""
    found = {
        path.stem: json.loads(path.read_text())
        for path in sorted(folder.glob("*.json"))
    }
    content = {
        "settings": settings(configured(arguments)),
        "timing": [found[n]["timed"] for n in found if n.startswith("timing")],
        "search": [found[n] for n in found if n.startswith(SEARCHES)],
        "rows": [row for n in found for row in found[n].get("rows", [])],
        "seconds": {n: found[n].get("seconds") for n in found},
        "loss": {n: found[n]["loss"] for n in found if "loss" in found[n]},
        "compiled": {n: v["compiled"] for n, v in found.items() if "compiled" in v},
        "failed": {p.stem: p.read_text()[-2000:] for p in folder.glob("*.failed")},
    }
    write_runs(arguments.out, content, arguments.commit)


def merge(parts: Iterable[Path], results: Path) -> list[Path]:
    """One file of the runs of all parts, and the ledger.

    Where it comes from is said by the first part, and the code of all by `commits`.
    """
    contents = [read_runs(part) for part in parts]
    merged = {name: contents[0][name] for name in ("provenance", "settings")}
    merged["commits"] = sorted(
        {commit for content in contents for commit in commits_of(content)}
    )
    merged["timing"] = [timed for content in contents for timed in content["timing"]]
    searches = {
        (source(found), *key(found)): found for c in contents for found in c["search"]
    }
    merged["search"] = [searches[name] for name in sorted(searches)]
    rows = [row for content in contents for row in content["rows"]]
    merged["rows"] = sorted(rows, key=lambda row: (row["seed"], *key(row)))
    path = write_json(kept(results, NAME), merged)
    return [path, record(merged, results)]


def commits_of(content: dict[str, Any]) -> list[str]:
    """Of the parts of a merged file, or of a part."""
    return content.get("commits") or [str(content["provenance"]["commit"])]


def key(row: dict[str, Any]) -> tuple[str, str]:
    return row["forget"], row["pruner"]


def gap(row: dict[str, Any]) -> float:
    """Mean size of the four differences to the retrained network."""
    pairs = [(row["unlearned"][name], row["reference"][name]) for name in NAMES]
    return float(np.mean([abs(a - b) for a, b in pairs]))


def chosen_rows(rows: Rows, choice: str) -> dict[tuple[int, str, str, str], dict]:
    """{(seed, forget, pruner, method): row} of one choice of settings.

    choice: "finer" takes the first choice of methods that had no finer grid.
    """
    first = choice == "finer"
    return {
        (row["seed"], *key(row), row["method"]): row
        for row in rows
        if choice in row["choice"]
        or (first and row["method"] not in FINER and "smallest" in row["choice"])
    }


def gaps_closed(
    rows: Rows,
    forget: str,
    choice: str = "smallest",
    sparse: str = "omp",
    methods: Sequence[str] = FOUR,
) -> dict[int, float]:
    """{seed: dense minus sparse gap, mean of the methods}, of seeds that have all."""
    found = chosen_rows(rows, choice)
    closed = {}
    for seed in sorted({row["seed"] for row in rows}):
        pairs = [
            [found.get((seed, forget, pruner, method)) for pruner in ("dense", sparse)]
            for method in methods
        ]
        if all(row is not None for pair in pairs for row in pair):
            closed[seed] = float(np.mean([gap(a) - gap(b) for a, b in pairs]))
    return closed


def run_times(timed: dict[str, list[float]], method: str, epochs: int) -> list[float]:
    """Shares of the time of retraining, dense, one a repetition."""
    retraining = epochs * np.mean(timed["retrain_epoch"])
    return [float(seconds / retraining) for seconds in timed[method]]


def record(merged: dict[str, Any], results: Path) -> Path:
    """The ledger: a metric once three seeds are complete."""
    ledger = Ledger(CHAPTER, "full", folder=results, provenance=merged["provenance"])
    for metric, values in measured(merged).items():
        if len(values) >= SEEDS:
            ledger.record(metric, list(values.values()), seeds=list(values))
    return ledger.path


def measured(merged: dict[str, Any]) -> dict[str, dict[int, float]]:
    """{metric: {seed: value}} of the claims; of run times, {repetition: value}."""
    closed = {forget: gaps_closed(merged["rows"], forget) for forget in FORGET}
    both = {
        seed: (value + closed["random"][seed]) / 2
        for seed, value in closed["class"].items()
        if seed in closed["random"]
    }
    chosen = chosen_rows(merged["rows"], "smallest")
    ua = {
        (method, seed): row["unlearned"]["UA"]
        for (seed, *cell, method), row in chosen.items()
        if cell == ["class", "dense"]
    }
    epochs, slower = merged["settings"]["epochs"], []
    for timed in merged["timing"]:
        shares = [run_times(timed, m, epochs) for m in ("finetune", "l1_sparse")]
        slower += [max(pair) for pair in zip(*shares, strict=True)]
    return {
        "dense_minus_sparse_gap:cifar10": both,
        "dense_minus_sparse_gap:cifar10_class": closed["class"],
        "dense_minus_sparse_gap:cifar10_random": closed["random"],
        "dense_minus_sparse_gap:cifar10_class_finer": gaps_closed(
            merged["rows"], "class", "finer"
        ),
        "l1_minus_finetune_ua:cifar10_class": paired(ua, "l1_sparse", "finetune"),
        "run_time_share:cifar10": dict(enumerate(slower)),
    }


def main(argv: list[str] | None = None) -> int:
    """Returns 2 for a usage error."""
    script = Script("apps.unlearning.full")
    running = script.verb("run", run, "start workers, end them in time")
    add_run_flags(running)
    running.add_argument("--chosen", type=Path, help="runs.json with a search")
    running.add_argument("--workers", type=int, default=4)
    running.add_argument("--gpus", type=int, nargs="*", help="default: all visible")
    working = script.verb("work", begin_work, "a worker, as `run` starts it")
    for parser in (running, working):
        parser.add_argument("--work", type=Path, help="for large files; OUT/work")
        for name in LISTS:
            flag = f"--{name.replace('_', '-')}"
            parser.add_argument(flag, type=int, nargs="*", default=[])
        parser.add_argument(
            "--skip", nargs="*", default=[], help="tasks whose name begins so"
        )
        parser.add_argument("--source", default="", help=argparse.SUPPRESS)
        parser.add_argument("--earlier", default="", help=argparse.SUPPRESS)
        parser.add_argument("--timed", action="store_true", help="time methods first")
        parser.add_argument("--compile", action="store_true")
        parser.add_argument("--profile", default="laptop", help="smoke for a trial")
        parser.add_argument("--epochs", type=int, help="others, for a trial")
        parser.add_argument("--dataset", help="another one, for a trial")
    merging = script.verb("merge", print_merged, "parts into the book's results")
    add_merge_flags(merging)
    return script.run(argv)


def print_merged(arguments: argparse.Namespace) -> None:
    print(*merge(arguments.parts, arguments.results), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
