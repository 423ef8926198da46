"""A single training with its folder: settings, log, weights, result."""

from dataclasses import dataclass, fields
from math import nan
from pathlib import Path

from torch import Tensor, nn

from apps.common import cost
from apps.common.runs import RunFolder, is_finished, load_run
from apps.common.statistics import Interval, mean_interval
from apps.data_pruning import data as sources
from apps.data_pruning import files, metrics
from apps.data_pruning.config import Config, TrainConfig
from apps.data_pruning.train import predict, train


@dataclass(frozen=True)
class Result:
    """metrics: on test data, accuracy with an interval over samples.

    correct: [n_test] 1.0 or 0.0. model: None if the result was read from a folder.
    """

    metrics: dict[str, Interval]
    cost: dict[str, float]
    correct: Tensor
    model: nn.Module | None


def train_run(
    config: Config, subset: Path | None = None, budget: str = "steps"
) -> Result:
    """Trains as `config` says and tests once; writes to `config.out` if it is given.

    With `config.resume` a finished run is read back, and an interrupted one begins
    again, to the same result. Raises ValueError for a folder of another run.
    """
    own = {f.name: getattr(config, f.name) for f in fields(Config)}
    asked = TrainConfig(**own, subset=subset, budget=budget)
    folder = None if config.out is None else RunFolder(config.out)
    if folder is not None:
        if config.resume and is_finished(folder.path):
            return load_result(folder.path, asked)
        folder.begin(asked)
    data = sources.load(config)
    part, test = data.splits.train, data.splits.test
    indices = None if subset is None else files.read_subset(subset, part.ids)
    trained = train(config, data, indices, budget=budget)
    logits = predict(config, trained.model, test.x)
    correct = (logits.argmax(1) == test.y).float().cpu()
    values = metrics.measure(logits, test.y)
    measured = {k: Interval(v, nan, nan, len(test)) for k, v in values.items()}
    measured["accuracy"] = mean_interval(correct.double().numpy())
    costs = cost.costs(
        trained.model, {}, seconds=trained.seconds, flops=trained.flops
    ) | {
        "examples": len(part) if indices is None else len(indices),
        "steps": trained.steps,
    }
    if folder is not None:
        folder.write_tensors("model.safetensors", *cost.packed(trained.model, {}))
        folder.write_tensors("samples.safetensors", {"correct": correct})
        rows = [{"epoch": e + 1, "loss": v} for e, v in enumerate(trained.losses)]
        folder.write_log(rows)
        folder.write_run(
            "data_pruning", asked, method="all" if subset is None else subset.name,
            dataset=data.splits.name, metrics=measured, cost=costs,
        )  # fmt: skip
    return Result(measured, costs, correct, trained.model)


def load_result(path: Path, config: TrainConfig | None = None) -> Result:
    """A finished run from its folder, without its model.

    Raises FileNotFoundError if there is none, ValueError if `config` is given and the
    run was trained with other settings.
    """
    folder, _, stored = load_run(path, TrainConfig, config)
    correct = folder.read_tensors("samples.safetensors")[0]["correct"]
    return Result(stored.metrics, stored.cost, correct, None)
