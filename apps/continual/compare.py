"""Strategies x seeds: values of every seed, intervals, paired differences.

    comparison = compare({"er": Config(strategy="er")}, seeds=range(5))
    print(comparison.table())

A seed draws the parts, the initial weights, the order of the data and what the buffer
keeps, and is the same for every strategy, so differences are paired by seed.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from apps.common.config import settings
from apps.common.runs import RunFolder
from apps.common.statistics import Interval, mean_interval, paired_interval
from apps.common.tables import aligned, percent
from apps.continual.config import Config
from apps.continual.result import Result
from apps.continual.train import train

BOUNDS = ("finetune", "joint")


@dataclass(frozen=True)
class Comparison:
    """Measured values of every label and seed.

    values: {label: {metric or cost: one value a seed}}; matrices: {label: one accuracy
    matrix a seed, nested lists}; configs: {label: settings but the seed}; baseline:
    label that differences refer to; added: bounds that were not asked for.
    """

    seeds: tuple[int, ...]
    values: dict[str, dict[str, list[float]]]
    matrices: dict[str, list[list[list[float]]]]
    configs: dict[str, dict[str, Any]]
    baseline: str
    added: tuple[str, ...] = ()

    def interval(self, label: str, metric: str = "accuracy") -> Interval:
        """Mean over seeds with its 95 % interval (Student t)."""
        return mean_interval(self.of(label, metric))

    def difference(
        self, label: str, metric: str = "accuracy", baseline: str | None = None
    ) -> Interval:
        """Mean of label - baseline over seeds, paired, with its 95 % interval."""
        other = self.of(baseline or self.baseline, metric)
        return paired_interval(self.of(label, metric), other)

    def of(self, label: str, metric: str) -> list[float]:
        """One value a seed; ValueError for what was not measured."""
        if label not in self.values:
            raise ValueError(f"no run is labelled {label!r}; {list(self.values)} are")
        if metric not in self.values[label]:
            raise ValueError(
                f"no metric {metric!r} of {label}; {list(self.values[label])} exist"
            )
        return self.values[label][metric]

    def rows(self) -> list[dict[str, str]]:
        """The table's cells, one row a label."""
        rows = []
        for label, measured in self.values.items():
            row = {"run": label + (" *" if label in self.added else "")}
            row["accuracy %"] = percent(self.interval(label))
            if label == self.baseline:
                row[f"- {self.baseline}"] = "-"
            else:
                row[f"- {self.baseline}"] = percent(self.difference(label), sign=True)
            for metric, name in (
                ("task_accuracy", "Task-IL %"),
                ("forgetting", "forgetting %"),
                ("ece", "ece %"),
            ):
                known = metric in measured
                value = self.interval(label, metric).value if known else None
                row[name] = "-" if value is None else f"{100 * value:.1f}"
            for cost, unit, name in (
                ("buffer_bytes", 1e3, "buffer kB"),
                ("bytes_on_disk", 1e3, "model kB"),
                ("train_flops", 1e9, "train GFLOP"),
                ("train_seconds", 1, "train s"),
            ):
                mean = self.interval(label, cost).value / unit
                row[name] = f"{mean:.0f}" if mean >= 100 else f"{mean:.2f}"
            rows.append(row)
        return rows

    def table(self) -> str:
        """Plain text: means over seeds, 95 % intervals in brackets."""
        lines = aligned(self.rows())
        n = len(self.seeds)
        lines.append(
            f"\n{n} seed{'s' if n > 1 else ''}; means over seeds with 95 % intervals; "
            f"'- {self.baseline}' is the paired difference in points of accuracy. "
            "Forgetting as Chaudhry et al. define it."
        )
        if self.added:
            lines.append("* bound, always included.")
        return "\n".join(line.rstrip() for line in lines) + "\n"

    def save(self, folder: Path) -> None:
        """Writes compare.json and compare.txt."""
        run_folder = RunFolder(folder)
        content = json.dumps(asdict(self), indent=1)
        run_folder.write_text("compare.json", content + "\n")
        run_folder.write_text("compare.txt", self.table())


def load_comparison(folder: Path) -> Comparison:
    """The comparison that `save` wrote."""
    path = Path(folder) / "compare.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no comparison in {folder}: run `compare --out {folder}` first"
        )
    try:
        content = json.loads(path.read_text("utf-8"))
        names = ("seeds", "values", "matrices", "configs", "baseline", "added")
        found = {name: content[name] for name in names}
        found |= {"seeds": tuple(found["seeds"]), "added": tuple(found["added"])}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}; run `compare` again") from error
    return Comparison(**found)


def compare(
    configs: Mapping[str, Config],
    seeds: Iterable[int] = range(5),
    *,
    out: Path | None = None,
    baseline: str = "finetune",
    add_bounds: bool = True,
    watch: Callable[[str, Result], None] | None = None,
) -> Comparison:
    """Trains every config with every seed.

    Args:
        configs: {label: config}; their seed, out and resume are set here.
        seeds: at least two, for an interval.
        out: folder for the runs, compare.json and compare.txt. A run that is complete
            there is not repeated, and an interrupted one goes on.
        baseline: label that paired differences refer to.
        add_bounds: adds fine-tuning and joint training, dense, if no config has that
            strategy, with the other settings of the first config.
        watch: called as watch(label, result) after each run.
    """
    seeds, configs = tuple(seeds), dict(configs)
    if not configs:
        raise ValueError("nothing to compare: give at least one config")
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise ValueError(f"compare needs two or more different seeds, got {seeds}")
    added = []
    if add_bounds:
        first = next(iter(configs.values()))
        strategies = [c.strategy for c in configs.values()]
        for name in reversed(BOUNDS):
            if name in strategies or (name == "joint" and first.online):
                continue
            label = name if name not in configs else f"{name} bound"
            configs = {label: bound(first, name), **configs}
            added.append(label)
    if baseline not in configs:
        raise ValueError(f"baseline {baseline!r} is none of {list(configs)}")

    values: dict[str, dict[str, list[float]]] = {}
    matrices: dict[str, list[list[list[float]]]] = {}
    with tqdm(total=len(configs) * len(seeds), unit="run", leave=False) as progress:
        for label, config in configs.items():
            values[label], matrices[label] = {}, []
            for seed in seeds:
                progress.set_description(f"{label} seed {seed}")
                result = train(_placed(label, config, seed, out))
                for name, interval in result.metrics.items():
                    values[label].setdefault(name, []).append(float(interval.value))
                for name, cost in result.cost.items():
                    values[label].setdefault(name, []).append(float(cost))
                matrices[label].append(result.matrix.tolist())
                if watch is not None:
                    watch(label, result)
                progress.update()
    described = {label: _described(config) for label, config in configs.items()}
    comparison = Comparison(seeds, values, matrices, described, baseline, tuple(added))
    if out is not None:
        comparison.save(Path(out))
    return comparison


def bound(config: Config, strategy: str) -> Config:
    """The same stream and model, dense, with a strategy that has no options."""
    return replace(
        config, strategy=strategy, strategy_options={}, method="dense", options={},
        keep_dense=(), backend="masked",
    )  # fmt: skip


def _placed(label: str, config: Config, seed: int, out: Path | None) -> Config:
    """The config of one run, in a folder of its own.

    The folder's name holds a hash of the settings, so that other settings never meet
    old results.
    """
    config = replace(config, seed=seed, out=None, resume=False)
    if out is None:
        return config
    content = json.dumps(settings(config), sort_keys=True).encode()
    name = f"{_file_name(label)}-{hashlib.sha256(content).hexdigest()[:8]}"
    return replace(config, out=Path(out) / "runs" / name, resume=True)


def _described(config: Config) -> dict[str, Any]:
    return {key: value for key, value in settings(config).items() if key != "seed"}


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in label)
