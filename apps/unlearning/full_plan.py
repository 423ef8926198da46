"""The tasks of the GPU run `full`: train, prune, retrain, search settings, unlearn.

A task is (kind, seed, forget set, pruner). It reads what it needs from files that
others have written, and ends by writing NAME.json. Workers on one or several GPUs take
tasks from the same list, in its order, so that the first ones decide the most:

* timing: a training and every method with the GPU to itself; all others wait for it
* dense, omp, random: the original networks of a seed; dense leaves OMP's mask as well
* retrain: the reference of a forget set, with the mask of a pruner
* search: settings of every method, on validation records of a seed that serves no else
* unlearn, published: the methods with those settings, and with the paper's
"""

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from apps.unlearning.full_settings import FORGET, PRUNERS
from sparsekit import atomic


@dataclass(frozen=True)
class Task:
    kind: str
    seed: int = 0
    forget: str = ""
    pruner: str = ""

    @property
    def name(self) -> str:
        parts = (self.kind, str(self.seed), self.forget, self.pruner)
        return "-".join(part for part in parts if part)

    def needs(self, search_seed: int, timed: bool) -> list[str]:
        """Names of the tasks whose files it reads."""
        names = ["timing-0"] if timed and self.kind != "timing" else []
        mask = {"dense": [], "omp": ["dense"], "random": ["random"]}
        if self.kind == "omp":
            return [*names, f"dense-{self.seed}"]
        if self.kind == "retrain":
            return names + [f"{kind}-{self.seed}" for kind in mask[self.pruner]]
        if self.kind in ("search", "unlearn", "published"):
            names += [f"{self.pruner}-{self.seed}"]
            names += [f"retrain-{self.seed}-{self.forget}-{self.pruner}"]
        if self.kind == "unlearn":
            names += [searched(search_seed, self.forget, self.pruner)]
        return names


def searched(search_seed: int, forget: str, pruner: str) -> str:
    """The search whose settings are used; random masks take those of OMP."""
    chosen = "omp" if pruner == "random" else pruner
    return Task("search", search_seed, forget, chosen).name


def plan(
    search: list[int], seeds: list[int], control: list[int], timed: bool
) -> list[Task]:
    """All tasks, in the order in which they should be begun.

    search: the seed that settings are chosen with, or [] if they are known. control:
    seeds with random masks as well, of the class alone.
    """
    tasks = [Task("timing")] if timed else []
    for seed in (*search, *seeds):
        tasks += [Task("dense", seed)]
        tasks += [Task("retrain", seed, forget, "dense") for forget in FORGET]
        tasks += [Task("omp", seed)]
        tasks += [Task("retrain", seed, forget, "omp") for forget in FORGET]
        kind = "search" if seed in search else "unlearn"
        pairs = list(product(PRUNERS, FORGET))
        tasks += [Task(kind, seed, forget, pruner) for pruner, forget in pairs]
    for seed in control:
        tasks += [Task("random", seed), Task("retrain", seed, "class", "random")]
        tasks += [Task("unlearn", seed, "class", "random")]
    for seed, forget, pruner in product(seeds, FORGET, PRUNERS):
        tasks += [Task("published", seed, forget, pruner)]
    return tasks


def work(
    folder: Path,
    tasks: list[Task],
    search_seed: int,
    run: Callable[[Task], dict[str, Any]],
) -> None:
    """Takes tasks until none is left that could still be run.

    run: gives a task's results. What it raises is written to NAME.failed, and the tasks
    that need it are left.
    """
    timed = any(task.kind == "timing" for task in tasks)

    def has(name: str, ending: str) -> bool:
        return (folder / f"{name}.{ending}").exists()

    while True:
        left = [
            task
            for task in tasks
            if not (has(task.name, "taken") or has(task.name, "json"))
        ]
        for task in left:
            if all(has(name, "json") for name in task.needs(search_seed, timed)):
                break
        else:
            begun = [task.name for task in tasks if task not in left]
            if all(has(name, "json") or has(name, "failed") for name in begun):
                return
            time.sleep(0.2)
            continue
        try:
            (folder / f"{task.name}.taken").touch(exist_ok=False)
        except FileExistsError:
            continue
        began = time.perf_counter()
        try:
            found = run(task)
        except Exception:
            text = traceback.format_exc()
            atomic.write_text(folder / f"{task.name}.failed", text)
            print(f"{task.name} failed\n{text}", flush=True)
            continue
        seconds = time.perf_counter() - began
        content = {**found, "seconds": seconds}
        atomic.write_text(folder / f"{task.name}.json", json.dumps(content))
        print(f"{task.name}: {seconds:.0f} s", flush=True)
