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
from sparsekit.spelling import choice

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
    added = []
    if add_baselines:
        first = next(iter(configs.values()))
        methods = [c.method for c in configs.values()]
        for method in ("static", "dense"):
            if method not in methods:
                label = method if method not in configs else f"{method} baseline"
                configs = {label: replace(first, method=method, options={}), **configs}
                added.append(label)
    if baseline not in configs:
        raise ValueError(choice(f"no baseline {baseline!r}", baseline, configs))
    values = common.measured(configs, seeds, out, train, watch)
    comparison = Comparison(
        seeds, values, common.described(configs), baseline, tuple(added)
    )
    if out is not None:
        comparison.save(out)
    return comparison
