"""Settings of chapter 12: eight candidates a method, on validation records.

    python -m benchmarks.unlearning_settings --out benchmarks/results

Two seeds that measure nothing else. Two choices: the smallest gap to Retrain, and the
smallest among settings that cost at most five points of RA on either seed. A choice at
the end of its grid is marked: beyond it there may be a better one.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from apps.common.provenance import stored_provenance
from apps.common.tables import plain
from apps.unlearning.compare import Comparison, compare
from apps.unlearning.config import Config, preset
from sparsekit import atomic

SEEDS = (100, 101)
USABLE = 0.05
FORGET = {"class": "class:3", "random": "random:0.1"}
PRUNERS = ("dense", "omp")
COMMON = {
    "finetune": {"epochs": 1, "batch": 100},
    "gradient_ascent": {"epochs": 5},
    "fisher": {"samples": 200},
    "influence": {"samples": 200},
    "l1_sparse": {"epochs": 1, "batch": 100, "lr": 0.1},
}
GRIDS = {
    "finetune": ("lr", (0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)),
    "gradient_ascent": ("lr", (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)),
    "fisher": ("alpha", (1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)),
    "influence": ("damping", (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)),
    "l1_sparse": ("gamma", (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 0.016, 0.032, 0.064)),
}


def candidates(profile: str) -> dict[tuple[str, str, str, float], Config]:
    """(forget, pruner, method, value) -> settings."""
    base = preset("mnist-random", profile, part="validation")
    return {
        (forget, pruner, method, value): replace(
            base, forget=FORGET[forget], pruner=pruner, method=method,
            options=COMMON[method] | {GRIDS[method][0]: value},
        )
        for forget in FORGET
        for pruner in PRUNERS
        for method in GRIDS
        if method != "l1_sparse" or pruner == "dense"
        for value in GRIDS[method][1]
    }  # fmt: skip


def choose(runs: Comparison, cell: tuple[str, str, str]) -> dict[str, dict]:
    """{"smallest" and "usable": {value, gap, RA, at_the_end}}."""
    grid = GRIDS[cell[2]][1]
    tried = []
    for value in grid:
        key = (*cell, value)
        ra = np.array(runs.of(key, "RA"))
        lost = np.array(runs.of(key, "original RA")) - ra
        tried.append(
            {
                "value": value,
                "gap": float(np.mean(runs.of(key, "gap"))),
                "RA": float(ra.mean()),
                "usable": bool((lost <= USABLE + 1e-9).all()),
                "at_the_end": value in (grid[0], grid[-1]),
            }
        )
    kept = [one for one in tried if one["usable"]] or [
        max(tried, key=lambda t: t["RA"])
    ]
    sets = {"smallest": tried, "usable": kept}
    return {name: min(found, key=lambda t: t["gap"]) for name, found in sets.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    configs = candidates(arguments.profile)
    runs = compare(configs, SEEDS)
    cells = sorted({key[:3] for key in configs})
    chosen = {cell: choose(runs, cell) for cell in cells}
    rows = [
        {"forget": c[0], "network": c[1], "method": c[2], "choice": name}
        | {k: f"{v:g}" if isinstance(v, float) else str(v) for k, v in best.items()}
        for c in cells
        for name, best in chosen[c].items()
    ]
    print(plain(rows))
    content = {
        "provenance": stored_provenance(arguments.profile),
        "seeds": SEEDS,
        "tried": [
            {"forget": k[0], "network": k[1], "method": k[2], "value": k[3]}
            | {m: runs.of(k, m) for m in ("gap", "UA", "MIA", "RA", "TA")}
            for k in configs
        ],
        "chosen": [dict(row) for row in rows],
    }
    path = arguments.out / "unlearning_settings.json"
    atomic.write_text(path, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
