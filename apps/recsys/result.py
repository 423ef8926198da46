"""A training's result, its state on the way there, and both on disk."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.common import cost
from apps.common.config import settings
from apps.common.runs import RunFolder, load_run
from apps.common.statistics import Interval
from apps.common.training import clones, require_finite
from apps.recsys import metrics, networks
from apps.recsys.augmentation import content_hash, refuse_changed
from apps.recsys.config import Config
from apps.recsys.evaluation import Evaluation, evaluate
from apps.recsys.models.closed_form import Model
from apps.recsys.models.network import Network
from apps.recsys.splits import Dataset

CHOSEN_BY = "ndcg@20"
FORGOTTEN = "forgotten.json"  # of a run that `forget` made: whom it must not load


@dataclass(frozen=True)
class Result:
    """What one training gave.

    metrics: {"recall@20", "ndcg@20", ...} on the test part, each an Interval over its
    users; "coverage@20" and "gini@20" have none. cost: train_seconds and the other
    names of `apps.common.runs.COSTS`. history: one row an epoch. evaluation: the test
    part's lists and values per user. epoch: whose weights these are. masks:
    {parameter: bool}.
    """

    config: Config
    data: Dataset
    metrics: dict[str, Interval]
    cost: dict[str, float]
    history: list[dict[str, float]]
    evaluation: Evaluation
    network: Network
    masks: dict[str, Tensor]
    epoch: int

    @property
    def model(self) -> Model:
        """The fitted model."""
        return self.network.fitted()


class Run:
    """A training's state beside network and optimizer: history, best weights, files."""

    def __init__(self, config, data, network, optimizer, sparsifier, steps):
        self.config, self.data, self.network = config, data, network
        self.optimizer, self.sparsifier, self.steps = optimizer, sparsifier, steps
        self.epoch, self.seconds, self.flops = 0, 0.0, 0.0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] | None = None  # epoch, value, network, masks
        self.folder = None if config.out is None else RunFolder(config.out)

    @property
    def masks(self) -> dict[str, Tensor]:
        return {} if self.sparsifier is None else self.sparsifier.alive

    def start(self) -> None:
        """Begins in a new folder, or takes up the checkpoint of an interrupted run."""
        if self.folder is None:
            return
        checkpoint = self.folder.begin(self.config)
        if checkpoint is not None:
            self._load(checkpoint)

    def end_epoch(self, loss: float, seconds: float) -> None:
        """Records an epoch; every few, validates and writes a checkpoint."""
        require_finite(loss, f"epoch {self.epoch + 1}", self.config.lr)
        self.epoch += 1
        self.seconds += seconds
        self.flops += self._epoch_flops()
        row = {"epoch": self.epoch, "loss": loss, "seconds": seconds}
        self.history.append(row)
        config = self.config
        if self.epoch % config.every and self.epoch < config.epochs:
            return
        if self.sparsifier is not None:
            row["density"] = self.sparsifier.density
            row["exploration"] = self.sparsifier.exploration
        if config.train_on == "train":
            self._validate(row)
        if self.folder is not None:
            self.folder.write_checkpoint(self._state())
            self.folder.write_log(self.history)

    def is_over(self) -> bool:
        """Whether the last `patience` validations brought nothing better."""
        values = [row[CHOSEN_BY] for row in self.history if row.get("eligible")]
        if not values or not self.config.patience:
            return False
        return len(values) - 1 - int(np.argmax(values)) >= self.config.patience

    def finish(self, part: str, plain: Network | None = None) -> Result:
        """Ranks a part with the kept weights, once, and writes the result.

        plain: takes the weights of a network in values mode, and is tested and
        returned.
        """
        masks, epoch = clones(self.masks), self.epoch
        if self.best is not None:
            self.network.load_state_dict(self.best["network"])
            masks, epoch = self.best["masks"], self.best["epoch"]
        if plain is not None:
            from sparsekit.execution import dense_state_dict  # as in train.py

            plain.load_state_dict(dense_state_dict(self.network))
            self.network = plain
        tested = evaluate_network(self.network, self.data, part, metrics.KS)
        costs = cost.costs(self.network, masks, seconds=self.seconds, flops=self.flops)
        result = Result(
            self.config, self.data, measured(tested, self.data), costs, self.history,
            tested, self.network, masks, epoch,
        )  # fmt: skip
        if self.folder is not None:
            save(self.folder, result)
        return result

    def _validate(self, row: dict[str, float]) -> None:
        """Ranks the validation part and remembers the best weights."""
        value = evaluate_network(self.network, self.data, "valid", [20]).means
        row |= {"ndcg@20": value["ndcg@20"], "recall@20": value["recall@20"]}
        row["eligible"] = self._is_final_sparsity()
        better = self.best is None or row[CHOSEN_BY] > self.best["value"]
        if better and row["eligible"]:
            self.best = {
                "epoch": self.epoch,
                "value": row[CHOSEN_BY],
                "network": clones(self.network.state_dict()),
                "masks": clones(self.masks),
            }

    def _is_final_sparsity(self) -> bool:
        """Whether pruning has reached its end: a denser epoch must not be chosen."""
        if self.sparsifier is None:
            return True
        method, last = self.sparsifier.method, self.steps * self.config.epochs - 1
        done = self.steps * self.epoch - 1
        return method.sparsity_at(done) == method.sparsity_at(last)

    def _epoch_flops(self) -> float:
        """Of the epoch that ends, at the densities of its steps."""
        first = self.steps * (self.epoch - 1)
        densities = [1.0] * self.steps
        if self.sparsifier is not None:
            sparsity_at = self.sparsifier.method.sparsity_at
            densities = [1 - sparsity_at(first + i) for i in range(self.steps)]
        batch, negatives = self.config.batch, self.config.negatives
        return sum(self.network.step_flops(batch, negatives, d) for d in densities)

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "seconds": self.seconds,
            "flops": self.flops,
            "history": self.history,
            "best": self.best,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sparsifier": self.sparsifier and self.sparsifier.state_dict(),
            "settings": settings(self.config),
            "augmentation": content_hash(self.config.augmentation),
        }

    def _load(self, state: dict[str, Any]) -> None:
        refuse_changed(
            self.config.augmentation, state["augmentation"], self.folder.path
        )
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.history, self.best = state["history"], state["best"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.sparsifier is not None:
            self.sparsifier.load_state_dict(state["sparsifier"])
        self.flops = state["flops"]


def evaluate_network(
    network: Network, data: Dataset, part: str, ks: tuple[int, ...] | list[int]
) -> Evaluation:
    """Full rankings: by numpy's and numba's on a CPU, by torch's where the GPU is."""
    on_cpu = network.device.type == "cpu"
    network.eval()
    model = network.fitted() if on_cpu else network.on_device()
    return evaluate(model, data, part, ks)


def measured(tested: Evaluation, data: Dataset) -> dict[str, Interval]:
    """Means over users with intervals, and what the lists are like as a whole."""
    n_items, n = data.shape[1], int((tested.ranked[:, 0] >= 0).sum())
    ranked, k = tested.ranked, tested.ranked.shape[1]
    whole = {
        f"coverage@{k}": metrics.coverage(ranked, n_items),
        f"gini@{k}": metrics.gini(ranked, n_items),
    }
    surprise = metrics.summary({f"novelty@{k}": metrics.novelty(ranked, data.train)})
    alone = {m: Interval(float(v), math.nan, math.nan, n) for m, v in whole.items()}
    return tested.intervals | surprise | alone


def save(
    folder: RunFolder, result: Result, about: Mapping[str, Any] | None = None
) -> None:
    """Writes the network, packed, the values per user, and result.json, last.

    about: more for the result's provenance.
    """
    config = result.config
    tensors, metadata = cost.packed(result.network, result.masks)
    folder.write_tensors("model.safetensors", tensors, metadata)
    values = {k: torch.from_numpy(v) for k, v in result.evaluation.values.items()}
    augmentation = content_hash(config.augmentation)
    made_by = {} if augmentation is None else {"augmentation": augmentation}
    folder.write_tensors(
        "users.safetensors",
        values | {"ranked": torch.from_numpy(result.evaluation.ranked)},
        {"run": json.dumps({"epoch": result.epoch})},
    )
    folder.write_log(result.history)
    folder.write_run(
        "recsys", config, method=config.method, dataset=result.data.name,
        metrics=result.metrics, cost=result.cost,
        **made_by, **(about or {}),
    )  # fmt: skip


def load_result(path: Path, config: Config | None = None) -> Result:
    """A finished run from its folder; its data set is loaded again.

    Raises FileNotFoundError if there is none, ValueError if `config` is given and the
    run was trained with other settings.
    """
    folder, config, stored = load_run(path, Config, config)
    values, run = folder.read_tensors("users.safetensors")
    shown = json.loads(run["run"])
    refuse_changed(config.augmentation, stored.provenance.get("augmentation"), path)
    own = folder.path / FORGOTTEN  # wherever the folder was moved to
    data = (replace(config, without=own) if own.is_file() else config).load()
    fit_on = data.final() if config.train_on == "all" else data
    network = networks.build(config, fit_on.train)
    state, masks = cost.unpacked(*folder.read_tensors("model.safetensors"))
    network.load_state_dict(state)
    arrays = {name: tensor.numpy() for name, tensor in values.items()}
    ranked = arrays.pop("ranked")
    return Result(
        config,
        data,
        stored.metrics,
        stored.cost,
        folder.read_log(),
        Evaluation("test", ranked, arrays),
        network,
        masks,
        shown["epoch"],
    )
