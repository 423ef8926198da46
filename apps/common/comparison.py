"""A comparison: labels x seeds, each trained in a folder of its own.

    seeds, configs = checked(configs, seeds, out)
    values = measured(configs, seeds, out, train)
    comparison = Comparison(seeds, values, described(configs), baseline)
    comparison.interval("rigl"), comparison.difference("rigl")

configs: {label: config}, whose seed, out and resume are set here. seeds: at least two,
for an interval. out: folder for the runs, compare.json and compare.txt; a run that is
complete there is not repeated, and an interrupted one goes on.

A seed draws everything that is random and is the same for every label, so differences
are paired by seed. An app's own Comparison adds the rows of its table.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from tqdm import tqdm

from apps.common.config import RunConfig, settings
from apps.common.runs import MALFORMED, RunFolder
from apps.common.statistics import Interval, mean_interval, paired_interval
from apps.common.tables import percent, plain
from sparsekit import atomic
from sparsekit.spelling import choice

C = TypeVar("C", bound=RunConfig)
K = TypeVar("K", bound="Comparison")
Values = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Comparison:
    """Measured values of every label and seed.

    values: {label: {metric or cost: one value a seed}}; configs: {label: settings but
    the seed}; baseline: label that differences refer to; added: labels that were not
    asked for. METRIC: what is meant where none is named. NOTE: ends the line below the
    table. ADDED: what the added labels are.
    """

    METRIC: ClassVar[str] = "accuracy"
    NOTE: ClassVar[str] = ""
    ADDED: ClassVar[str] = "baseline"

    seeds: tuple[int, ...]
    values: Values
    configs: dict[str, dict[str, Any]]
    baseline: str
    added: tuple[str, ...] = ()

    def of(self, label: str, metric: str | None = None) -> list[float]:
        """One value a seed; ValueError for what was not measured."""
        return measured_of(self.values, label, metric or self.METRIC)

    def interval(self, label: str, metric: str | None = None) -> Interval:
        """Mean over seeds with its 95 % interval (Student t)."""
        return mean_interval(self.of(label, metric))

    def difference(
        self, label: str, metric: str | None = None, baseline: str | None = None
    ) -> Interval:
        """Mean of label - baseline over seeds, paired, with its 95 % interval."""
        other = self.of(baseline or self.baseline, metric)
        return paired_interval(self.of(label, metric), other)

    def rows(self) -> list[dict[str, str]]:
        """The table's cells, one row a label."""
        raise NotImplementedError

    def first_cells(self, label: str) -> dict[str, str]:
        """What a row begins with: the run, its accuracy, its paired difference."""
        difference = "-"
        if label != self.baseline:
            difference = percent(self.difference(label), sign=True)
        return {
            "run": label + (" *" if label in self.added else ""),
            "accuracy %": percent(self.interval(label)),
            f"- {self.baseline}": difference,
        }

    def cost_cells(
        self, label: str, columns: Iterable[tuple[str, float, str]]
    ) -> dict[str, str]:
        """Means of costs. columns: (cost, unit, title)."""
        means = {
            title: self.interval(label, cost).value / unit
            for cost, unit, title in columns
        }
        return {t: f"{m:.0f}" if m >= 100 else f"{m:.2f}" for t, m in means.items()}

    def table(self) -> str:
        """Plain text: means over seeds, 95 % intervals in brackets."""
        notes = [
            f"\n{len(self.seeds)} seeds; means over seeds with 95 % intervals; "
            f"'- {self.baseline}' is the paired difference in points of accuracy."
            f"{self.NOTE}"
        ]
        if self.added:
            notes.append(f"* {self.ADDED}, always included.")
        return plain(self.rows(), *notes)

    def measurements(self) -> list[dict[str, Any]]:
        """A row for each run, metric and seed, as compare.csv has them."""
        return [
            {"run": label, "metric": metric, "seed": seed, "value": value}
            for label, measured in self.values.items()
            for metric, values in measured.items()
            for seed, value in zip(self.seeds, values, strict=True)
        ]

    def content(self) -> dict[str, Any]:
        """What compare.json holds."""
        return asdict(self)

    def save(self, folder: Path) -> None:
        """Writes compare.json and compare.txt."""
        text = json.dumps(self.content(), indent=1) + "\n"
        RunFolder(folder).write_text("compare.json", text)
        RunFolder(folder).write_text("compare.txt", self.table())

    @classmethod
    def load(cls: type[K], folder: Path, **others: Any) -> K:
        """What `save` wrote. others: fields that are kept in another file.

        Raises FileNotFoundError, and ValueError for a damaged file.
        """
        path = Path(folder) / "compare.json"
        content = read_json(path)
        try:
            names = [f.name for f in fields(cls) if f.name not in others]
            found = {name: content[name] for name in names}
            for name, value in found.items():  # JSON has no tuples
                is_tuple = isinstance(value, list)
                found[name] = tuple(value) if is_tuple else value
            for measured in found["values"].values():
                for metric, numbers in measured.items():
                    if len(numbers) != len(found["seeds"]):
                        raise ValueError(f"{metric!r} has no value for each seed")
                    measured[metric] = [float(number) for number in numbers]
            return cls(**found, **others)
        except MALFORMED as error:
            raise damaged(path, error) from error


def measured_of(table: Mapping[str, Mapping[str, Any]], label: str, name: str) -> Any:
    """A cell of {label: {metric: ...}}; ValueError that lists what there is."""
    if label not in table:
        raise ValueError(f"no run is labelled {label!r}; {list(table)} are")
    if name not in table[label]:
        raise ValueError(f"no metric {name!r} of {label}; {list(table[label])} exist")
    return table[label][name]


def read_json(path: Path) -> Any:
    """The content of a comparison's file.

    Raises FileNotFoundError, and ValueError for a damaged one.
    """
    if not path.is_file():
        folder = path.parent
        raise FileNotFoundError(
            f"no comparison in {folder}: run `compare --out {folder}` first"
        )
    try:
        return json.loads(path.read_text("utf-8"))
    except MALFORMED as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> ValueError:
    """The error of a comparison's file that cannot be used."""
    reason = f"no {error}" if isinstance(error, KeyError) else error
    return ValueError(f"{path} is damaged ({reason}): run `compare` again")


def checked(
    configs: Mapping[str, C], seeds: Iterable[int], out: Path | None = None
) -> tuple[tuple[int, ...], dict[str, C]]:
    """Seeds and configs of a comparison that makes sense, in a folder that takes it.

    Raises ValueError for no config, or seeds that give no interval, OSError for a
    folder that nothing can be written to: now, not after hours of training.
    """
    seeds = tuple(seeds)
    if not configs:
        raise ValueError("nothing to compare: give at least one config")
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise ValueError(f"compare needs two or more different seeds, got {seeds}")
    if out is not None:
        atomic.require_writable(out)
    return seeds, dict(configs)


def with_baselines(
    configs: Mapping[str, C], baselines: Mapping[str, C], kind: str, baseline: str
) -> tuple[dict[str, C], tuple[str, ...]]:
    """Configs with baselines before them, and the labels that these have.

    A name that is taken becomes "NAME KIND". ValueError unless `baseline` is a label.
    """
    found, added = dict(configs), []
    for name, config in baselines.items():
        label = name if name not in found else f"{name} {kind}"
        found = {label: config, **found}
        added.append(label)
    if baseline not in found:
        raise ValueError(choice(f"no baseline {baseline!r}", baseline, found))
    return found, tuple(added)


def measured(
    configs: Mapping[str, C],
    seeds: Iterable[int],
    out: Path | None,
    train: Callable[[C], Any],
    watch: Callable[[str, Any], None] | None = None,
) -> Values:
    """Trains every config with every seed: {label: {metric or cost: a value a seed}}.

    watch: called as watch(label, result) after each run.
    """
    values: Values = {label: {} for label in configs}
    for label, result in trained(configs, seeds, out, train):
        record(values[label], result.metrics, result.cost)
        if watch is not None:
            watch(label, result)
    return values


def trained(
    configs: Mapping[str, C],
    seeds: Iterable[int],
    out: Path | None,
    train: Callable[[C], Any],
) -> Iterator[tuple[str, Any]]:
    """Trains every config with every seed: (label, result), with a progress bar."""
    seeds = tuple(seeds)
    with tqdm(
        total=len(configs) * len(seeds), unit="run", leave=False, disable=None
    ) as progress:
        for label, config in configs.items():
            for seed in seeds:
                progress.set_description(f"{label} seed {seed}")
                yield label, train(placed(label, replace(config, seed=seed), out))
                progress.update()


def placed(label: str, config: C, out: Path | None, **more: Any) -> C:
    """The config of one run, in a folder of its own below `out` that it resumes.

    The folder's name holds a hash of the settings, so that other settings never meet
    old results. more: what decides the outcome beside the settings.
    """
    config = replace(config, out=None, resume=False)
    if out is None:
        return config
    word = "".join(c if c.isalnum() or c in "-_." else "-" for c in label)
    folder = Path(out) / "runs" / f"{word}-{digest(config, **more)}"
    return replace(config, out=folder, resume=True)


def digest(config: RunConfig, **more: Any) -> str:
    """Eight hexadecimal digits that stand for the settings."""
    content = json.dumps(settings(config) | more, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:8]


def described(configs: Mapping[str, RunConfig]) -> dict[str, dict[str, Any]]:
    """{label: settings but the seed}."""
    return {label: without_seed(config) for label, config in configs.items()}


def without_seed(config: RunConfig) -> dict[str, Any]:
    return {key: value for key, value in settings(config).items() if key != "seed"}


def record(
    values: dict[str, list[float]],
    metrics: Mapping[str, Interval],
    cost: Mapping[str, float | None],
) -> None:
    """Appends a run's metrics and counted costs to the values of its label."""
    numbers = {name: interval.value for name, interval in metrics.items()}
    numbers |= {name: value for name, value in cost.items() if value is not None}
    for name, value in numbers.items():
        values.setdefault(name, []).append(float(value))
