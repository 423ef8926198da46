"""An experiment's result, and its folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from apps.common import cost
from apps.common.runs import RunFolder, load_run
from apps.common.statistics import Interval, mean_interval
from apps.unlearning import metrics
from apps.unlearning.config import Config
from apps.unlearning.data import Data
from apps.unlearning.ensemble import Ensemble, Shards, Store
from apps.unlearning.models import of_shape
from apps.unlearning.unlearner import build

Masks = Mapping[str, Tensor]
MODELS = ("original", "unlearned", "reference")


@dataclass(frozen=True)
class Result:
    """What one experiment gave.

    metrics: UA, MIA, RA and TA of the unlearned model; "original UA", "reference UA"
    and so on; "UA gap", ..., the signed difference to the reference; "gap", the mean of
    their sizes; "run time", as a share of retraining. Intervals are over records where
    a metric is a mean of them; others have none here: compare seeds.
    samples: {"original", "unlearned", "reference"} -> {"forget", "retain", "fresh"} ->
    {"correct", "confidence", "logit_confidence", "loss"} -> [N], a value a record.
    masks, provenance: of the original; the unlearned model keeps them.
    exact: whether the method leaves no trace of the forget set by construction.
    """

    config: Config
    metrics: dict[str, Interval]
    cost: dict[str, float]
    history: list[dict[str, Any]]
    samples: dict[str, dict[str, dict[str, Tensor]]]
    model: nn.Module
    masks: dict[str, Tensor]
    provenance: str
    exact: bool

    def value(self, name: str) -> float:
        """One metric. Raises KeyError that lists all."""
        if name not in self.metrics:
            raise KeyError(f"no metric {name!r}; there are {', '.join(self.metrics)}")
        return self.metrics[name].value


def measured(
    samples: dict[str, dict[str, dict[str, Tensor]]], run_time: float
) -> dict[str, Interval]:
    """All metrics of the three models."""
    values = {name: metrics.of_model(samples[name]) for name in MODELS}
    found: dict[str, Interval] = {}
    for model in ("unlearned", "original", "reference"):
        for name, value in values[model].items():
            label = name if model == "unlearned" else f"{model} {name}"
            found[label] = _interval(name, value, samples[model])
    for name, gap in metrics.gaps(values["unlearned"], values["reference"]).items():
        found[name] = Interval(gap, nan, nan, 1)
    return found | {"run time": Interval(run_time, nan, nan, 1)}


def _interval(name: str, value: float, samples: dict) -> Interval:
    part = {"UA": "forget", "RA": "retain", "TA": "fresh"}.get(name)
    if part is None:
        return Interval(value, nan, nan, 1)
    right = samples[part]["correct"].double().numpy()
    return mean_interval(1 - right if name == "UA" else right)


def save(
    folder: RunFolder,
    result: Result,
    data: Data,
    others: dict[str, tuple[nn.Module, Masks]],
) -> None:
    """The models, the values per record, and result.json, last.

    others: {"original", "reference"} -> (model, masks).
    """
    config = result.config
    about = {
        "classes": data.classes,
        "channels": data.train.x.shape[1],
        "size": data.train.x.shape[2],
        "provenance": result.provenance,
        "exact": result.exact,
    }
    flat = {
        f"{model}/{part}/{name}": values
        for model, parts in result.samples.items()
        for part, columns in parts.items()
        for name, values in columns.items()
    }
    if data.train.ids is not None:
        flat["ids/forget"] = data.forgotten.ids.contiguous()
        flat["ids/retain"] = data.retained.ids.contiguous()
    for name, (model, masks) in others.items():
        folder.write_tensors(f"{name}.safetensors", *cost.packed(model, masks))
    packed = cost.packed(result.model, result.masks)
    folder.write_tensors("model.safetensors", *packed)
    folder.write_tensors("samples.safetensors", flat, {"run": json.dumps(about)})
    folder.write_log(result.history)
    folder.write_run(
        "unlearning", config, method=config.method, dataset=config.dataset,
        metrics=result.metrics, cost=result.cost, mask=result.provenance,
        exact=result.exact,
    )  # fmt: skip


def stored_model(folder: RunFolder, name: str, config: Config) -> nn.Module:
    """Of a finished run: "original", "reference", or "model", the unlearned one."""
    about = json.loads(folder.read_tensors("samples.safetensors")[1]["run"])
    return _stored(folder, name, config, about)[0]


def _stored(folder: RunFolder, name: str, config: Config, about: dict[str, Any]):
    model = rebuilt(config, about)
    state, masks = cost.unpacked(*folder.read_tensors(f"{name}.safetensors"))
    model.load_state_dict(state)
    return model.to(config.device).eval(), masks


def rebuilt(config: Config, about: dict[str, Any]) -> nn.Module:
    """An untrained model of the run's architecture, of all shards for sisa."""
    shape = (about["classes"], about["channels"], about["size"])
    one = of_shape(config, *shape)
    if config.method != "sisa":
        return one(config.drawn)
    method = build(config.method, config.options)
    shards = Shards(method.shards, method.slices)
    parts = [one(i) for i in range(method.shards)]
    return Ensemble(parts, one, shards, config.drawn, {}, Store(), {})


def load_result(path: Path, config: Config | None = None) -> Result:
    """A finished experiment from its folder; the data set is not needed.

    Raises FileNotFoundError if there is none, ValueError if `config` is given and the
    experiment had other settings.
    """
    folder, config, stored = load_run(path, Config, config)
    flat, metadata = folder.read_tensors("samples.safetensors")
    about = json.loads(metadata["run"])
    samples: dict[str, Any] = {}
    for key, values in flat.items():
        model, part, *name = key.split("/")
        if name:
            samples.setdefault(model, {}).setdefault(part, {})[name[0]] = values
    model, masks = _stored(folder, "model", config, about)
    return Result(
        config,
        stored.metrics,
        stored.cost,
        folder.read_log(),
        samples,
        model,
        masks,
        about["provenance"],
        about["exact"],
    )
