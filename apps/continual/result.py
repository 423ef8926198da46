"""A training's result, its state on the way there, and both on disk."""

import json
import math
import reprlib
import zlib
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apps.common import cost
from apps.common.config import settings
from apps.common.images import PARTS
from apps.common.runs import RunFolder, load_run
from apps.common.statistics import Interval
from apps.common.training import clones, require_finite
from apps.continual import metrics, models
from apps.continual.config import Config
from apps.continual.strategy import evaluating
from apps.continual.streams import Part, Stream
from apps.continual.training import Training
from sparsekit.execution import dense_state_dict

Z = 1.959963984540054  # of a normal 95 % interval


@dataclass(frozen=True)
class Tested:
    """Answers on the test parts of all tasks, at one time.

    correct, correct_of_task, confidence: a tensor [n_j] for each task j; correct: among
    all classes; correct_of_task: among the task's own; confidence: of the answer among
    all classes.
    """

    correct: list[Tensor]
    correct_of_task: list[Tensor]
    confidence: list[Tensor]

    @property
    def accuracies(self) -> Tensor:
        """[T], among all classes."""
        return torch.stack([c.double().mean() for c in self.correct])

    @property
    def accuracies_of_task(self) -> Tensor:
        """[T], the task being known."""
        return torch.stack([c.double().mean() for c in self.correct_of_task])


@dataclass(frozen=True)
class Result:
    """What one training gave.

    matrix: [T, T], a[i, j] the accuracy on task j after task i: Class-IL, Task-IL or
    Domain-IL by the scenario; task_matrix: Task-IL, from the same logits. initial: [T],
    of the untrained model. metrics: see `metrics_of`. cost: DESIGN's keys and
    buffer_bytes. history: one row an epoch. samples: after the last task, {"correct",
    "correct_of_task", "confidence", "task"}, one value a test example.
    """

    config: Config
    matrix: Tensor
    task_matrix: Tensor
    initial: Tensor
    metrics: dict[str, Interval]
    cost: dict[str, float]
    history: list[dict[str, float]]
    samples: dict[str, Tensor]
    model: nn.Module
    masks: dict[str, Tensor]

    @property
    def accuracy(self) -> float:
        """Mean over tasks after the last one."""
        return self.metrics["accuracy"].value


def measure(state: Training) -> Tested:
    """The model on the tested part of every task, learned or not."""
    tested = Tested([], [], [])
    for j, task in enumerate(state.stream.tasks):
        part = getattr(task, state.config.part)
        logits = logits_of(state, part, j)
        confidence, answer = logits.softmax(1).max(1)
        own = torch.tensor(task.classes)
        of_task = own[logits[:, own].argmax(1)]
        tested.correct.append(answer == part.y)
        tested.correct_of_task.append(of_task == part.y)
        tested.confidence.append(confidence)
    return tested


def logits_of(state: Training, part: Part, task: int) -> Tensor:
    """What the strategy predicts for all of a part: [N, K], on the CPU."""
    batch = 128 if state.config.device == "cpu" else 1000  # caches hold 128
    view, predict = state.stream.view, state.strategy.predict
    with evaluating(state.model):
        parts = [
            predict(view(part.raw(slice(i, i + batch)).to(state.device)), task).float()
            for i in range(0, len(part), batch)
        ]
    return torch.cat(parts).cpu()


def described(stream: Stream) -> dict[str, Any]:
    """What tells a stream from another: classes, sizes, a checksum of all labels and
    inputs; and how a model sees the inputs, which a device has to know."""
    parts = [[getattr(task, part) for part in PARTS] for task in stream.tasks]
    checksum = 0
    for part in chain(*parts):
        inputs = (part.raw(slice(i, i + 1000)) for i in range(0, len(part), 1000))
        for tensor in chain([part.y], inputs):
            checksum = zlib.crc32(tensor.cpu().contiguous().numpy(), checksum)
    return {
        "classes": stream.n_classes,
        "names": list(stream.names),
        "shape": list(stream.shape),
        "tasks": [list(task.classes) for task in stream.tasks],
        "examples": [[len(part) for part in task] for task in parts],
        "checksum": checksum,
        "mean": stream.mean.flatten().tolist(),
        "std": stream.std.flatten().tolist(),
        "counts": stream.counts,
    }


class Run:
    """A training's place in the stream, what was measured so far, and its files."""

    def __init__(self, config: Config, state: Training):
        self.config, self.state = config, state
        self.task, self.epoch, self.batch = 0, 0, 0  # where to go on
        self.seconds, self.summed = 0.0, torch.zeros((), device=config.device)
        self.unsaved = 0  # steps since the last checkpoint
        self.epoch_seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.rows: list[Tensor] = []  # of the matrix
        self.task_rows: list[Tensor] = []
        self.initial = torch.zeros(0)
        self.last: Tested | None = None
        self.folder = None if config.out is None else RunFolder(config.out)

    @property
    def at_start_of_task(self) -> bool:
        return (self.epoch, self.batch) == (0, 0)

    @property
    def at_start_of_epoch(self) -> bool:
        return self.batch == 0

    @property
    def task_is_known(self) -> bool:
        """In tests: the accuracies are Task-IL."""
        return self.config.scenario == "task"

    def _accuracies(self, tested: Tested) -> Tensor:
        known = self.task_is_known
        return tested.accuracies_of_task if known else tested.accuracies

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the run is trained on, as checkpoints and results say it."""
        return described(self.state.stream)

    def start(self) -> None:
        """Begins in a new folder, or takes up the checkpoint of an interrupted run."""
        if self.folder is not None:
            checkpoint = self.folder.begin(self.config)
            if checkpoint is not None:
                self._load(checkpoint)
                return
        self.initial = self._accuracies(measure(self.state))

    def end_step(self, loss: Tensor | None, seconds: float) -> None:
        self.batch += 1
        self.unsaved += 1
        self.seconds += seconds
        self.epoch_seconds += seconds
        if loss is not None:
            self.summed = self.summed + loss.detach()
        if self.unsaved == self.config.checkpoint_every:
            self._save()

    def end_epoch(self, seconds: float) -> None:
        """Records an epoch, and writes a checkpoint."""
        loss = float(self.summed) / self.batch
        when = f"epoch {self.epoch + 1} of task {self.task + 1}"
        require_finite(loss, when, self.config.lr)
        self.seconds += seconds
        sparsifier = self.state.sparsifier
        row = {
            "task": self.task,
            "epoch": self.epoch,
            "steps": self.batch,
            "loss": loss,
            "density": 1.0 if sparsifier is None else sparsifier.density,
            "seconds": self.epoch_seconds + seconds,
        }
        self.history.append(row)
        self.epoch, self.batch = self.epoch + 1, 0
        self.summed, self.epoch_seconds = torch.zeros_like(self.summed), 0.0
        self._save()

    def end_task(self, tested: Tested, seconds: float) -> None:
        self.seconds += seconds
        self.rows.append(self._accuracies(tested))
        self.task_rows.append(tested.accuracies_of_task)
        self.last = tested
        self.task, self.epoch = self.task + 1, 0
        if self.task < len(self.state.stream.tasks):
            self._save()

    def finish(self) -> Result:
        """Computes the metrics and writes the result."""
        state, tested = self.state, self.last
        if tested is None:
            tested = measure(state)
        masks = clones(state.masks)
        model = state.model
        if self.config.backend == "values":
            model = state.fresh_model()
            model.load_state_dict(dense_state_dict(state.model))
        model.eval()
        matrix, task_matrix = torch.stack(self.rows), torch.stack(self.task_rows)
        measured = metrics_of(
            matrix, task_matrix, self.initial, tested, self.task_is_known
        )
        costs = cost.costs(model, masks, seconds=self.seconds, flops=state.flops.total)
        costs["buffer_bytes"] = state.buffer.nbytes
        samples = {
            name: torch.cat(getattr(tested, name))
            for name in ("correct", "correct_of_task", "confidence")
        }
        sizes = torch.tensor([len(c) for c in tested.correct])
        samples["task"] = torch.arange(len(sizes)).repeat_interleave(sizes)
        result = Result(
            self.config, matrix, task_matrix, self.initial, measured, costs,
            self.history, samples, model, masks,
        )  # fmt: skip
        if self.folder is not None:
            save(self.folder, result, state.stream.name, self.data)
        return result

    def _save(self) -> None:
        self.unsaved = 0
        if self.folder is None:
            return
        self.folder.write_checkpoint(
            {
                "task": self.task,
                "epoch": self.epoch,
                "batch": self.batch,
                "seconds": self.seconds,
                "epoch_seconds": self.epoch_seconds,
                "summed": self.summed,
                "history": self.history,
                "rows": self.rows,
                "task_rows": self.task_rows,
                "initial": self.initial,
                "training": self.state.state_dict(),
                "data": self.data,
                "settings": settings(self.config),
            }
        )
        self.folder.write_log(self.history)

    def _load(self, saved: dict[str, Any]) -> None:
        self._refuse_other_data(saved.get("data", {}))
        for name in (
            "task", "epoch", "batch", "seconds", "epoch_seconds", "summed", "history",
            "rows", "task_rows", "initial",
        ):  # fmt: skip
            setattr(self, name, saved[name])
        self.state.load_state_dict(saved["training"])

    def _refuse_other_data(self, before: dict[str, Any]) -> None:
        for what, now in self.data.items():
            if before.get(what) != now:
                raise ValueError(
                    f"{self.config.out} was begun with other data: its {what} were "
                    f"{reprlib.repr(before.get(what))}, now {reprlib.repr(now)}; bring "
                    "the data back, or give another --out"
                )


def metrics_of(
    matrix: Tensor, task_matrix: Tensor, initial: Tensor, tested: Tested, known: bool
) -> dict[str, Interval]:
    """Named metrics; an interval over test examples where there is one.

    accuracy: mean over tasks, after the last; task_accuracy: the same with the task
    known; backward_transfer (GEM), forgetting (Chaudhry), learning_accuracy,
    forward_transfer (GEM); ece: over all test examples.
    """
    correct = tested.correct_of_task if known else tested.correct
    n_tasks = len(matrix)
    measured = {
        "accuracy": stratified(correct),
        "task_accuracy": stratified(tested.correct_of_task),
        "learning_accuracy": _plain(metrics.learning_accuracy(matrix), n_tasks),
    }
    if n_tasks > 1:
        others = {
            "backward_transfer": metrics.backward_transfer(matrix),
            "forgetting": metrics.forgetting(matrix),
            "task_forgetting": metrics.forgetting(task_matrix),
            "forward_transfer": metrics.forward_transfer(matrix, initial),
        }
        measured |= {name: _plain(value, n_tasks - 1) for name, value in others.items()}
    if not known:
        confidence, answers = torch.cat(tested.confidence), torch.cat(correct)
        ece = metrics.calibration_error(confidence, answers)
        measured["ece"] = _plain(ece, len(answers))
    return measured


def stratified(correct: list[Tensor]) -> Interval:
    """Mean over tasks of the accuracy, with its normal interval over test examples.

    Var = 1/T^2 sum_j p_j (1 - p_j) / n_j.
    """
    p = [float(c.double().mean()) for c in correct]
    n = [len(c) for c in correct]
    value = sum(p) / len(p)
    variance = sum(q * (1 - q) / m for q, m in zip(p, n, strict=True)) / len(p) ** 2
    half = Z * math.sqrt(variance)
    return Interval(value, value - half, value + half, sum(n))


def _plain(value: float, n: int) -> Interval:
    return Interval(value, math.nan, math.nan, n)


def save(folder: RunFolder, result: Result, dataset: str, data: dict[str, Any]) -> None:
    """Writes the model, packed, the values per example, and result.json, last."""
    config = result.config
    tensors, metadata = cost.packed(result.model, result.masks)
    folder.write_tensors("model.safetensors", tensors, metadata)
    measured = {
        "matrix": result.matrix,
        "task_matrix": result.task_matrix,
        "initial": result.initial,
    }
    folder.write_tensors(
        "samples.safetensors",
        {k: v.contiguous() for k, v in (result.samples | measured).items()},
        {"run": json.dumps(data)},
    )
    folder.write_log(result.history)
    folder.write_run(
        "continual", config, method=config.strategy, dataset=dataset,
        metrics=result.metrics, cost=result.cost,
    )  # fmt: skip


def load_result(path: Path | None, config: Config | None = None) -> Result:
    """A finished run from its folder; the data set is not needed.

    Raises FileNotFoundError if there is none, ValueError if `config` is given and the
    run was trained with other settings.
    """
    folder, config, stored = load_run(path, Config, config)
    samples, run = folder.read_tensors("samples.safetensors")
    facts = json.loads(run["run"])
    model = models.build(
        config.model, config.width, config.depth, facts["classes"],
        tuple(facts["shape"]), config.seed,
    )  # fmt: skip
    state, masks = cost.unpacked(*folder.read_tensors("model.safetensors"))
    model.load_state_dict(state)
    matrices = (samples.pop(n) for n in ("matrix", "task_matrix", "initial"))
    return Result(
        config, *matrices, stored.metrics, stored.cost,
        folder.read_log(), samples, model.to(config.device).eval(), masks,
    )  # fmt: skip
