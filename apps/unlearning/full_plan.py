"""The tasks of the GPU run `full`: train, prune, retrain, search settings, unlearn.

A task is (kind, seed, forget set, pruner). It reads what it needs from files that
others have written, and ends by writing NAME.json. Workers on one or several GPUs take
tasks from the same list, in its order, so that the first ones decide the most:

* timing: a training and every method with the GPU to itself; all others wait for it
* dense, omp, random: the original networks of a seed; dense leaves OMP's mask as well
* retrain: the reference of a forget set, with the mask of a pruner
* search: settings of every method, on validation records of a seed that serves no else
* refine: grids that were moved, on validation records of one of the seeds that measure
* finer: a finer grid, on validation records of the seed that measures nothing
* unlearn, usable, published: the methods with the first and the second choice of
  settings, and with the paper's
"""

import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
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

    def needs(self, source: str, timed: bool) -> list[str]:
        """Names of the tasks whose files it reads. source: see `searched`."""
        names = ["timing-0"] if timed and self.kind != "timing" else []
        mask = {"dense": [], "omp": ["dense"], "random": ["random"]}
        if self.kind == "omp":
            return [*names, f"dense-{self.seed}"]
        if self.kind == "retrain":
            return names + [f"{kind}-{self.seed}" for kind in mask[self.pruner]]
        if self.forget:
            names += [f"{self.pruner}-{self.seed}"]
            names += [f"retrain-{self.seed}-{self.forget}-{self.pruner}"]
        if self.kind in ("unlearn", "usable"):
            names += [searched(source, self.forget, self.pruner)]
        return names


def searched(source: str, forget: str, pruner: str) -> str:
    """The search whose settings are used; random masks take those of OMP.

    source: kind and seed of searches, such as search-100.
    """
    return f"{source}-{forget}-{'omp' if pruner == 'random' else pruner}"


def plan(
    *,
    search: Sequence[int] = (),
    refine: Sequence[int] = (),
    finer: Sequence[int] = (),
    seeds: Sequence[int] = (),
    only: Mapping[str, Sequence[int]] | None = None,
    control: Sequence[int] = (),
    timed: bool = False,
) -> list[Task]:
    """All tasks, in the order in which they should be begun.

    search: the seed that settings are chosen with, if they are not known. refine: of
    `seeds`, the one that moved grids are tried with. finer: the seed that a finer grid
    is tried with, of the class alone. only: {forget set: further seeds}. control: seeds
    with random masks as well, of the class alone.
    """
    tasks = [Task("timing")] if timed else []
    cells: list[tuple[int, tuple[str, ...]]] = [(s, (*FORGET,)) for s in search]
    cells += [(seed, ("class",)) for seed in finer]
    measured = [(seed, (*FORGET,)) for seed in seeds]
    measured += [
        (seed, (name,)) for name, some in (only or {}).items() for seed in some
    ]
    for seed, names in (*cells, *measured):
        for pruner in PRUNERS:
            tasks += [Task(pruner, seed)]
            tasks += [Task("retrain", seed, name, pruner) for name in names]
        pairs = list(product(PRUNERS, names))
        for kind, some in (("search", search), ("refine", refine), ("finer", finer)):
            if seed in some:
                tasks += [Task(kind, seed, name, pruner) for pruner, name in pairs]
        if seed not in (*search, *finer):
            tasks += [Task("unlearn", seed, name, pruner) for pruner, name in pairs]
    for kind in ("usable", "published"):
        tasks += [
            Task(kind, seed, name, pruner)
            for seed, names in measured
            for pruner, name in product(PRUNERS, names)
        ]
    for seed in control:
        tasks += [Task("random", seed), Task("retrain", seed, "class", "random")]
        tasks += [Task("unlearn", seed, "class", "random")]
    return tasks


def work(
    folder: Path,
    tasks: list[Task],
    source: str,
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
            if all(has(name, "json") for name in task.needs(source, timed)):
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
