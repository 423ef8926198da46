"""Quality and wall clock against density: whole trainings, ours and dense.

    python -m benchmarks.density                # 78 trainings, about five minutes
    python -m benchmarks.density --minutes 2    # what fits; call again for the rest
    python -m benchmarks.density --quick        # small, one seed

The MLP of `apps/classify` with two layers of 1,000 units learns all of MNIST for two
epochs, with five seeds: dense; dense with products in bfloat16 (autocast), which is
faster where the processor has such units; with RigL and with random connections that
never change, both in values mode, in float32; RigL's masks on dense kernels, which
saves nothing; and a dense MLP that is as narrow as the sparse one has weights. Every
setting is the app's default, chosen there on validation for a dense MLP. Seconds are
those of the epochs, validation included, on one thread. Trainings go seed by seed and
one after the other; the load of the machine before each is written down. Times of
masked trainings need no five seeds: two. Test images are looked at once a training.
"""

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import torch

from apps.classify.train import Config, train
from apps.common.provenance import stored_provenance
from apps.common.statistics import mean_interval
from benchmarks import reports
from benchmarks.reports import table, write

DENSITIES = (0.25, 0.1, 0.05, 0.02)
SEEDS, MASKED_SEEDS = 5, 2
BASE = Config(dataset="mnist", width=1000, epochs=2)
QUICK = Config(width=200, epochs=1)
DENSE = ("dense", "bfloat16")
ARMS = ("rigl", "static", "masked", "narrow")


def config_of(base: Config, arm: str, density: float, seed: int) -> Config:
    """The training of one arm; those of `DENSE` have density 1."""
    changes: dict[str, Any] = {
        "dense": {"method": "dense"},
        "bfloat16": {"method": "dense"},
        "rigl": {"method": "rigl", "backend": "values"},
        "static": {"method": "static", "backend": "values"},
        "masked": {"method": "rigl", "backend": "masked"},
        "narrow": {"method": "dense"},
    }[arm]
    settings = {**vars(base), **changes, "seed": seed}
    if arm == "narrow":
        settings["width"] = narrow_width(base.width, density)
    elif arm not in DENSE:
        settings["sparsity"] = 1 - density
    return Config(**settings)


def weights(width: int) -> int:
    """Of an MLP 784-width-width-10, without biases."""
    return 784 * width + width * width + width * 10


def narrow_width(width: int, density: float) -> int:
    """The largest width of which a dense MLP has no more weights than the sparse one.

    >>> narrow_width(1000, 0.1), weights(183) <= 0.1 * weights(1000) < weights(184)
    (183, True)
    """
    budget = density * weights(width)
    return max(w for w in range(1, width + 1) if weights(w) <= budget)


def plan(quick: bool) -> Iterator[tuple[str, float, int]]:
    """(arm, density, seed) of every training, seed by seed."""
    densities = (0.1,) if quick else DENSITIES
    for seed in range(1 if quick else SEEDS):
        for arm in DENSE:
            yield arm, 1.0, seed
        for density in densities:
            for arm in ARMS:
                if arm != "masked" or seed < MASKED_SEEDS:
                    yield arm, density, seed


def run(config: Config, arm: str, density: float) -> dict[str, Any]:
    load = os.getloadavg()[0]
    # Without the cache of casts, which would hold the first weights all the time.
    with torch.autocast(
        "cpu", torch.bfloat16, enabled=arm == "bfloat16", cache_enabled=False
    ):
        result = train(config)
    return {
        "arm": arm,
        "density": density,
        "seed": config.seed,
        "accuracy": result.accuracy,
        "seconds": result.cost["train_seconds"],
        "weights": result.cost["params_active"],
        "load": round(load, 2),
    }


def summary(trainings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row an arm and density: mean accuracy and seconds with 95 % intervals."""
    rows = []
    for key in dict.fromkeys((t["arm"], t["density"]) for t in trainings):
        own = [t for t in trainings if (t["arm"], t["density"]) == key]
        row = {"arm": key[0], "density": key[1], "seeds": len(own)}
        for name in ("accuracy", "seconds"):
            interval = mean_interval([t[name] for t in own])
            row[name] = {"value": interval.value}
            if len(own) > 1:
                row[name] |= {"low": interval.low, "high": interval.high}
        rows.append(row)
    return rows


TITLE = "Quality and wall clock against density"


def markdown(report: dict[str, Any]) -> list[str]:
    origin = report["provenance"]
    lines = [
        f"MLP, {report['width']} units a layer, {report['dataset']}, "
        f"{report['epochs']} epochs, {origin['device']}, torch "
        f"{origin['versions']['torch']}. Means, 95 % intervals over seeds.",
        "",
    ]
    rows = (
        f"{row['arm']} | {row['density']:.0%} | {row['seeds']} | "
        f"{shown(row['accuracy'], 100)} | {shown(row['seconds'])}"
        for row in report["rows"]
    )
    return lines + table("arm | density | seeds | test accuracy (%) | seconds", rows)


def shown(interval: dict[str, float], scale: float = 1) -> str:
    found = {k: f"{scale * v:.2f}" for k, v in interval.items()}
    ends = f" [{found['low']}, {found['high']}]" if "low" in found else ""
    return found["value"] + ends


def main() -> None:
    parser = reports.parser(__doc__, out="density.json", quick="small, one seed")
    parser.add_argument("--minutes", type=float, help="stop before a training after so")
    args = parser.parse_args()
    began, base = time.perf_counter(), QUICK if args.quick else BASE
    known = json.loads(args.out.read_text("utf-8")) if args.out.is_file() else {}
    settings = {"dataset": base.dataset, "width": base.width, "epochs": base.epochs}
    if {key: known.get(key) for key in settings} != settings:
        known = {}
    done = known.get("trainings", [])
    finished = {(t["arm"], t["density"], t["seed"]) for t in done}
    todo = [job for job in plan(args.quick) if job not in finished]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    train(config_of(QUICK, "rigl", 0.1, 0))  # compiles the kernels
    for arm, density, seed in todo:
        if args.minutes and time.perf_counter() - began > 60 * args.minutes:
            break
        done.append(run(config_of(base, arm, density, seed), arm, density))
        origin = stored_provenance("full")
        report = {
            **settings,
            "rows": summary(done),
            "trainings": done,
            "provenance": origin,
        }
        write(args.out, report, markdown(report), TITLE)
    print(args.out.with_suffix(".md").read_text("utf-8"))
    left = len(list(plan(args.quick))) - len(done)
    if left:
        print(f"{left} trainings are left: call again")


if __name__ == "__main__":
    main()
