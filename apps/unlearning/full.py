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

from apps.common.config import settings
from apps.common.ledger import Ledger
from apps.common.provenance import processor, provenance
from apps.unlearning.config import Config
from apps.unlearning.full_plan import Task, plan, work
from apps.unlearning.full_settings import FORGET, base
from sparsekit import atomic

CHAPTER = "prune-first-then-unlearn"
NAME = f"{CHAPTER}-cifar10"
FOUR = ("finetune", "gradient_ascent", "fisher", "influence")
NAMES = ("UA", "MIA", "RA", "TA")
SEEDS = 3  # that a claim needs
LISTS = ("search", "refine", "seeds", "class_only", "random_only", "control")
Rows = list[dict[str, Any]]


def run(arguments: argparse.Namespace) -> None:
    """Starts the workers, gathers what they have, ends them in time."""
    until = time.monotonic() + 60 * arguments.minutes
    out: Path = arguments.out
    folder = arguments.work or out / "work"
    folder.mkdir(parents=True, exist_ok=True)
    for left in (*folder.glob("*.taken"), *folder.glob("*.failed")):
        left.unlink()  # of a run that was ended
    if arguments.chosen is not None:
        earlier = json.loads(arguments.chosen.read_text())
        for found in earlier["search"]:
            name = f"{source(found)}-{found['forget']}-{found['pruner']}"
            atomic.write_text(folder / f"{name}.json", json.dumps(found))
        # Where grids were moved, their search is what counts.
        sources = sorted({source(found) for found in earlier["search"]})
        arguments.earlier = arguments.source = sources[0]
    for name in ("search", "refine"):
        for seed in getattr(arguments, name):
            arguments.source = f"{name}-{seed}"
    if not arguments.source:
        raise ValueError("give --search SEED, or --chosen runs.json of an earlier run")
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
    import torch

    from apps.unlearning.full_worker import Worker

    torch.backends.cudnn.benchmark = True
    config, (source, earlier) = (
        configured(arguments),
        (arguments.source, arguments.earlier),
    )
    worker = Worker(arguments.work, config, source, earlier, arguments.compile)
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
        search=arguments.search, refine=arguments.refine, seeds=arguments.seeds,
        only=only, control=arguments.control, timed=arguments.timed,
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
        "provenance": origin(arguments.commit),
        "settings": settings(configured(arguments)),
        "timing": [found[n]["timed"] for n in found if n.startswith("timing")],
        "search": [found[n] for n in found if n.startswith(("search", "refine"))],
        "rows": [row for n in found for row in found[n].get("rows", [])],
        "seconds": {n: found[n].get("seconds") for n in found},
        "loss": {n: found[n]["loss"] for n in found if "loss" in found[n]},
        "compiled": {n: v["compiled"] for n, v in found.items() if "compiled" in v},
        "failed": {p.stem: p.read_text()[-2000:] for p in folder.glob("*.failed")},
    }
    text = json.dumps(content, indent=1)
    atomic.write_text(arguments.out / "runs.json", text + "\n")


def origin(commit: str | None) -> dict[str, Any]:
    import torch

    found = provenance("full")
    if torch.cuda.is_available():
        found["device"] = f"{processor()}, {torch.cuda.get_device_name()}"
    found.pop("command")  # its paths have no place in stored results
    return found if commit is None else found | {"commit": commit, "dirty": False}


def merge(parts: Iterable[Path], results: Path) -> list[Path]:
    """One file of the runs of all parts, and the ledger.

    Where it comes from is said by the first part.
    """
    contents = [json.loads((part / "runs.json").read_text()) for part in parts]
    merged = {name: contents[0][name] for name in ("provenance", "settings")}
    merged["timing"] = [timed for content in contents for timed in content["timing"]]
    searches = {
        (source(found), *key(found)): found for c in contents for found in c["search"]
    }
    merged["search"] = [searches[name] for name in sorted(searches)]
    rows = [row for content in contents for row in content["rows"]]
    merged["rows"] = sorted(rows, key=lambda row: (row["seed"], *key(row)))
    path = results / "full" / f"{NAME}.json"
    atomic.write_text(path, json.dumps(merged, indent=1) + "\n")
    return [path, record(merged, results)]


def key(row: dict[str, Any]) -> tuple[str, str]:
    return row["forget"], row["pruner"]


def gap(row: dict[str, Any]) -> float:
    """Mean size of the four differences to the retrained network."""
    pairs = [(row["unlearned"][name], row["reference"][name]) for name in NAMES]
    return float(np.mean([abs(a - b) for a, b in pairs]))


def chosen_rows(rows: Rows, choice: str) -> dict[tuple[int, str, str, str], dict]:
    """{(seed, forget, pruner, method): row} of one choice of settings."""
    return {
        (row["seed"], *key(row), row["method"]): row
        for row in rows
        if choice in row["choice"]
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
    ua = {
        (seed, method): row["unlearned"]["UA"]
        for (seed, *cell, method), row in chosen_rows(
            merged["rows"], "smallest"
        ).items()
        if cell == ["class", "dense"]
    }
    l1 = {
        seed: value - ua[seed, "finetune"]
        for (seed, method), value in ua.items()
        if method == "l1_sparse"
    }
    epochs, slower = merged["settings"]["epochs"], []
    for timed in merged["timing"]:
        shares = [run_times(timed, m, epochs) for m in ("finetune", "l1_sparse")]
        slower += [max(pair) for pair in zip(*shares, strict=True)]
    return {
        "dense_minus_sparse_gap:cifar10": both,
        "dense_minus_sparse_gap:cifar10_class": closed["class"],
        "dense_minus_sparse_gap:cifar10_random": closed["random"],
        "l1_minus_finetune_ua:cifar10_class": l1,
        "run_time_share:cifar10": dict(enumerate(slower)),
    }


def main(argv: list[str] | None = None) -> int:
    """Returns 2 for a usage error."""
    parser = argparse.ArgumentParser(prog="python -m apps.unlearning.full")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("run", "work"):
        running = verbs.add_parser(verb)
        running.add_argument("--out", type=Path, required=verb == "run")
        running.add_argument("--work", type=Path, help="for large files; OUT/work")
        for name in LISTS:
            flag = f"--{name.replace('_', '-')}"
            running.add_argument(flag, type=int, nargs="*", default=[])
        running.add_argument(
            "--skip", nargs="*", default=[], help="tasks whose name begins so"
        )
        running.add_argument("--source", default="", help=argparse.SUPPRESS)
        running.add_argument("--earlier", default="", help=argparse.SUPPRESS)
        running.add_argument("--chosen", type=Path, help="runs.json with a search")
        running.add_argument("--timed", action="store_true", help="time methods first")
        running.add_argument("--minutes", type=float, default=9.0)
        running.add_argument("--workers", type=int, default=4)
        running.add_argument("--gpus", type=int, nargs="*", help="default: all visible")
        running.add_argument("--compile", action="store_true")
        running.add_argument("--profile", default="laptop", help="smoke for a trial")
        running.add_argument("--epochs", type=int, help="others, for a trial")
        running.add_argument("--dataset", help="another one, for a trial")
        running.add_argument("--commit", help="of the code, where is no checkout")
    merging = verbs.add_parser("merge", help="parts into the book's results")
    merging.add_argument("parts", type=Path, nargs="+")
    merging.add_argument("--results", type=Path, required=True)
    arguments = parser.parse_args(argv)
    try:
        if arguments.verb == "run":
            run(arguments)
        elif arguments.verb == "work":
            begin_work(arguments)
        else:
            print(*merge(arguments.parts, arguments.results), sep="\n")
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
