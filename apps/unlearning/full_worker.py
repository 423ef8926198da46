"""What a worker of the GPU run does for each task; see `full_plan`."""

import copy
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apps.common.images import Split
from apps.common.seeds import mixed
from apps.unlearning import data, metrics
from apps.unlearning.config import Config
from apps.unlearning.data import Data, subset
from apps.unlearning.fitting import fit
from apps.unlearning.full_choices import choices, distinct, methods, prepared
from apps.unlearning.full_plan import Task, searched
from apps.unlearning.full_settings import (
    AGAIN,
    CANDIDATES,
    COMMON,
    DECIMALS,
    FINER,
    FORGET,
    MOVED,
    PROVENANCE,
    PUBLISHED,
)
from apps.unlearning.pruning import Pruner, masks_of, prunable, untrained_masks
from apps.unlearning.stages import Stages
from apps.unlearning.train import builder, measure
from apps.unlearning.unlearner import Problem, build
from apps.unlearning.unlearning import unlearn
from sparsekit import atomic
from sparsekit.methods.oneshot import OneShot

FREE = {"lr": 1e-9, "bound": False}
Trained = tuple[Data, nn.Module, dict[str, Tensor], nn.Module]


class Worker:
    """Runs tasks. A compiled network is filled anew for every training, since compiling
    takes as long as a training; it is not used for anything else."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        source: str,
        earlier: str = "",
        compiled: bool = False,
    ):
        self.folder, self.config = folder, config
        self.source, self.earlier = source, earlier
        self.device, self.compiled = config.device, compiled
        self.gpu = config.device.startswith("cuda")
        self._body: nn.Module | None = None
        self._data: dict[tuple, Data] = {}

    def run(self, task: Task) -> dict[str, Any]:
        """The task's results, beside the files that it leaves."""
        config = replace(self.config, seed=task.seed)
        found = getattr(self, f"_{task.kind}")(task, config)
        if self.gpu:
            torch.cuda.empty_cache()  # the others need it
        return found

    # ---- networks ----------------------------------------------------------------

    def _dense(self, task: Task, config: Config) -> dict[str, Any]:
        """The dense network, and what pruning it once with rewinding needs."""
        loaded = self.data(config)
        build_model, train = builder(config, loaded), loaded.train
        state = build_model(config.drawn).state_dict()
        early, _ = self.fit(config, state, train, config.drawn, end=config.rewind)
        late, loss = self.fit(config, early, train, config.drawn, begin=config.rewind)
        model = self.network(config, loaded, late)
        method = OneShot(config.sparsity, across_layers=True)
        masks = masks_of(method, model, prunable(model, config.prunable), config.drawn)
        self.save(task, early=early, model=late, masks={}, chosen=masks)
        return {"loss": loss, "compiled": self.compiled}

    def _omp(self, task: Task, config: Config) -> dict[str, Any]:
        stored, train = self.load(f"dense-{task.seed}"), self.data(config).train
        masks = stored["chosen"]
        state, loss = self.fit(
            config, stored["early"], train, config.drawn, masks, config.rewind
        )
        self.save(task, model=state, masks=masks)
        return {"loss": loss, "compiled": self.compiled}

    def _random(self, task: Task, config: Config) -> dict[str, Any]:
        loaded = self.data(config)
        model = builder(config, loaded)(config.drawn).to(self.device)
        pruner = Pruner("random", config.sparsity, prunable=config.prunable)
        masks = untrained_masks(pruner, model, loaded.train, config.drawn)
        state, loss = self.fit(
            config, model.state_dict(), loaded.train, config.drawn, masks
        )
        self.save(task, model=state, masks=masks)
        return {"loss": loss, "compiled": self.compiled}

    def _retrain(self, task: Task, config: Config) -> dict[str, Any]:
        config = replace(config, forget=FORGET[task.forget])
        loaded, masks = self.data(config), {}
        if task.pruner == "omp":
            masks = self.load(f"dense-{task.seed}")["chosen"]
        elif task.pruner == "random":
            masks = self.load(f"random-{task.seed}")["masks"]
        seed = mixed(config.drawn, 1000)
        state = builder(config, loaded)(seed).state_dict()
        state, loss = self.fit(config, state, loaded.retained, seed, masks)
        self.save(task, model=state, masks=masks)
        return {"loss": loss, "compiled": self.compiled}

    # ---- unlearning --------------------------------------------------------------

    def _search(self, task: Task, config: Config) -> dict[str, Any]:
        """Every candidate on validation records, and both choices of each method."""
        grids = {name: CANDIDATES[name] for name in methods(task.pruner)}
        return self.search(task, config, grids)

    def _refine(self, task: Task, config: Config) -> dict[str, Any]:
        """The same with moved grids; other choices are the earlier search's."""
        before = self.chosen(self.earlier, task)
        grids = {name: MOVED[name] for name in AGAIN[task.forget]}
        found = self.search(task, config, grids)
        return found | {"chosen": before | found["chosen"]}

    def _finer(self, task: Task, config: Config) -> dict[str, Any]:
        """The smallest gap of a finer grid, a third choice beside the earlier two."""
        chosen = self.chosen(self.earlier, task)
        found = self.search(task, config, FINER)
        for name in FINER:
            chosen[name]["finer"] = found["chosen"][name]["smallest"]
        return found | {"chosen": chosen}

    def chosen(self, source: str, task: Task) -> dict[str, Any]:
        path = self.folder / f"{searched(source, task.forget, task.pruner)}.json"
        return json.loads(path.read_text())["chosen"]

    def search(
        self, task: Task, config: Config, grids: dict[str, list[dict[str, Any]]]
    ) -> dict[str, Any]:
        config = replace(config, forget=FORGET[task.forget], part="validation")
        loaded, model, masks, reference = self.trained(task, config)
        problem = self.problem(config, loaded, model, masks)
        parts = {
            "forget": problem.forget,
            "retain": subset(
                problem.retain, torch.arange(10000)[: len(problem.retain)]
            ),
            "fresh": loaded.fresh,
        }

        def judged(model: nn.Module) -> dict[str, float]:
            samples = {n: metrics.per_sample(model, part) for n, part in parts.items()}
            return of_model(samples)

        target, before, rows = judged(reference), judged(model), []
        for name, candidates in grids.items():
            run = prepared(name, problem)
            for options in candidates:
                method = build(name, COMMON[name] | options)
                asked = replace(problem, model=copy.deepcopy(model))
                with self.precision(name):
                    changed = run(method, asked)
                values = judged(changed)
                gap = metrics.gaps(values, target)["gap"]
                rows.append({"method": name, "options": options, "gap": gap, **values})
        chosen = {
            name: choices([row for row in rows if row["method"] == name], before["RA"])
            for name in grids
        }
        return {
            "kind": task.kind, "seed": task.seed,
            "forget": task.forget, "pruner": task.pruner,
            "candidates": rows, "chosen": chosen,
            "original": before, "reference": target,
        }  # fmt: skip

    def _unlearn(self, task: Task, config: Config) -> dict[str, Any]:
        """The first choice, and that of a finer grid."""
        return self.rows(task, config, self._asked(task, usable=False))

    def _usable(self, task: Task, config: Config) -> dict[str, Any]:
        """The second choice where it is another."""
        asked = self._asked(task, usable=True)
        return self.rows(task, config, asked) if asked else {"rows": []}

    def _asked(self, task: Task, usable: bool) -> list:
        """(method, choices, options) of second choices that are others, or the rest."""
        chosen = self.chosen(self.source, task)
        return [
            (name, choices, COMMON[name] | options)
            for name in methods(task.pruner)
            for choices, options in distinct(chosen[name])
            if (choices == ["usable"]) == usable
        ]

    def _published(self, task: Task, config: Config) -> dict[str, Any]:
        names = [name for name in methods(task.pruner) if name in PUBLISHED]
        return self.rows(
            task, config, [(name, ["published"], PUBLISHED[name]) for name in names]
        )

    def rows(self, task: Task, config: Config, asked: list) -> dict[str, Any]:
        """Unlearns and measures on the test part."""
        config = replace(config, forget=FORGET[task.forget])
        loaded, model, masks, reference = self.trained(task, config)
        common = {"seed": task.seed, "forget": task.forget, "pruner": task.pruner}
        common |= {"mask": PROVENANCE[task.pruner]}
        for name, one in (("original", model), ("reference", reference)):
            common[name] = of_model(measure(one, loaded))
        rows = []
        for name, choice, options in asked:
            with self.precision(name):
                result = unlearn(
                    model, loaded.retained, loaded.forgotten, build(name, options),
                    masks=masks, mask_provenance=PROVENANCE[task.pruner],
                    held_out=loaded.held_out,
                    removed_class=loaded.forget.removed_class,
                    recipe=config.recipe, seed=config.drawn,
                )  # fmt: skip
            values = of_model(measure(result.model, loaded))
            row = {"method": name, "choice": choice, "options": options}
            rows.append(common | row | {"unlearned": values})
        return {"rows": rows}

    # ---- time --------------------------------------------------------------------

    def _timing(self, task: Task, config: Config, repeats: int = 3) -> dict[str, Any]:
        """Seconds of an epoch of retraining and of every method, nothing compiled.

        An untrained network serves: what it has learned changes no method's time, but
        that of gradient ascent, which takes all epochs here (and no look at its bound).
        """
        config = replace(config, forget=FORGET["class"])
        loaded = self.data(config)
        model = self.network(config, loaded, builder(config, loaded)(0).state_dict())
        problem = self.problem(config, loaded, model, {})
        mask = untrained_masks(
            Pruner("random", config.sparsity, prunable=config.prunable),
            model, loaded.train, 0,
        )  # fmt: skip

        def train(masks: dict[str, Tensor]) -> None:
            fitted = copy.deepcopy(model)
            with self.precision():
                fit(fitted, problem.retain, config.recipe, seed=0, masks=masks, end=1)

        def forget(name: str) -> None:
            options = COMMON[name] | (FREE if name == "gradient_ascent" else {})
            with self.precision(name):
                build(name, options).run(replace(problem, model=copy.deepcopy(model)))

        train({})  # algorithms are chosen in a first pass
        found = {
            "retrain_epoch": [self.clock(lambda: train({})) for _ in range(repeats)],
            "sparse_retrain_epoch": [self.clock(lambda: train(mask))],
        }
        for name in COMMON:
            times = [self.clock(lambda n=name: forget(n)) for _ in range(repeats)]
            found[name] = times[:1] if name in ("fisher", "influence") else times
        return {"epochs": config.epochs, "timed": found}

    def clock(self, action: Callable[[], object]) -> float:
        """Seconds until the device is done."""
        self.wait()
        began = time.perf_counter()
        action()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    # ---- shared ------------------------------------------------------------------

    def fit(
        self,
        config: Config,
        state: dict[str, Tensor],
        train: Split,
        seed: int,
        masks: dict[str, Tensor] | None = None,
        begin: int = 0,
        end: int | None = None,
    ) -> tuple[dict[str, Tensor], float]:
        """The weights after epochs `begin` ... `end`, and the last epoch's loss."""
        body = self.body(config)
        body.load_state_dict(state)
        stage = Stages().begin("fit")
        with self.precision():
            fit(
                body, train, config.recipe,
                seed=seed, masks=masks, begin=begin, end=end, stage=stage,
            )  # fmt: skip
        return copy.deepcopy(body.state_dict()), stage.rows[-1]["loss"]

    def body(self, config: Config) -> nn.Module:
        """The network that is trained; its weights are of no importance."""
        if self._body is None:
            self._body = self.on_device(builder(config, self.data(config))(0))
            if self.compiled:
                self.compile(self._body, self.data(config).train.x[: config.batch])
        return self._body

    def compile(self, model: nn.Module, x: Tensor) -> None:
        """By a first step. What cannot be compiled is trained as it is, and says so."""
        model.compile(dynamic=False)
        model.train()
        try:
            with self.precision():
                logits = model(x)
            logits.float().sum().backward()
            model.zero_grad(set_to_none=True)
        except Exception as error:
            print(f"not compiled: {error!r}", flush=True)
            self.compiled = False
            self._body = copy.deepcopy(model)  # a copy is not compiled

    def network(
        self, config: Config, loaded: Data, state: dict[str, Tensor]
    ) -> nn.Module:
        model = builder(config, loaded)(0)
        model.load_state_dict(state)
        return self.on_device(model)

    def on_device(self, model: nn.Module) -> nn.Module:
        if not self.gpu:
            return model
        return model.to(self.device, memory_format=torch.channels_last)

    def trained(self, task: Task, config: Config) -> Trained:
        """The data, the original, its masks, and the reference."""
        loaded, stored = self.data(config), self.load(f"{task.pruner}-{task.seed}")
        again = self.load(f"retrain-{task.seed}-{task.forget}-{task.pruner}")
        models = [self.network(config, loaded, s["model"]) for s in (stored, again)]
        return loaded, models[0], stored["masks"], models[1]

    def problem(
        self, config: Config, loaded: Data, model: nn.Module, masks: dict[str, Tensor]
    ) -> Problem:
        return Problem(
            model, loaded.retained, loaded.forgotten,
            masks=masks, seed=config.drawn, recipe=config.recipe,
            held_out=loaded.held_out, removed_class=loaded.forget.removed_class,
        )  # fmt: skip

    def precision(self, method: str = "") -> AbstractContextManager:
        """bfloat16 where a GPU trains. Not where curvature is computed. Nothing is
        cached: a copy of a weight would outlive the steps that change it."""
        on = self.gpu and method not in ("fisher", "influence")
        return torch.autocast("cuda", torch.bfloat16, enabled=on, cache_enabled=False)

    def data(self, config: Config) -> Data:
        """With the pixels on the device."""
        key = (config.seed, config.forget, config.part)
        if key not in self._data:
            if len(self._data) == 4:  # they take gigabytes
                self._data.clear()
            loaded = data.load(
                config.dataset, config.forget, config.seed, config.data_dir, config.part
            )
            self._data[key] = data.to(loaded, self.device)
        return self._data[key]

    def save(self, task: Task, **parts: Any) -> None:
        path = self.folder / f"{task.name}.pt"
        atomic.write(path, lambda file: torch.save(parts, file))

    def load(self, name: str) -> dict[str, Any]:
        path = self.folder / f"{name}.pt"
        return torch.load(path, map_location=self.device, weights_only=True)


def of_model(samples: dict[str, dict[str, Tensor]]) -> dict[str, float]:
    """UA, MIA, RA, TA; of a network that a method has destroyed as well, whose answers
    are no numbers: it is sure of nothing."""
    for values in samples.values():
        values["confidence"] = values["confidence"].nan_to_num(0.0)
    return metrics.of_model(samples, DECIMALS)
