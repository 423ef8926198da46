"""Methods x seeds: values of every seed, intervals, paired differences.

    comparison = compare({"rigl": Config(method="rigl")}, seeds=range(5))
    print(comparison.table())

A seed draws the split, the initial weights and the order of the data, and is the same
for every method, so differences are paired by seed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from apps.classify.config import Config
from apps.classify.result import Result
from apps.classify.train import train
from apps.common import comparison as common

COLUMNS = (
    ("params_active", 1, "active"), ("bytes_on_disk", 1e3, "kB"),
    ("train_flops", 1e9, "train GFLOP"), ("train_seconds", 1, "train s"),
)  # fmt: skip


@dataclass(frozen=True)
class Comparison(common.Comparison):
    """Measured values of every label and seed, see `apps.common.comparison`."""

    def rows(self) -> list[dict[str, str]]:
        """The table's cells, one row a label."""
        return [
            self.first_cells(label)
            | {
                "nll": f"{self.interval(label, 'nll').value:.3f}",
                "ece %": f"{100 * self.interval(label, 'ece').value:.1f}",
            }
            | self.cost_cells(label, COLUMNS)
            for label in self.values
        ]

    def content(self) -> dict[str, Any]:
        summary = {
            label: {
                "mean": asdict(self.interval(label)),
                "difference": asdict(self.difference(label)),
            }
            for label in self.values
        }
        return asdict(self) | {"accuracy": summary}


load_comparison = Comparison.load


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
        configs, seeds, out: see `apps.common.comparison`.
        baseline: label that paired differences refer to.
        add_baselines: adds "dense" and "static" (random connections, fixed) if no
            config has that method, with the other settings of the first config.
        watch: called as watch(label, result) after each run.
    """
    seeds, configs = common.checked(configs, seeds, out)
    first, known = next(iter(configs.values())), {c.method for c in configs.values()}
    baselines = {
        method: replace(first, method=method, options={})
        for method in ("static", "dense")
        if add_baselines and method not in known
    }
    configs, added = common.with_baselines(configs, baselines, "baseline", baseline)
    values = common.measured(configs, seeds, out, train, watch)
    comparison = Comparison(seeds, values, common.described(configs), baseline, added)
    if out is not None:
        comparison.save(out)
    return comparison
