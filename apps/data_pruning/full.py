"""The GPU run: CIFAR-10, ResNet-18, and what the book keeps of it.

    python -m apps.data_pruning.full run --seeds 0 1 --minutes 8.5 --out runs/a
    python -m apps.data_pruning.full merge runs/a runs/b --results book/results

`run` writes compare.json after every training and begins none that would end after
`--minutes`; called again it goes on. Several machines or GPUs take different seeds, two
each: the data of two stay loaded.
`merge` puts the parts together: the ledger's measurements for the chapter, and the
table of all runs beside them.

Beside torch and numpy it needs safetensors, scipy, tqdm, and Pillow for JPEGs.
"""

import argparse
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from apps.common.full import Script, add_merge_flags, add_run_flags, kept
from apps.data_pruning.comparison import (
    FULL,
    Comparison,
    Row,
    load_comparison,
    merge,
)
from apps.data_pruning.config import PRESETS, from_file
from apps.data_pruning.experiment import compare
from sparsekit import atomic

CHAPTER = "data-diet"
PRESET = PRESETS / "resnet18-cifar10.toml"
STRATEGIES = ("random", "el2n", "ccs", "forgetting")
KEEPS = (0.5, 0.1, 0.3, 0.7)  # what decides claims comes first
# {metric: (minuend, subtrahend, share kept)} of accuracies, at equal steps.
METRICS = {
    "full_minus_el2n_accuracy_half:cifar10": (FULL, "el2n", 0.5),
    "el2n_minus_random_accuracy_half:cifar10": ("el2n", "random", 0.5),
    "ccs_minus_random_accuracy_tenth:cifar10": ("ccs", "random", 0.1),
    "el2n_minus_random_accuracy_tenth:cifar10": ("el2n", "random", 0.1),
}


def run(arguments: argparse.Namespace) -> None:
    """Measures as much as the time allows."""
    config = from_file(arguments.preset, arguments.profile)
    if arguments.epochs is not None:
        config = replace(config, epochs=arguments.epochs)
    if arguments.no_compile:
        config = replace(config, compile=False)
    if config.device == "cuda":
        torch.backends.cudnn.benchmark = True
    began = time.perf_counter()

    def watch(row: Row) -> None:
        print(
            f"{time.perf_counter() - began:6.0f} s  seed {row.seed}  {row.budget:6} "
            f"{row.keep:4g}  {row.label:11} {100 * row.accuracy:6.2f} %  "
            f"{row.train_seconds:6.1f} s, scores {row.score_seconds:.1f} s",
            flush=True,
        )

    # Share by share over all seeds: what is missing at the end is missing for all.
    for budget in arguments.budgets:
        for keep in arguments.keeps:
            spent = (time.perf_counter() - began) / 60
            comparison = compare(
                config,
                arguments.strategies,
                [keep],
                arguments.seeds,
                budgets=[budget],
                baselines=(),
                out=arguments.out,
                minutes=arguments.minutes - spent,
                watch=watch,
            )
    if arguments.commit is not None:
        comparison.provenance["commit"] = arguments.commit
        comparison.provenance["dirty"] = False
        comparison.save(arguments.out)
    print(comparison.table())


def store(comparison: Comparison, results: Path) -> list[Path]:
    """Writes the ledger's file of the chapter and the table of all runs beside it.

    Raises ValueError if a claim has fewer seeds than it needs.
    """
    from apps.common.ledger import Ledger

    ledger = Ledger(CHAPTER, "full", folder=results, provenance=comparison.provenance)
    for metric, (first, second, keep) in METRICS.items():
        found = comparison.differences(first, keep, "steps", baseline=second)
        ledger.record(metric, list(found.values()), seeds=list(found))
    for label, keep, budget in comparison.cells():
        found = comparison.values(label, keep, budget)
        name = f"accuracy:{label}:{keep:g}:{budget}"
        ledger.note(name, list(found.values()), seeds=list(found))
    table = kept(results, f"{CHAPTER}-runs")
    # The command's paths have no place in stored results.
    origin = {k: v for k, v in comparison.provenance.items() if k != "command"}
    atomic.write_text(table, replace(comparison, provenance=origin).to_json())
    return [ledger.path, table]


def main(argv: list[str] | None = None) -> int:
    """Returns 2 for a usage error."""
    script = Script("apps.data_pruning.full")
    running = script.verb("run", run, "measure, within the time")
    add_run_flags(running)
    running.set_defaults(minutes=math.inf)
    running.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    running.add_argument("--strategies", nargs="+", default=STRATEGIES)
    running.add_argument("--keeps", type=float, nargs="+", default=KEEPS)
    running.add_argument("--budgets", nargs="+", default=("steps", "epochs"))
    running.add_argument("--preset", type=Path, default=PRESET)
    running.add_argument("--profile", default="full")
    running.add_argument("--epochs", type=int)
    running.add_argument("--no-compile", action="store_true")
    merging = script.verb("merge", print_merged, "parts into the book's results")
    add_merge_flags(merging)
    return script.run(argv)


def print_merged(arguments: argparse.Namespace) -> None:
    comparison = merge([load_comparison(part) for part in arguments.parts])
    print(comparison.table())
    print(*store(comparison, arguments.results), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
