"""Methods x pruners x seeds: gaps to retraining, paired over seeds.

    comparison = compare({"ft": Config(...), "ft omp": Config(pruner="omp")}, range(5))
    print(comparison.table())
    comparison.difference("ft omp", "ft", "gap")     # does the gap close?

Original and reference are trained once for all methods that share them.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from apps.common.config import settings
from apps.common.runs import RunFolder
from apps.common.statistics import Interval, mean_interval, paired_interval
from apps.common.tables import aligned, percent
from apps.unlearning.config import Config
from apps.unlearning.metrics import NAMES
from apps.unlearning.result import Result, is_finished, load_result
from apps.unlearning.train import Prepared, experiment, prepare, shares_original


@dataclass(frozen=True)
class Comparison:
    """values: {label: {metric: [a number a seed]}}, in the order of `seeds`.

    Metrics are those of `Result.metrics`, and its costs. configs: {label: settings}.
    """

    seeds: tuple[int, ...]
    values: dict[str, dict[str, list[float]]]
    configs: dict[str, dict]

    def interval(self, label: str, metric: str = "gap") -> Interval:
        """Mean over seeds, with its 95 % interval."""
        return mean_interval(self.per_seed(label, metric))

    def difference(self, label: str, other: str, metric: str = "gap") -> Interval:
        """label - other, paired over seeds."""
        return paired_interval(
            self.per_seed(label, metric), self.per_seed(other, metric)
        )

    def per_seed(self, label: str, metric: str = "gap") -> list[float]:
        if label not in self.values:
            raise KeyError(f"no run {label!r}; {list(self.values)} exist")
        if metric not in self.values[label]:
            raise KeyError(f"no metric {metric!r}; {list(self.values[label])} exist")
        return self.values[label][metric]

    def rows(self) -> list[dict[str, str]]:
        """The table's cells: each metric, and in brackets its signed gap."""
        rows = []
        for label in self.values:
            row = {"run": label}
            for name in NAMES:
                value = 100 * self.interval(label, name).value
                gap = 100 * self.interval(label, f"{name} gap").value
                row[f"{name} %"] = f"{value:.1f} ({gap:+.1f})"
            row["mean gap"] = percent(self.interval(label))
            row["run time %"] = percent(self.interval(label, "run time"))
            rows.append(row)
        return rows

    def table(self) -> str:
        """Plain text: means over seeds, 95 % intervals in square brackets."""
        n = len(self.seeds)
        lines = [
            *aligned(self.rows()),
            f"\n{n} seeds; means, in round brackets the difference to retraining, in",
            "square ones 95 % intervals over seeds. mean gap: of the sizes of the four",
            "differences; run time: in percent of retraining.",
        ]
        return "\n".join(line.rstrip() for line in lines) + "\n"

    def save(self, folder: Path) -> None:
        """Writes compare.json and compare.txt."""
        run_folder = RunFolder(folder)
        run_folder.write_text("compare.json", json.dumps(asdict(self), indent=1) + "\n")
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
        found = {name: content[name] for name in ("seeds", "values", "configs")}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}; run `compare` again") from error
    return Comparison(**(found | {"seeds": tuple(found["seeds"])}))


def compare(
    configs: Mapping[str, Config],
    seeds: Iterable[int] = range(5),
    *,
    out: Path | None = None,
    watch: Callable[[str, Result, Prepared | None], None] | None = None,
) -> Comparison:
    """Runs every config with every seed.

    Args:
        configs: {label: config}; their seed, out and resume are set here.
        seeds: at least two, for an interval.
        out: folder for the runs, compare.json and compare.txt. A run that is complete
            there is not repeated.
        watch: called as watch(label, result, prepared) after each run; prepared is None
            for one that was complete.
    """
    seeds, configs = tuple(seeds), dict(configs)
    if not configs:
        raise ValueError("nothing to compare: give at least one config")
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise ValueError(f"compare needs two or more different seeds, got {seeds}")
    values: dict[str, dict[str, list[float]]] = {label: {} for label in configs}
    progress = tqdm(total=len(configs) * len(seeds), unit="run", leave=False)
    for seed in seeds:
        originals: dict[str, Prepared] = {}
        for group in _groups(configs):
            prepared: Prepared | None = None
            for label in group:
                progress.set_description(f"{label} seed {seed}")
                config = _placed(label, configs[label], seed, out)
                if is_finished(config.out):
                    result, used = load_result(config.out, config), None
                else:
                    if prepared is None:
                        prepared = _prepared(config, originals)
                    result, used = experiment(config, prepared), prepared
                    if config.out is not None:
                        RunFolder(config.out).write_config(config)
                measured = {n: i.value for n, i in result.metrics.items()}
                for name, value in (measured | result.cost).items():
                    values[label].setdefault(name, []).append(float(value))
                if watch is not None:
                    watch(label, result, used)
                progress.update()
    progress.close()
    described = {label: _described(config) for label, config in configs.items()}
    comparison = Comparison(seeds, values, described)
    if out is not None:
        comparison.save(Path(out))
    return comparison


def _groups(configs: Mapping[str, Config]) -> list[list[str]]:
    """Labels that share original and reference."""
    groups: dict[str, list[str]] = {}
    for label, config in configs.items():
        shared = _described(config)
        method, options = shared.pop("method"), shared.pop("options")
        if method == "sisa":  # it decides how the original is trained
            shared |= {"method": method, "options": options}
        groups.setdefault(json.dumps(shared, sort_keys=True), []).append(label)
    return list(groups.values())


def _prepared(config: Config, originals: dict[str, Prepared]) -> Prepared:
    """`prepare`, with an original that another forget set has had trained."""
    if not shares_original(config):
        return prepare(config)
    shared = _described(config)
    sisa = shared["options"] if shared["method"] == "sisa" else None
    for name in ("forget", "method", "options", "reference"):
        shared.pop(name)
    key = json.dumps([shared, sisa], sort_keys=True)
    prepared = prepare(config, before=originals.get(key))
    originals.setdefault(key, prepared)
    return prepared


def _placed(label: str, config: Config, seed: int, out: Path | None) -> Config:
    """The config of one run; the folder's name holds a hash of its settings, so that
    other settings never meet old results."""
    config = replace(config, seed=seed, out=None, resume=False)
    if out is None:
        return config
    content = json.dumps(settings(config), sort_keys=True).encode()
    word = "".join(c if c.isalnum() or c in "-_." else "-" for c in label)
    name = f"{word}-{hashlib.sha256(content).hexdigest()[:8]}"
    return replace(config, out=Path(out) / "runs" / name)


def _described(config: Config) -> dict:
    return {key: value for key, value in settings(config).items() if key != "seed"}
