"""Commands: data, train, evaluate, compare, report.

sparsekit recsys data --dataset clicks.csv --split global_time
sparsekit recsys train --config lightgcn-ml100k --out runs/lightgcn
sparsekit recsys compare --config lightgcn-ml100k --models mf --seeds 5 --out runs/c
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from apps.common import options, processes, verbs
from apps.common.config import parse
from apps.common.statistics import Interval
from apps.common.tables import aligned, shown
from apps.recsys import figure, report
from apps.recsys.augment_cli import AUGMENT_VERBS
from apps.recsys.budget_cli import BUDGET_VERBS
from apps.recsys.compare import compare
from apps.recsys.comparison import load_comparison
from apps.recsys.config import MODELS, PRESETS, Config, Source
from apps.recsys.evaluation import new_users, of_items
from apps.recsys.forget_cli import FORGET_VERBS
from apps.recsys.forgetting.forget import AUDIT
from apps.recsys.metrics import (
    by_activity,
    by_popularity,
    summary,
)
from apps.recsys.result import Result, load_result
from apps.recsys.serving_cli import SERVING_VERBS
from apps.recsys.train import train
from apps.recsys.tuning import BASELINES, STARTS
from sparsekit.spelling import choice


@dataclass(frozen=True)
class EvaluateConfig(verbs.FinishedConfig):
    """Prints a finished run's metrics, also for slices of users and items."""


@dataclass(frozen=True)
class CompareConfig(Config):
    """Tunes several models alike and tests them with several seeds.

    Popularity, ItemKNN and EASE are always included. `model`, with the settings of this
    command, is compared with `models` and with itself under `methods`. Options go to
    every method that has a field of that name.

    Args:
        models: others of lightgcn, mf, multvae, neumf, als, co-occurrence.
        methods: names or files of sparsity methods.
        trials: settings that are tried on validation for each; 1 for none.
        seeds: how many seeds, from `seed` on.
        baseline: label that differences refer to.
    """

    unused = verbs.GOES_ON

    models: tuple[str, ...] = ("mf",)
    methods: tuple[str, ...] = ()
    trials: int = 5
    seeds: int = 5
    baseline: str = "ease"

    def __post_init__(self) -> None:
        """Options belong to other methods than `method`: checked for each run."""


def main(argv: list[str] | None = None) -> int:
    """Trains recommenders, dense or sparse; compares models over seeds.

    Returns 2 for a usage error, with a message that names the fix.
    """
    return verbs.run(argv, "recsys", VERBS, PRESETS, models=lambda: MODELS)


def data_command(argv: list[str]) -> None:
    """Read a data set, split it, print what it is like and whether it leaks.

    sparsekit recsys data --dataset ml100k --split global_time
    """
    config = parse(Source, argv, presets=PRESETS, beside=Config)
    facts = report.report(config.load())
    verbs.tell(facts, report.as_text(facts))


def train_command(argv: list[str]) -> None:
    """Train one model and test it once.

    sparsekit recsys train --config lightgcn-ml100k --out runs/lightgcn
    sparsekit recsys train --resume --out runs/lightgcn
    """
    config = verbs.resumable(Config, argv, PRESETS)
    # On a terminal only, on stderr: epochs, and the time that is left at most.
    hidden = True if processes.rank() else None
    with tqdm(total=config.epochs, unit="epoch", leave=False, disable=hidden) as bar:
        result = train(config, lambda epoch, *_: bar.update(epoch - bar.n))
    verbs.tell(verbs.measured(result), *lines(result))


def evaluate_command(argv: list[str]) -> None:
    """Show a finished run: metrics, by activity of users, by popularity of items.

    sparsekit recsys evaluate --run runs/lightgcn
    """
    config = parse(EvaluateConfig, argv)
    result = load_result(verbs.required(config.run, "run"))
    parts = slices(result)
    told = [
        {"slice": name, "metrics": verbs.plain(found)} for name, found in parts.items()
    ]
    table = [
        {"slice": name, "users": str(next(iter(found.values())).n)}
        | {metric: shown(interval, 4) for metric, interval in found.items()}
        for name, found in parts.items()
    ]
    content = verbs.measured(result) | {"slices": told}
    verbs.tell(content, *lines(result), "", *aligned(table))


def slices(result: Result, k: int = 20) -> dict[str, dict[str, Interval]]:
    """Recall and NDCG for groups of users, and of items."""
    data, tested = result.data, result.evaluation
    wanted, values = (f"ndcg@{k}", f"recall@{k}"), {}
    for name, chosen in by_activity(data.train).items():
        values[f"{name} users"] = {m: v[chosen] for m, v in tested.values.items()}
    for name, chosen in by_popularity(data.train).items():
        values[f"{name} items"] = of_items(tested, data, chosen, [k])
    return {name: summary({m: v[m] for m in wanted}) for name, v in values.items()}


def compare_command(argv: list[str]) -> None:
    """Tune models alike, test them with several seeds; print a table.

    sparsekit recsys compare --config lightgcn-ml100k --models mf --out runs/compare
    """
    config = parse(CompareConfig, argv, presets=PRESETS)
    baselines = [name for name in config.models if name in BASELINES]
    seeds = range(config.seed, config.seed + config.seeds)
    comparison = compare(
        compared(config), seeds, trials=config.trials, out=config.out,
        baselines=baselines, baseline=config.baseline,
    )  # fmt: skip
    verbs.tell(comparison.content(), comparison.table())


def compared(config: CompareConfig) -> dict[str, Config]:
    """{label: config}: the model itself, the others, and itself under each method."""
    dense = verbs.narrowed(config, Config, options={}, method="dense")
    wanted = [(config.model, config.method)]
    wanted += [(m, config.method) for m in config.models if m not in BASELINES]
    wanted += [(config.model, method) for method in config.methods]
    known = {method: options.fields_of(method) for _, method in wanted}
    own = verbs.divided(config.options, known)
    configs = {}
    for model, method in dict.fromkeys(wanted):
        if model not in MODELS:
            known_models = (*MODELS, *BASELINES)
            raise ValueError(choice(f"no model {model!r}", model, known_models))
        start = {} if model == config.model else STARTS[model]
        label = model if method == "dense" else f"{model} {Path(method).name}"
        changes = {"model": model, "method": method, "options": own[method]}
        configs[label] = replace(dense, **(changes | start))
    return configs


def lines(result: Result) -> list[str]:
    """Metrics with intervals over test users, then costs."""
    n = next(iter(result.metrics.values())).n
    new = new_users(result.data, "test")
    left_out = f"; left out: {new:,} who are new since training" if new else ""
    audits = [
        f"{name}: {shown(interval, 4)}"
        for name, interval in result.metrics.items()
        if name.startswith(AUDIT)
    ]
    return [
        *aligned(metric_rows(result)),
        f"means over {n:,} users of the test part, with 95 % intervals{left_out}\n",
        *audits,
        f"{'epoch':18}{result.epoch} of {len(result.history)} trained",
        *verbs.cost_lines(result.cost),
    ]


def metric_rows(result: Result) -> list[dict[str, str]]:
    """A row for each metric, a column for each length of the lists."""
    ranked = [name for name in result.metrics if not name.startswith(AUDIT)]
    columns = list(dict.fromkeys(name.partition("@")[2] for name in ranked))
    rows: dict[str, dict[str, str]] = {}
    for name in ranked:
        interval = result.metrics[name]
        metric, _, k = name.partition("@")
        blank = {"metric": metric} | {f"@{column}": "" for column in columns}
        row = rows.setdefault(metric, blank)
        alone = math.isnan(interval.low)
        row[f"@{k}"] = f"{interval.value:.4f}" if alone else shown(interval, 4)
    return list(rows.values())


VERBS = {
    "data": data_command,
    "train": train_command,
    "evaluate": evaluate_command,
    "compare": compare_command,
    "report": verbs.reporter("recsys", load_comparison, figure.draw),
    **BUDGET_VERBS,
    **AUGMENT_VERBS,
    **SERVING_VERBS,
    **FORGET_VERBS,
}
