"""Why SparCL loses on Split-MNIST: which layers are masked, and how many weights stay.

    python -m benchmarks.continual_width --out benchmarks/results --workers 4

Split MNIST-5k, 95 % sparsity, CNNs of three widths. Masked are all layers, all but the
first ("first"), or the hidden convolutions alone, as in SparCL's release ("ends"). For
each width learning rates are chosen on the validation part in two seeds that measure
nothing else: of dense training, and of SparCL, whose rate the other sparse methods get.
Then ten seeds of the test part, everything that is trained in the table. An hour of one
core.
"""

import argparse
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apps.common.full import write_json
from apps.common.provenance import stored_provenance
from apps.common.tables import plain, points
from apps.continual.config import Config, preset
from apps.continual.train import train

CHOOSING, WIDTHS = (100, 101), (32, 16, 64)
FIRST = ("features.0.weight",)
KEPT = {"": (), "first": FIRST, "ends": (*FIRST, "classifier.weight")}
RATES = {
    "dense": (0.05, 0.1), "sparcl first": (0.1, 0.2, 0.4), "sparcl ends": (0.1, 0.2),
}  # fmt: skip
ARMS = ("dense", "sparcl first", "sparcl ends", "static first", "static ends")
MORE = ("rigl first", "snip first", "tdm first", "sparcl ", "static ")
LONGER = ("dense", "sparcl first", "sparcl ends")
Job = dict[str, Any]


def config(
    arm: str, width: int, lr: float, seed: int, epochs: int = 5, part: str = "test"
) -> Config:
    """Settings of an arm: "dense", or a method and what is not masked.

    >>> config("sparcl ends", 32, 0.1, 0).keep_dense
    ('features.0.weight', 'classifier.weight')
    """
    base = preset(
        "sparcl-mnist", dataset="mnist5k", width=width, lr=lr, seed=seed, epochs=epochs,
        part=part,
    )  # fmt: skip
    ours = base.strategy_options
    derpp = {"alpha": ours["alpha"], "beta": ours["beta"]}
    if arm == "dense":
        changes = {"strategy_options": derpp, "method": "dense", "sparsity": 0.0}
        return replace(base, strategy="derpp", **changes)
    method, _, kept = arm.partition(" ")
    base = replace(base, keep_dense=KEPT[kept])
    if method == "sparcl":
        return base
    if method == "tdm":
        return replace(base, strategy_options={**ours, "ddr": "off", "dgm": "off"})
    options = {} if method == "snip" else {"allocation": "uniform"}
    changes = {"strategy_options": derpp, "method": method, "options": options}
    return replace(base, strategy="derpp", **changes)


def measured(job: Job) -> Job:
    """The job and what its training gave, or that its loss was not finite."""
    torch.set_num_threads(1)
    try:
        result = train(config(**job))
    except ValueError as error:
        return job | {"diverged": str(error)}
    return job | {
        "accuracy": result.accuracy,
        "task": result.metrics["task_accuracy"].value,
        "learning": result.metrics["learning_accuracy"].value,
        "forgetting": result.metrics["forgetting"].value,
        "active": result.cost["params_active"],
        "flops": result.cost["train_flops"],
    }


def chosen(rows: list[Job], arm: str) -> float:
    """The rate of the highest mean accuracy on validation; of equals the lower."""
    of_arm = [row for row in rows if row["arm"] == arm and "diverged" not in row]
    return max(
        sorted({row["lr"] for row in of_arm}),
        key=lambda lr: np.mean([r["accuracy"] for r in of_arm if r["lr"] == lr]),
    )


def study(
    pool: ProcessPoolExecutor, width: int, seeds: Iterable[int]
) -> Iterator[list[Job]]:
    """All trainings of a width: those that choose, then those that count, by seed."""
    search = [
        {"arm": arm, "width": width, "lr": lr, "seed": seed, "part": "validation"}
        for seed in CHOOSING
        for arm, rates in RATES.items()
        for lr in rates
    ]
    found = list(pool.map(measured, search))
    lr = {"dense": chosen(found, "dense")}
    lr |= {kept: chosen(found, f"sparcl {kept}") for kept in ("first", "ends")}
    lr[""] = lr["first"]
    arms = [(arm, 5) for arm in ARMS + (MORE if width < 64 else ())]
    arms += [(arm, 10) for arm in LONGER if width == 32]
    jobs = [
        {"arm": arm, "width": width, "seed": seed, "epochs": epochs,
         "lr": lr["dense" if arm == "dense" else arm.partition(" ")[2]]}
        for seed in seeds
        for arm, epochs in arms
    ]  # fmt: skip
    yield found
    runs = pool.map(measured, jobs)
    while some := list(islice(runs, len(arms))):
        yield some


def of(rows: list[Job], arm: str, width: int, epochs: int = 5) -> dict[int, Job]:
    """The trainings that count, by seed."""
    return {
        row["seed"]: row
        for row in rows
        if (row["arm"], row["width"], row.get("epochs", 5)) == (arm, width, epochs)
        and row.get("part", "test") == "test"
        and "diverged" not in row
    }


def cells(rows: list[Job]) -> list[dict[str, str]]:
    """A row for each arm, differences paired by seed."""
    keys = [(r["width"], r.get("epochs", 5), r["arm"]) for r in rows]
    table = []
    for width, epochs, arm in dict.fromkeys(keys):
        runs = of(rows, arm, width, epochs)
        dense = of(rows, "dense", width, epochs)
        both = sorted(set(runs) & set(dense))
        if len(both) < 2:
            continue
        gaps = [runs[s]["accuracy"] - dense[s]["accuracy"] for s in both]
        values = [runs[s]["accuracy"] for s in both]
        table.append(
            {
                "width": str(width),
                "epochs": str(epochs),
                "run": arm,
                "lr": str(runs[both[0]]["lr"]),
                "weights": f"{runs[both[0]]['active']:,.0f}",
                "seeds": str(len(both)),
                "Class-IL %": points(values, sign=False),
                "- dense": "" if arm == "dense" else points(gaps),
                "GFLOP": f"{runs[both[0]]['flops'] / 1e9:.0f}",
            }
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.continual_width")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--commit", help="of the code, where there is no checkout")
    arguments = parser.parse_args()
    rows: list[Job] = []
    context = get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=context) as pool:
        for width in arguments.widths:
            for some in study(pool, width, range(arguments.seeds)):
                rows += some
                write(arguments.out, rows, arguments.commit)
    print(plain(cells(rows)))


def write(out: Path, rows: list[Job], commit: str | None) -> None:
    origin = stored_provenance("laptop", commit)
    write_json(out / "continual_width.json", {"provenance": origin, "rows": rows})


if __name__ == "__main__":
    main()
