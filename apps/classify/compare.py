"""Methods x seeds: values of every seed, intervals, paired differences.

    comparison = compare({"rigl": Config(method="rigl")}, seeds=range(5))
    print(comparison.table())

A seed draws the split, the initial weights and the order of the data, and is the same
for every method, so differences are paired by seed.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from apps.classify.config import Config
from apps.classify.result import Result
from apps.classify.train import train
from apps.common.config import settings
from apps.common.runs import RunFolder
from apps.common.statistics import Interval, mean_interval, paired_interval
from apps.common.tables import aligned, percent

METRICS = ("accuracy", "nll", "brier", "ece")
COSTS = (
    "params_total", "params_active", "bytes_on_disk",
    "train_flops", "train_seconds", "peak_rss_mb",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Measured values of every label and seed.

    values: {label: {metric or cost: one value a seed}}; configs: {label: settings
    but the seed}; baseline: label that differences refer to; added: baselines that
    were not asked for.
    """

    seeds: tuple[int, ...]
    values: dict[str, dict[str, list[float]]]
    configs: dict[str, dict]
    baseline: str
    added: tuple[str, ...] = ()

    def interval(self, label: str, metric: str = "accuracy") -> Interval:
        """Mean over seeds with its 95 % interval (Student t)."""
        return mean_interval(self._of(label, metric))

    def difference(
        self, label: str, metric: str = "accuracy", baseline: str | None = None
    ) -> Interval:
        """Mean of label - baseline over seeds, paired, with its 95 % interval."""
        other = self._of(baseline or self.baseline, metric)
        return paired_interval(self._of(label, metric), other)

    def _of(self, label: str, metric: str) -> list[float]:
        if label not in self.values:
            raise ValueError(f"no run is labelled {label!r}; {list(self.values)} are")
        if metric not in self.values[label]:
            raise ValueError(f"no metric {metric!r}; {list(self.values[label])} exist")
        return self.values[label][metric]

    def rows(self) -> list[dict[str, str]]:
        """The table's cells, one row a label."""
        rows = []
        for label in self.values:
            row = {"run": label + (" *" if label in self.added else "")}
            row["accuracy %"] = percent(self.interval(label))
            if label == self.baseline:
                row[f"- {self.baseline}"] = "-"
            else:
                row[f"- {self.baseline}"] = percent(self.difference(label), sign=True)
            row["nll"] = f"{self.interval(label, 'nll').value:.3f}"
            row["ece %"] = f"{100 * self.interval(label, 'ece').value:.1f}"
            for cost, unit, name in (
                ("params_active", 1, "active"),
                ("bytes_on_disk", 1e3, "kB"),
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
            f"'- {self.baseline}' is the paired difference in points of accuracy."
        )
        if self.added:
            lines.append("* baseline, always included.")
        return "\n".join(line.rstrip() for line in lines) + "\n"

    def save(self, folder: Path) -> None:
        """Writes compare.json and compare.txt."""
        summary = {
            label: {
                "mean": asdict(self.interval(label)),
                "difference": asdict(self.difference(label)),
            }
            for label in self.values
        }
        content = asdict(self) | {"accuracy": summary}
        run_folder = RunFolder(folder)
        run_folder.write_text("compare.json", json.dumps(content, indent=1) + "\n")
        run_folder.write_text("compare.txt", self.table())


def load_comparison(folder: Path) -> Comparison:
    """The comparison that `save` wrote."""
    path = Path(folder) / "compare.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no comparison in {folder}: run `compare --out {folder}` first"
        )
    try:
        content = json.loads(path.read_text())
        fields = ("seeds", "values", "configs", "baseline", "added")
        found = {name: content[name] for name in fields}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}; run `compare` again") from error
    found |= {"seeds": tuple(found["seeds"]), "added": tuple(found["added"])}
    return Comparison(**found)


def compare(
    configs: Mapping[str, Config],
    seeds: Iterable[int] = range(5),
    *,
    out: Path | None = None,
    baseline: str = "static",
    add_baselines: bool = True,
    watch: Callable[[str, Result], None] | None = None,
) -> Comparison:
    """Trains every config with every seed.

    Args:
        configs: {label: config}; their seed, out and resume are set here.
        seeds: at least two, for an interval.
        out: folder for the runs, compare.json and compare.txt. A run that is complete
            there is not repeated, and an interrupted one goes on.
        baseline: label that paired differences refer to.
        add_baselines: adds "dense" and "static" (random connections, fixed) if no
            config has that method, with the other settings of the first config.
        watch: called as watch(label, result) after each run.
    """
    seeds, configs = tuple(seeds), dict(configs)
    if not configs:
        raise ValueError("nothing to compare: give at least one config")
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise ValueError(f"compare needs two or more different seeds, got {seeds}")
    added = []
    if add_baselines:
        first, methods = (
            next(iter(configs.values())),
            [c.method for c in configs.values()],
        )
        for method in ("static", "dense"):
            if method not in methods:
                label = method if method not in configs else f"{method} baseline"
                configs = {label: replace(first, method=method, options={}), **configs}
                added.append(label)
    if baseline not in configs:
        raise ValueError(f"baseline {baseline!r} is none of {list(configs)}")

    values: dict[str, dict[str, list[float]]] = {}
    progress = tqdm(total=len(configs) * len(seeds), unit="run", leave=False)
    for label, config in configs.items():
        measured: dict[str, list[float]] = {name: [] for name in (*METRICS, *COSTS)}
        for seed in seeds:
            progress.set_description(f"{label} seed {seed}")
            metrics, costs = _run(label, config, seed, out, watch)
            for name in METRICS:
                measured[name].append(metrics[name])
            for name in COSTS:
                measured[name].append(costs[name])
            progress.update()
        values[label] = measured
    progress.close()
    described = {label: _described(config) for label, config in configs.items()}
    comparison = Comparison(seeds, values, described, baseline, tuple(added))
    if out is not None:
        comparison.save(Path(out))
    return comparison


def _run(
    label: str,
    config: Config,
    seed: int,
    out: Path | None,
    watch: Callable[[str, Result], None] | None,
) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics and costs of one run, from its folder if it is complete there.

    The folder's name holds a hash of the settings, so that other settings never meet
    old results.
    """
    config = replace(config, seed=seed, out=None, resume=False)
    if out is not None:
        content = json.dumps(settings(config), sort_keys=True).encode()
        name = f"{_file_name(label)}-{hashlib.sha256(content).hexdigest()[:8]}"
        config = replace(config, out=Path(out) / "runs" / name, resume=True)
    result = train(config)
    if watch is not None:
        watch(label, result)
    metrics = {name: float(i.value) for name, i in result.metrics.items()}
    return metrics, {name: float(value) for name, value in result.cost.items()}


def _described(config: Config) -> dict:
    return {key: value for key, value in settings(config).items() if key != "seed"}


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in label)
