"""A training's result, its state on the way there, and both on disk."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from apps.classify import data, metrics, models
from apps.classify.config import Config
from apps.common import cost
from apps.common.config import settings
from apps.common.runs import RunFolder, load_run
from apps.common.statistics import Interval, bootstrap_interval, mean_interval
from apps.common.training import clones, evaluate, require_finite
from sparsekit.execution import dense_state_dict


@dataclass(frozen=True)
class Result:
    """What one training gave.

    metrics: {"accuracy", "nll", "brier", "ece"} on the test part, each an Interval over
    its samples. cost: DESIGN's keys. history: one row an epoch. samples: {"correct",
    "nll", "brier"}, [n_test] each, in the order of the test part.
    """

    config: Config
    metrics: dict[str, Interval]
    cost: dict[str, float]
    history: list[dict[str, float]]
    samples: dict[str, Tensor]
    model: nn.Module
    masks: dict[str, Tensor]

    @property
    def accuracy(self) -> float:
        return self.metrics["accuracy"].value


class Run:
    """A training's state beside model and optimizer: history, best weights, files."""

    def __init__(self, config, model, optimizer, sparsifier, flops):
        self.config, self.model, self.optimizer = config, model, optimizer
        self.sparsifier, self.flops = sparsifier, flops
        self.epoch, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] | None = None  # accuracy, model, masks
        self.folder = None if config.out is None else RunFolder(config.out)

    @property
    def masks(self) -> dict[str, Tensor]:
        return {} if self.sparsifier is None else self.sparsifier.alive

    def start(self) -> None:
        """Begins in a new folder, or takes up the checkpoint of an interrupted run."""
        self.flops.update(self.masks)
        if self.folder is None:
            return
        checkpoint = self.folder.begin(self.config)
        if checkpoint is not None:
            self._load(checkpoint)

    def end_epoch(self, loss: float, logits: Tensor, y: Tensor, seconds: float) -> None:
        """Records an epoch, remembers the best weights, writes a checkpoint."""
        require_finite(loss, f"epoch {self.epoch + 1}", self.config.lr)
        self.epoch += 1
        self.seconds += seconds
        accuracy = float(metrics.correct(logits, y).mean())
        sparsifier = self.sparsifier
        row = {
            "epoch": self.epoch,
            "loss": loss,
            "validation_accuracy": accuracy,
            "validation_nll": float(metrics.nll(logits, y).mean()),
            "density": 1.0 if sparsifier is None else sparsifier.density,
            "exploration": 1.0 if sparsifier is None else sparsifier.exploration,
            "seconds": seconds,
        }
        self.history.append(row)
        better = self.best is None or accuracy > self.best["accuracy"]
        if self.config.keep == "best" and better and self._is_final_sparsity():
            self.best = {
                "accuracy": accuracy,
                "model": clones(self.model.state_dict()),
                "masks": clones(self.masks),
            }
        if self.folder is not None:
            self.folder.write_checkpoint(self._state())
            self.folder.write_log(self.history)

    def finish(self, splits: data.Splits, plain: nn.Module | None = None) -> Result:
        """Tests the kept weights, once, and writes the result.

        plain: takes the weights of a model in values mode, and is tested and returned.
        """
        test = splits.test
        masks = clones(self.masks)
        if self.best is not None:
            self.model.load_state_dict(self.best["model"])
            masks = self.best["masks"]
        if plain is not None:
            plain.load_state_dict(dense_state_dict(self.model))
            self.model = plain
        samples, measured = test_metrics(evaluate(self.model, test), test.y)
        costs = cost.costs(
            self.model, masks, seconds=self.seconds, flops=self.flops.total
        )
        result = Result(
            self.config, measured, costs, self.history, samples, self.model, masks
        )
        if self.folder is not None:
            save(self.folder, result, splits)
        return result

    def _is_final_sparsity(self) -> bool:
        """Whether pruning has reached its end: a denser epoch must not be chosen."""
        if self.sparsifier is None:
            return True
        method, done = self.sparsifier.method, self.sparsifier.step
        last = done // self.epoch * self.config.epochs
        return method.sparsity_at(done - 1) == method.sparsity_at(last - 1)

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "seconds": self.seconds,
            "flops": self.flops.total,
            "history": self.history,
            "best": self.best,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sparsifier": self.sparsifier and self.sparsifier.state_dict(),
            "settings": settings(self.config),
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.history, self.best = state["history"], state["best"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.sparsifier is not None:
            self.sparsifier.load_state_dict(state["sparsifier"])
        self.flops.update(self.masks)
        self.flops.total = state["flops"]


def test_metrics(
    logits: Tensor, y: Tensor
) -> tuple[dict[str, Tensor], dict[str, Interval]]:
    """Values per sample, and their means with intervals over the samples.

    The calibration error is no mean: its interval is a bootstrap over samples.
    """
    samples = {
        "correct": metrics.correct(logits, y),
        "nll": metrics.nll(logits, y),
        "brier": metrics.brier(logits, y),
    }
    named = {"accuracy" if k == "correct" else k: v for k, v in samples.items()}
    measured = {k: mean_interval(v.double().numpy()) for k, v in named.items()}
    return samples, measured | {"ece": ece_interval(logits, y)}


def ece_interval(logits: Tensor, y: Tensor) -> Interval:
    """Calibration error with a bootstrap interval over the samples."""
    rows = metrics.confidence_and_correct(logits, y)
    return bootstrap_interval(rows, statistic=metrics.calibration_error)


def save(folder: RunFolder, result: Result, splits: data.Splits) -> None:
    """Writes the model, packed, the values per sample, and result.json, last."""
    config = result.config
    tensors, metadata = cost.packed(result.model, result.masks)
    shape = {n: getattr(splits, n) for n in ("classes", "channels", "size")}
    folder.write_tensors("model.safetensors", tensors, metadata)
    folder.write_tensors(
        "samples.safetensors", result.samples, {"run": json.dumps(shape)}
    )
    folder.write_log(result.history)
    folder.write_run(
        "classify", config, method=config.method, dataset=config.dataset,
        metrics=result.metrics, cost=result.cost,
    )  # fmt: skip


def load_result(path: Path, config: Config | None = None) -> Result:
    """A finished run from its folder; the data set is not needed.

    Raises FileNotFoundError if there is none, ValueError if `config` is given and the
    run was trained with other settings.
    """
    folder, config, stored = load_run(path, Config, config)
    samples, run = folder.read_tensors("samples.safetensors")
    shape = json.loads(run["run"])
    sizes = (shape["classes"], shape["channels"], shape["size"])
    model = models.of_config(config, sizes)
    state, masks = cost.unpacked(*folder.read_tensors("model.safetensors"))
    model.load_state_dict(state)
    return Result(
        config,
        stored.metrics,
        stored.cost,
        folder.read_log(),
        samples,
        model.to(config.device),
        masks,
    )
