"""Commands: data, train, evaluate, compare, report, check.

sparsekit classify train --config mlp-mnist5k --method rigl --out runs/rigl
sparsekit classify compare --methods set rigl --seeds 5 --sparsity 0.9 --out runs/c
"""

from dataclasses import dataclass, replace
from pathlib import Path

from apps.classify import data, figure, metrics
from apps.classify.compare import compare, load_comparison
from apps.classify.config import PRESETS, Config
from apps.classify.result import Result, load_result, test_metrics
from apps.classify.train import train
from apps.common import images, options, verbs
from apps.common.config import PresetConfig, VerbConfig, parse
from apps.common.tables import percent
from apps.common.training import evaluate


@dataclass(frozen=True)
class DataConfig(PresetConfig):
    """Fetches a data set and prints its parts.

    Args:
        dataset: mnist5k, mnist, cifar10, or the path of yours: an .npz with arrays x
            and y, a .csv or .parquet table with a column y, a folder of class folders.
        data_dir: where cifar10 or your file is.
        seed: of the split.
    """

    dataset: str = "mnist5k"
    data_dir: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class EvaluateConfig(verbs.FinishedConfig):
    """Tests a finished run again, on clean and on corrupted test images.

    Args:
        severities: of the corruptions, 1 to 5.
        seed: of the corruptions.
    """

    severities: tuple[int, ...] = (1, 3, 5)
    seed: int = 0


@dataclass(frozen=True)
class CompareConfig(Config):
    """Trains several methods with several seeds, beside dense and static.

    Dense and static (random connections, never changed) are always included, and so is
    `method`. Options go to every method that has a field of that name.

    Args:
        methods: names or files of methods.
        seeds: how many seeds, from `seed` on.
        baseline: label that paired differences refer to.
    """

    unused = verbs.GOES_ON

    methods: tuple[str, ...] = ("set", "rigl")
    seeds: int = 5
    baseline: str = "static"

    def __post_init__(self) -> None:
        """Options belong to other methods than `method`: checked for each run."""


@dataclass(frozen=True)
class CheckConfig(VerbConfig):
    """Holds a method to sparsekit's contract.

    Args:
        method: a name, or a file my_method.py or my_method.py:Class.
    """

    method: str = ""


def main(argv: list[str] | None = None) -> int:
    """Trains image classifiers, dense or sparse; compares methods over seeds.

    Returns 2 for a usage error, with a message that names the fix.
    """
    return verbs.run(argv, "classify", VERBS, PRESETS, methods=options.names)


def data_command(argv: list[str]) -> None:
    """Fetch a data set and print its parts.

    sparsekit classify data --dataset mnist5k
    """
    config = parse(DataConfig, argv, presets=PRESETS, beside=Config)
    splits = data.load(config.dataset, config.seed, config.data_dir)
    facts = {"dataset": config.dataset} | splits.facts()
    verbs.tell(facts, *images.lines(facts))


def train_command(argv: list[str]) -> None:
    """Train one model and test it once.

    sparsekit classify train --config mlp-mnist5k --method rigl --out runs/rigl
    sparsekit classify train --resume --out runs/rigl
    """
    result = train(verbs.resumable(Config, argv, PRESETS))
    verbs.tell(verbs.measured(result), *lines(result))


def evaluate_command(argv: list[str]) -> None:
    """Test a finished run, also on corrupted images.

    sparsekit classify evaluate --run runs/rigl --severities 1 3 5
    """
    import torch

    config = parse(EvaluateConfig, argv)
    result = load_result(verbs.required(config.run, "run"))
    trained = result.config
    test = data.load(trained.dataset, trained.seed, trained.data_dir).test
    rows = []
    for kind in metrics.CORRUPTIONS:
        for severity in config.severities:
            generator = torch.Generator().manual_seed(config.seed)
            x = metrics.corrupt(test.x, kind, severity, generator)
            logits = evaluate(result.model, data.Split(x, test.y))
            rows.append((kind, severity, test_metrics(logits, test.y)[1]))
    corrupted = [
        {"corruption": kind, "severity": severity, "metrics": verbs.plain(measured)}
        for kind, severity, measured in rows
    ]
    table = [
        f"{kind:12}{severity:9}  {percent(measured['accuracy']):20} "
        f"{100 * measured['ece'].value:.1f}"
        for kind, severity, measured in rows
    ]
    title = f"\n{'corruption':12}{'severity':>9}  accuracy %           ece %"
    content = verbs.measured(result) | {"corrupted": corrupted}
    verbs.tell(content, *lines(result), title, *table)


def compare_command(argv: list[str]) -> None:
    """Train methods x seeds beside dense and static; print a table.

    sparsekit classify compare --methods set rigl --seeds 5 --out runs/compare
    """
    config = parse(CompareConfig, argv, presets=PRESETS)
    methods = {
        Path(method).name if ".py" in method else method: method
        for method in (*config.methods, config.method)
    }
    known = {label: options.fields_of(method) for label, method in methods.items()}
    first = verbs.narrowed(config, Config, options={})
    configs = {
        label: replace(first, method=methods[label], options=own)
        for label, own in verbs.divided(config.options, known).items()
    }
    seeds = range(config.seed, config.seed + config.seeds)
    comparison = compare(configs, seeds, out=config.out, baseline=config.baseline)
    verbs.tell(comparison.content(), comparison.table())


def check_command(argv: list[str]) -> None:
    """Hold a method, such as your own file, to sparsekit's contract.

    sparsekit classify check --method rigl
    """
    config = parse(CheckConfig, argv)
    cls = options.method_class(verbs.required(config.method or None, "method"))
    if cls is None:
        raise ValueError("dense is no method: there is nothing to check")
    if not __debug__:
        raise ValueError("python -O leaves out what the check is made of: run without")
    from sparsekit.testing import check_method  # slow to import, for this verb only

    try:
        check_method(cls)
    except AssertionError as error:
        raise ValueError(f"{cls.__name__} breaks the contract: {error}") from None
    verbs.tell({"method": cls.__name__}, f"{cls.__name__} keeps the contract")


def lines(result: Result) -> list[str]:
    """Metrics with intervals over test samples, then costs."""
    metrics = [
        f"{name:18}{found.value:.4f} [{found.low:.4f}, {found.high:.4f}] n={found.n}"
        for name, found in result.metrics.items()
    ]
    return metrics + verbs.cost_lines(result.cost)


VERBS = {
    "data": data_command,
    "train": train_command,
    "evaluate": evaluate_command,
    "compare": compare_command,
    "report": verbs.reporter("classify", load_comparison, figure.draw),
    "check": check_command,
}
