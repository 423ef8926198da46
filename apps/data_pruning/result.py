"""A single training with its folder: settings, log, weights, result."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from apps.common import runs
from apps.common.config import to_toml
from apps.common.cost import peak_rss_mb
from apps.common.runs import RunFolder
from apps.common.statistics import Interval, mean_interval
from apps.data_pruning import data as sources
from apps.data_pruning import files, metrics
from apps.data_pruning.config import Config
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
    folder = None if config.out is None else RunFolder(config.out)
    if folder is not None and (folder.path / "result.json").is_file():
        return _finished(config, folder, subset, budget)
    data = sources.load(config)
    part, test = data.splits.train, data.splits.test
    indices = None if subset is None else files.read_subset(subset, part.ids)
    trained = train(config, data, indices, budget=budget)
    logits = predict(config, trained.model, test.x)
    correct = (logits.argmax(1) == test.y).float().cpu()
    values = metrics.measure(logits, test.y)
    measured = {k: Interval(v, v, v, len(test)) for k, v in values.items()}
    measured["accuracy"] = mean_interval(correct.double().numpy())
    tensors = {k: v.cpu().contiguous() for k, v in trained.model.state_dict().items()}
    n_params = sum(p.numel() for p in trained.model.parameters())
    cost = {
        "train_seconds": trained.seconds,
        "train_flops": trained.flops,
        "peak_rss_mb": peak_rss_mb(),
        "params_total": n_params,
        "params_active": n_params,
        "bytes_on_disk": sum(t.numel() * t.element_size() for t in tensors.values()),
        "examples": len(part) if indices is None else len(indices),
        "steps": trained.steps,
    }
    if folder is not None:
        folder.write_text("config.toml", _described(config, subset, budget))
        folder.write_tensors("model.safetensors", tensors)
        folder.write_tensors("samples.safetensors", {"correct": correct})
        rows = [{"epoch": e + 1, "loss": v} for e, v in enumerate(trained.losses)]
        folder.write_log(rows)
        folder.write_result(
            runs.Result(
                app="data_pruning",
                method="all" if subset is None else Path(subset).name,
                dataset=data.splits.name,
                seed=config.seed,
                metrics=measured,
                cost=cost,
                provenance=runs.provenance(config),
            )
        )
    return Result(measured, cost, correct, trained.model)


def _finished(
    config: Config, folder: RunFolder, subset: Path | None, budget: str
) -> Result:
    if not config.resume:
        raise ValueError(
            f"{folder.path} holds a finished run: load it with --resume, or give "
            "another --out"
        )
    before = (folder.path / "config.toml").read_text("utf-8")
    if before != _described(config, subset, budget):
        raise ValueError(
            f"{folder.path} was trained with other settings: see its config.toml, or "
            "give another --out"
        )
    stored = folder.read_result()
    correct = folder.read_tensors("samples.safetensors")[0]["correct"]
    return Result(stored.metrics, stored.cost, correct, None)


def _described(config: Config, subset: Path | None, budget: str) -> str:
    """config.toml, which `train --config` reads back."""
    text = to_toml(config) + f'budget = "{budget}"\n'
    return text if subset is None else text + f"subset = '{subset}'\n"
