"""Methods x pruners x seeds: gaps to retraining, paired over seeds.

    comparison = compare({"ft": Config(...), "ft omp": Config(pruner="omp")}, range(5))
    print(comparison.table())
    comparison.difference("ft omp", baseline="ft")   # does the gap close?

Original and reference are trained once for all methods that share them.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from apps.common import comparison as common
from apps.common.comparison import without_seed
from apps.common.runs import RunFolder, is_finished
from apps.common.tables import percent, plain
from apps.unlearning.config import Config
from apps.unlearning.metrics import NAMES
from apps.unlearning.result import Result, load_result
from apps.unlearning.train import Prepared, experiment, prepare, shares_original


@dataclass(frozen=True)
class Comparison(common.Comparison):
    """Measured values of every label and seed, see `apps.common.comparison`.

    Metrics are those of `Result.metrics`, and its costs; "gap" where none is named.
    """

    METRIC = "gap"

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
        return plain(
            self.rows(),
            f"\n{len(self.seeds)} seeds; means, in round brackets the difference to "
            "retraining, in",
            "square ones 95 % intervals over seeds. mean gap: of the sizes of the four",
            "differences; run time: in percent of retraining.",
        )


load_comparison = Comparison.load


def compare(
    configs: Mapping[str, Config],
    seeds: Iterable[int] = range(5),
    *,
    out: Path | None = None,
    watch: Callable[[str, Result, Prepared | None], None] | None = None,
) -> Comparison:
    """Runs every config with every seed.

    Args:
        configs, seeds, out: see `apps.common.comparison`.
        watch: called as watch(label, result, prepared) after each run; prepared is None
            for one that was complete.
    """
    seeds, configs = common.checked(configs, seeds, out)
    values: common.Values = {label: {} for label in configs}
    total = len(configs) * len(seeds)
    with tqdm(total=total, unit="run", leave=False, disable=None) as progress:
        for seed in seeds:
            originals: dict[str, Prepared] = {}
            for group in _groups(configs):
                prepared: Prepared | None = None
                for label in group:
                    progress.set_description(f"{label} seed {seed}")
                    seeded = replace(configs[label], seed=seed)
                    config = common.placed(label, seeded, out)
                    if is_finished(config.out):
                        result, used = load_result(config.out, config), None
                    else:
                        if prepared is None:
                            prepared = _prepared(config, originals)
                        result, used = experiment(config, prepared), prepared
                        if config.out is not None:
                            RunFolder(config.out).write_config(config)
                    common.record(values[label], result.metrics, result.cost)
                    if watch is not None:
                        watch(label, result, used)
                    progress.update()
    baseline = next(iter(configs))
    comparison = Comparison(seeds, values, common.described(configs), baseline)
    if out is not None:
        comparison.save(out)
    return comparison


def _groups(configs: Mapping[str, Config]) -> list[list[str]]:
    """Labels that share original and reference."""
    groups: dict[str, list[str]] = {}
    for label, config in configs.items():
        shared = without_seed(config)
        method, options = shared.pop("method"), shared.pop("options")
        if method == "sisa":  # it decides how the original is trained
            shared |= {"method": method, "options": options}
        groups.setdefault(json.dumps(shared, sort_keys=True), []).append(label)
    return list(groups.values())


def _prepared(config: Config, originals: dict[str, Prepared]) -> Prepared:
    """`prepare`, with an original that another forget set has had trained."""
    if not shares_original(config):
        return prepare(config)
    shared = without_seed(config)
    sisa = shared["options"] if shared["method"] == "sisa" else None
    for name in ("forget", "method", "options", "reference"):
        shared.pop(name)
    key = json.dumps([shared, sisa], sort_keys=True)
    prepared = prepare(config, before=originals.get(key))
    originals.setdefault(key, prepared)
    return prepared
