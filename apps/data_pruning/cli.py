"""Commands: data, train, score, select, compare, report.

sparsekit data-pruning score --config cnn-mnist5k --score el2n --out runs/scores
sparsekit data-pruning select --scores runs/scores/scores.parquet --keep 0.5 --out runs/half
sparsekit data-pruning train --config cnn-mnist5k --subset runs/half/subset.csv
sparsekit data-pruning compare --strategies el2n ccs --seeds 5 --out runs/compare
"""  # noqa: E501

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

from apps.common import images, verbs
from apps.common.config import VerbConfig, parse
from apps.common.runs import RunFolder
from apps.common.tables import percent
from apps.data_pruning import data as sources
from apps.data_pruning import figure, files, scoring
from apps.data_pruning.comparison import load_comparison
from apps.data_pruning.config import PRESETS, Config, DataConfig, TrainConfig
from apps.data_pruning.experiment import compare
from apps.data_pruning.result import Result, train_run
from apps.data_pruning.strategy import SHORT
from sparsekit.data_pruning.selection import POLICIES, select


@dataclass(frozen=True)
class ScoreConfig(Config):
    """Scores all training examples, over several trainings, into scores.parquet.

    Args:
        score: a name, with @EPOCH for another epoch than `score_epoch`.
    """

    unused: ClassVar[Mapping[str, str]] = {"resume": "scoring begins anew each time"}

    score: str = "el2n"


@dataclass(frozen=True)
class SelectConfig(VerbConfig):
    """Chooses by a file of scores, ours or yours, and writes subset.csv.

    Args:
        scores: .parquet or .csv with columns id and score (larger = harder), and label
            if `per_class`.
        keep: share of the examples, in (0, 1].
        policy: top, bottom, window, strata, random, ...
        per_class: the policy within each class.
        options: of the policy, as drop_hardest=0.1.
        seed: of policies that draw.
        out: folder for subset.csv.
    """

    scores: Path | None = None
    keep: float = 0.5
    policy: str = "strata"
    per_class: bool = False
    options: dict[str, int | float] = field(default_factory=dict)
    seed: int = 0
    out: Path | None = None


@dataclass(frozen=True)
class CompareConfig(Config):
    """Prunes with several strategies and seeds, beside random subsets and all data.

    A strategy is SCORE:POLICY:OPTION=VALUE; only a score takes the hardest; ccs, random
    and stratified are short for others. See the README.

    Args:
        strategies: random and stratified are always added.
        keeps: shares of the examples that are kept.
        budgets: steps, epochs, or both.
        seeds: how many, from `seed` on.
    """

    unused = verbs.GOES_ON

    strategies: tuple[str, ...] = ("el2n", "ccs")
    keeps: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    budgets: tuple[str, ...] = ("steps", "epochs")
    seeds: int = 5


def main(argv: list[str] | None = None) -> int:
    """Scores and prunes training examples; compares ways to do so over seeds.

    Returns 2 for a usage error, with a message that names the fix.
    """
    return verbs.run(
        argv, "data-pruning", VERBS, PRESETS,
        scores=lambda: scoring.NAMES, policies=lambda: POLICIES,
        short=lambda: (f"{k} = {v}" for k, v in SHORT.items()),
    )  # fmt: skip


def data_command(argv: list[str]) -> None:
    """Fetch a data set and print its parts.

    sparsekit data-pruning data --dataset mnist5k --noise 0.1
    """
    config = parse(DataConfig, argv, presets=PRESETS, beside=Config)
    data = sources.load(verbs.narrowed(config, Config))
    facts = {"dataset": data.splits.name} | data.splits.facts()
    wrong, copies = int(data.flipped.sum()), int((data.copy_of >= 0).sum())
    verbs.tell(
        facts | {"wrong_labels": wrong, "near_copies": copies},
        *images.lines(facts),
        f"  wrong labels {wrong}, near copies {copies}",
    )


def train_command(argv: list[str]) -> None:
    """Train on all examples, or on a subset, and test once.

    sparsekit data-pruning train --config cnn-mnist5k --subset runs/half/subset.csv
    """
    config = verbs.resumable(TrainConfig, argv, PRESETS)
    plain = verbs.narrowed(config, Config, out=config.out, resume=config.resume)
    result = train_run(plain, config.subset, config.budget)
    verbs.tell(verbs.measured(result), *lines(result))


def score_command(argv: list[str]) -> None:
    """Score all training examples into a Parquet file.

    sparsekit data-pruning score --config cnn-mnist5k --score el2n --out runs/scores
    """
    config = parse(ScoreConfig, argv, presets=PRESETS)
    out = verbs.required(config.out, "out")
    request = scoring.parse(config, config.score)
    if request.kind == "extra" or config.score == "mean_p":
        raise ValueError(f"{config.score!r} is no score of the list")
    folder = RunFolder(out)
    data = sources.load(verbs.narrowed(config, Config))
    measured = scoring.measure(config, data, [config.score])
    seconds, flops = measured.cost(config, data, [config.score])
    part = data.splits.train
    per_run = measured.per_run[config.score]
    folder.write_config(config)
    path = folder.path / "scores.parquet"
    files.write_scores(path, part.ids.numpy(), part.y.cpu().numpy(), per_run)
    cost = {"seconds": seconds, "flops": flops}
    verbs.tell(
        {"file": path, "examples": len(data), "trainings": len(per_run)} | cost,
        f"{path}: {len(data)} examples, {len(per_run)} trainings",
        f"cost: {seconds:.1f} s, {flops / 1e9:.1f} GFLOP",
    )


def select_command(argv: list[str]) -> None:
    """Choose examples by a file of scores, yours or ours.

    sparsekit data-pruning select --scores runs/scores/scores.parquet --out runs/half
    """
    config = parse(SelectConfig, argv)
    out = verbs.required(config.out, "out")
    found = files.read_scores(verbs.required(config.scores, "scores"))
    if config.per_class and found.labels is None:
        raise ValueError(f"{config.scores}: per_class needs a column 'label'")
    try:
        kept = select(
            found.scores,
            config.keep,
            config.policy,
            labels=found.labels,
            per_class=config.per_class,
            seed=config.seed,
            **config.options,
        )
    except TypeError as error:
        raise ValueError(f"policy {config.policy!r}: {error}") from error
    path = RunFolder(out).path / "subset.csv"
    files.write_subset(path, found.ids[kept.numpy()])
    verbs.tell(
        {"file": path, "kept": len(kept), "examples": len(found.ids)},
        f"{path}: {len(kept)} of {len(found.ids)} examples",
    )


def compare_command(argv: list[str]) -> None:
    """Prune with strategies x seeds beside random and all data; print a table.

    sparsekit data-pruning compare --strategies el2n ccs --seeds 5 --out runs/compare
    """
    config = parse(CompareConfig, argv, presets=PRESETS)
    seeds = range(config.seed, config.seed + config.seeds)
    comparison = compare(
        verbs.narrowed(config, Config),
        config.strategies,
        config.keeps,
        seeds,
        budgets=config.budgets,
        out=config.out,
    )
    verbs.tell(asdict(comparison), comparison.table())


def lines(result: Result) -> list[str]:
    """Metrics with intervals over test samples, then costs."""
    metrics = [f"{name:18}{found.value:.4f}" for name, found in result.metrics.items()]
    accuracy = f"{'accuracy %':18}{percent(result.metrics['accuracy'])}"
    return [accuracy, *metrics, *verbs.cost_lines(result.cost)]


VERBS = {
    "data": data_command,
    "train": train_command,
    "score": score_command,
    "select": select_command,
    "compare": compare_command,
    "report": verbs.reporter("data-pruning", load_comparison, figure.draw),
}
