"""Strategies x seeds: values of every seed, intervals, paired differences.

    comparison = compare({"er": Config(strategy="er")}, seeds=range(5))
    print(comparison.table())

A seed draws the parts, the initial weights, the order of the data and what the buffer
keeps, and is the same for every strategy, so differences are paired by seed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from apps.common import comparison as common
from apps.continual.config import Config
from apps.continual.result import Result
from apps.continual.train import train

BOUNDS = ("finetune", "joint")


SHOWN = (
    ("task_accuracy", "Task-IL %"), ("forgetting", "forgetting %"), ("ece", "ece %"),
)  # fmt: skip
COLUMNS = (
    ("buffer_bytes", 1e3, "buffer kB"), ("bytes_on_disk", 1e3, "model kB"),
    ("train_flops", 1e9, "train GFLOP"), ("train_seconds", 1, "train s"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Comparison(common.Comparison):
    """Measured values of every label and seed, see `apps.common.comparison`.

    matrices: {label: one accuracy matrix a seed, nested lists}.
    """

    NOTE = " Forgetting as Chaudhry et al. define it."
    ADDED = "bound"

    matrices: dict[str, list[list[list[float]]]]

    def rows(self) -> list[dict[str, str]]:
        """The table's cells, one row a label."""
        return [
            self.first_cells(label)
            | {name: self._percent(label, metric) for metric, name in SHOWN}
            | self.cost_cells(label, COLUMNS)
            for label in self.values
        ]

    def _percent(self, label: str, metric: str) -> str:
        if metric not in self.values[label]:
            return "-"
        return f"{100 * self.interval(label, metric).value:.1f}"


load_comparison = Comparison.load


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
        configs, seeds, out: see `apps.common.comparison`.
        baseline: label that paired differences refer to.
        add_bounds: adds fine-tuning and joint training, dense, if no config has that
            strategy, with the other settings of the first config.
        watch: called as watch(label, result) after each run.
    """
    seeds, configs = common.checked(configs, seeds, out)
    first, known = next(iter(configs.values())), {c.strategy for c in configs.values()}
    known |= {"joint"} if first.online else set()
    bounds = {
        name: bound(first, name)
        for name in reversed(BOUNDS)
        if add_bounds and name not in known
    }
    configs, added = common.with_baselines(configs, bounds, "bound", baseline)
    matrices: dict[str, list[list[list[float]]]] = {label: [] for label in configs}

    def keep(label: str, result: Result) -> None:
        matrices[label].append(result.matrix.tolist())
        if watch is not None:
            watch(label, result)

    values = common.measured(configs, seeds, out, train, keep)
    comparison = Comparison(
        seeds=seeds, values=values, matrices=matrices,
        configs=common.described(configs), baseline=baseline, added=added,
    )  # fmt: skip
    if out is not None:
        comparison.save(out)
    return comparison


def bound(config: Config, strategy: str) -> Config:
    """The same stream and model, dense, with a strategy that has no options."""
    return replace(
        config, strategy=strategy, strategy_options={}, method="dense", options={},
        keep_dense=(), backend="masked",
    )  # fmt: skip
