"""The GPU run: Split-CIFAR-10 with a ResNet-18, dense and sparse, and what is kept.

    python -m apps.continual.full run --minutes 9 --workers 8 --out runs/a
    python -m apps.continual.full run --minutes 9 --workers 8 --out runs/b --done runs/a
    python -m apps.continual.full merge runs/a runs/b --results book/results

A step of a batch of 32 keeps a GPU busy for a fraction of the time that it takes to
launch, so `--workers` processes share it, a training each. They begin no training that
would end after `--minutes`, by the pace of the slowest so far. Whatever is finished is
in runs.json at once; a training that --out or --done holds is not repeated. `merge`
writes the table of all runs for the chapter, and what decides its claims.

The settings are those of SparCL's release (the preset sparcl-cifar10): none was chosen
here. Shorter are `--epochs` of a task, in five stages, and `--train-size`. With
`--compile` a step has fewer kernels to launch.
"""

import argparse
import json
import queue
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from operator import sub, truediv
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

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
from apps.continual.config import Config, preset
from apps.continual.result import Result
from apps.continual.train import Watch, train
from apps.continual.training import Training

CHAPTER = "sparcl"
NAME = f"{CHAPTER}-runs"
LEAST_SEEDS = 3  # a claim with fewer stays undecided
STAGES = 5  # of a task
SHORT, LONG = 5, 20  # epochs of a task
Key = tuple[str, int, int, int]  # recipe, buffer, seed, epochs of a task
OURS = "sparcl-0.95"


def gap(first: str, second: str, buffer: int = 500, epochs: int = SHORT) -> tuple:
    """Accuracy of a recipe less that of another."""
    return sub, "accuracy", first, second, buffer, epochs


# What claims ask for, a seed each:
# {metric: (operation, what, recipe, recipe, buffer, epochs)}.
METRICS = {
    "sparcl_minus_dense_accuracy:cifar10_95": gap(OURS, "derpp"),
    "sparcl_minus_dense_accuracy:cifar10_95_long": gap(OURS, "derpp", epochs=LONG),
    "sparcl_minus_dense_accuracy:cifar10_95_200": gap(OURS, "derpp", buffer=200),
    "sparcl_minus_dense_accuracy:cifar10_75": gap("sparcl-0.75", "derpp"),
    "sparcl_minus_rigl_accuracy:cifar10_95": gap(OURS, "rigl-0.95"),
    "sparcl_minus_static_accuracy:cifar10_95": gap(OURS, "static-0.95"),
    "dense_over_sparcl_flops:cifar10_95": (
        truediv, "train_flops", "derpp", OURS, 500, SHORT,
    ),
}  # fmt: skip
GAP = "sparcl_minus_dense_accuracy:cifar10_95"  # and what a longer schedule adds to it
STUDY = {  # of Split-MNIST: {metric: arm}
    "sparcl_minus_dense_accuracy:mnist5k_first_95": "sparcl first",
    "sparcl_minus_dense_accuracy:mnist5k_ends_95": "sparcl ends",
}
FIRST = (  # what decides claims, of all seeds: recipe, buffer; the slowest begin
    ("sparcl-0.95", 500), ("sparcl-0.95", 200), ("sparcl-0.75", 500),
    ("sparcl-0.9", 500), ("tdm+dgm-0.95", 500), ("tdm+ddr-0.95", 500),
    ("tdm-0.95", 500), ("rigl-0.95", 500), ("derpp", 500), ("static-0.95", 500),
    ("derpp", 200), ("snip-0.95", 500), ("joint", 0), ("finetune", 0),
)  # fmt: skip
THEN = (
    ("tdm+ddr-0.75", 500), ("tdm-0.75", 500), ("tdm+dgm-0.75", 500),
    ("static-0.75", 500),
    ("sparcl-0.75", 200), ("sparcl-0.9", 200), ("rigl-0.9", 500), ("static-0.9", 500),
    ("snip-0.9", 500),
)  # fmt: skip
ORDER = FIRST + THEN


def recipe(name: str, buffer: int, epochs: int = SHORT) -> Config:
    """Settings of DER++ with a sparse method, of SparCL or parts of it, or of a bound.

    A task has five stages, whatever its epochs.

    >>> recipe("rigl-0.95", 500).method, recipe("tdm+ddr-0.9", 200).strategy
    ('rigl', 'sparcl')
    """
    base = preset("sparcl-cifar10", "full", buffer=max(buffer, 1), epochs=epochs)
    method, _, sparsity = name.partition("-")
    parts = method.split("+")
    if parts[0] in ("sparcl", "tdm"):
        options = {**base.strategy_options, "stage": max(1, epochs // STAGES)}
        if parts[0] == "tdm":
            off = {"ddr": "off", "dgm": "off"}
            options |= {part: o for part, o in off.items() if part not in parts}
        return replace(base, sparsity=float(sparsity), strategy_options=options)
    if not sparsity:  # dense
        own = {k: base.strategy_options[k] for k in ("alpha", "beta")}
        rehearses = name == "derpp"
        return replace(
            base,
            strategy=name,
            strategy_options=own if rehearses else {},
            loss_over=base.loss_over if rehearses else "all",
            method="dense",
            keep_dense=(),
        )
    uniform = {} if method == "snip" else {"allocation": "uniform"}
    dense = recipe("derpp", buffer, epochs)
    return replace(
        dense, method=method, sparsity=float(sparsity), options=uniform,
        keep_dense=base.keep_dense,
    )  # fmt: skip


def n_steps(config: Config) -> float:
    """About how long a training takes, in steps of SparCL, the slowest."""
    size = config.train_size or 9000
    steps = config.tasks * config.epochs * max(1, size // config.batch)
    share = {"finetune": 0.3, "joint": 0.8, "derpp": 0.8}.get(config.strategy, 1.0)
    return steps * share


def run(arguments: argparse.Namespace) -> None:
    """Trains as much as the time allows, in several processes."""
    if arguments.device.startswith("cuda"):
        torch.cuda.init()  # the trainings are other processes', but this one says where
    began = time.time()
    deadline = began + 60 * arguments.minutes
    rows = read_rows(arguments.out) if (arguments.out / "runs.json").exists() else []
    done = {key(row) for part in arguments.done for row in read_rows(part)}
    done |= {key(row) for row in rows}
    jobs = [
        (name, replace(config, seed=seed, **changes(arguments)))
        for some in (FIRST, THEN)
        for seed in arguments.seeds
        for name, buffer in some
        if name in arguments.recipes and buffer in arguments.buffers
        if (name, buffer, seed, arguments.epochs) not in done
        for config in [recipe(name, buffer, arguments.epochs)]
    ]
    context = multiprocessing.get_context("spawn")
    todo, finished, pace = context.Queue(), context.Queue(), context.Value("d", 0.0)
    for job in jobs:
        todo.put(job)
    workers = [
        context.Process(target=work, args=(todo, finished, pace, deadline), daemon=True)
        for _ in range(min(arguments.workers, len(jobs)))
    ]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers) or not finished.empty():
        try:
            row = finished.get(timeout=0.5)
        except queue.Empty:
            if time.time() > deadline:
                break
            continue
        if "error" in row:
            print(f"failed: {row['recipe']}: {row['error']}", flush=True)
            continue
        rows.append(row)
        write_runs(arguments.out, {"rows": rows}, arguments.commit)
        speed = row["steps"] / row["cost"]["train_seconds"]
        print(
            f"{time.time() - began:5.0f} s  {row['recipe']:12} {row['buffer']:3} "
            f"seed {row['seed']}  accuracy {row['metrics']['accuracy']:.4f}  task "
            f"{row['metrics']['task_accuracy']:.4f}  {speed:.1f} steps/s",
            flush=True,
        )
    for worker in workers:
        worker.terminate()
    print(f"{len(rows)} trainings in {arguments.out}, {len(jobs)} were to be done")


def work(todo: Any, finished: Any, pace: Any, deadline: float) -> None:
    """One process: trains what comes, while it fits."""
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True
    while True:
        try:
            name, config = todo.get(timeout=0.5)
        except queue.Empty:
            return
        if time.time() + pace.value * n_steps(config) > deadline:
            continue  # a shorter one may fit
        started = time.time()
        try:
            result = train(config, watch=told(name, config))
        except Exception as error:  # the other trainings go on
            finished.put({"recipe": name, "error": repr(error)})
            continue
        with pace.get_lock():
            slow = (time.time() - started) / n_steps(config)
            pace.value = max(pace.value, slow)
        finished.put(as_row(name, result))


def told(name: str, config: Config) -> Watch:
    """A line after each task: a training of hours says how far it is."""
    began = time.time()

    def watch(task: int, _: Training) -> None:
        what = f"{name} {config.buffer} seed {config.seed}"
        seconds, which = time.time() - began, f"task {task + 1} of {config.tasks}"
        print(f"  {seconds:5.0f} s  {what}: {which}", flush=True)

    return watch


def changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the flags change of every recipe."""
    names = ("train_size", "device", "precision", "compile", "dataset", "width", "part")
    given = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def as_row(name: str, result: Result) -> dict[str, Any]:
    """What is kept of a training: settings, accuracies, cost."""
    config = result.config
    return {
        "recipe": name,
        "buffer": config.buffer if result.cost["buffer_bytes"] else 0,
        "seed": config.seed,
        "settings": settings(config),
        "matrix": result.matrix.tolist(),
        "task_matrix": result.task_matrix.tolist(),
        "metrics": {k: float(v.value) for k, v in result.metrics.items()},
        "cost": {k: float(v) for k, v in result.cost.items()},
        "steps": sum(row["steps"] for row in result.history),
    }


def key(row: dict[str, Any]) -> Key:
    return row["recipe"], row["buffer"], row["seed"], row["settings"]["epochs"]


def read_ablation(results: Path) -> dict[str, Any]:
    """{metric: values and seeds} of the parts of SparCL on Split-MNIST, kept beside."""
    path = kept(results, f"{CHAPTER}-ablation")
    return json.loads(path.read_text())["metrics"] if path.is_file() else {}


def of_study(path: Path, arm: str) -> dict[int, float]:
    """{seed: accuracy - dense accuracy} of `benchmarks.continual_width`, width 32."""
    values = {}
    for row in json.loads(path.read_text())["rows"]:
        same = row["width"] == 32 and row.get("epochs", 5) == 5
        if same and row.get("part", "test") == "test" and "accuracy" in row:
            values[row["arm"], row["seed"]] = row["accuracy"]
    return paired(values, arm, "dense")


def merge(
    parts: Iterable[Path], results: Path, study: Path | None = None
) -> list[Path]:
    """One table of the runs of all parts, in the order of `ORDER`, and the ledger.

    study: what `benchmarks.continual_width` wrote, whose claims the ledger gets too.

    Where it comes from is said by the first part, and of each row its commit. Raises
    ValueError if parts differ in what all recipes share.
    """
    parts = list(parts)
    found = {
        key(row): {"commit": content["provenance"]["commit"]} | row
        for content in map(read_runs, parts)
        for row in content["rows"]
    }
    same = ("dataset", "width", "train_size", "precision", "part", "lr")
    for name in same:
        values = {row["settings"].get(name) for row in found.values()}
        if len(values) > 1:
            raise ValueError(f"the parts differ in {name}: {sorted(map(str, values))}")
    order = {recipe: place for place, recipe in enumerate(ORDER)}
    rows = [
        found[one] for one in sorted(found, key=lambda k: (k[3], order[k[:2]], k[2]))
    ]
    origin = read_runs(parts[0])["provenance"]
    path = write_json(kept(results, NAME), {"provenance": origin, "rows": rows})
    ledger = Ledger(CHAPTER, "full", folder=results, provenance=origin)
    record_claims(ledger, found)
    for metric, arm in STUDY.items() if study is not None else ():
        values = of_study(study, arm)
        ledger.record(metric, list(values.values()), seeds=list(values))
    for metric, entry in read_ablation(results).items():
        ledger.record(metric, entry["values"], seeds=entry["seeds"])
    return [path, ledger.path]


def record_claims(ledger: Ledger, found: Mapping[Key, dict[str, Any]]) -> None:
    """What enough seeds have measured."""
    gaps = {}
    for metric, (operation, what, first, second, buffer, epochs) in METRICS.items():
        measured = {
            (name, seed): (row["metrics"] | row["cost"])[what]
            for (name, size, seed, length), row in found.items()
            if (size, length) == (buffer, epochs)
        }
        values = paired(measured, first, second, operation)
        gaps |= {(metric, seed): value for seed, value in values.items()}
        if len(values) >= LEAST_SEEDS:
            ledger.record(metric, list(values.values()), seeds=list(values))
    gained = paired(gaps, f"{GAP}_long", GAP)
    if len(gained) >= LEAST_SEEDS:
        ledger.record(
            "sparcl_gap_gained:cifar10_95", list(gained.values()), seeds=list(gained)
        )


def main(argv: list[str] | None = None) -> int:
    """Returns 2 for a usage error."""
    names = list(dict.fromkeys(name for name, _ in ORDER))
    script = Script("apps.continual.full")
    running = script.verb("run", run, "train, within the time")
    add_run_flags(running)
    running.add_argument("--done", type=Path, nargs="*", default=[])
    running.add_argument("--workers", type=int, default=8)
    running.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    running.add_argument("--recipes", nargs="+", choices=names, default=names)
    sizes = sorted({buffer for _, buffer in ORDER})
    running.add_argument("--buffers", type=int, nargs="+", default=sizes)
    running.add_argument("--epochs", type=int, default=SHORT)
    running.add_argument("--compile", action="store_true", help="a minute, then faster")
    running.add_argument("--train-size", type=int, help="of each task, at most")
    running.add_argument("--precision", choices=["float32", "bf16"], default="bf16")
    running.add_argument("--device", default="cuda")
    running.add_argument("--part", help="validation, to choose settings")
    running.add_argument("--dataset", help="another one, for a trial")
    running.add_argument("--width", type=int, help="fewer filters, for a trial")
    merging = script.verb("merge", print_merged, "parts into the book's results")
    add_merge_flags(merging)
    merging.add_argument("--study", type=Path, help="continual_width.json")
    return script.run(argv)


def print_merged(arguments: argparse.Namespace) -> None:
    where = (arguments.parts, arguments.results, arguments.study)
    print(*merge(*where), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
