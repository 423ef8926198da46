"""Commands: data, train, evaluate, compare, report, check.

sparsekit classify train --config mlp-mnist5k --method rigl --out runs/rigl
sparsekit classify compare --methods set rigl --seeds 5 --sparsity 0.9 --out runs/c
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from apps.classify import data, figure, metrics
from apps.classify.compare import compare, load_comparison
from apps.classify.config import PRESETS, Config
from apps.classify.result import Result, evaluate, load_result, test_metrics
from apps.classify.train import train
from apps.common import options
from apps.common.config import RunConfig, parse
from apps.common.tables import percent
from apps.common.verbs import listed, presets, required, run


@dataclass(frozen=True)
class DataConfig(RunConfig):
    """Fetches a data set and prints its parts.

    Args:
        dataset: mnist5k, mnist, cifar10, or the path of your .npz with arrays x and y.
        data_dir: where cifar10 or your file is.
    """

    dataset: str = "mnist5k"
    data_dir: str | None = None


@dataclass(frozen=True)
class EvaluateConfig(RunConfig):
    """Tests a finished run again, on clean and on corrupted test images.

    Args:
        run: the run's folder.
        severities: of the corruptions, 1 to 5.
    """

    run: Path | None = None
    severities: tuple[int, ...] = (1, 3, 5)


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

    methods: tuple[str, ...] = ("set", "rigl")
    seeds: int = 5
    baseline: str = "static"

    def __post_init__(self) -> None:
        """Options belong to other methods than `method`: checked for each run."""


@dataclass(frozen=True)
class ReportConfig(RunConfig):
    """Writes a comparison's table and figure.

    Args:
        run: folder that `compare` wrote.
        formats: of the figure.
    """

    run: Path | None = None
    formats: tuple[str, ...] = ("png", "svg")


@dataclass(frozen=True)
class CheckConfig(RunConfig):
    """Holds a method to sparsekit's contract.

    Args:
        method: a name, or a file my_method.py or my_method.py:Class.
    """

    method: str = ""


def main(argv: list[str] | None = None) -> int:
    """Trains image classifiers, dense or sparse; compares methods over seeds.

    Returns 2 for a usage error, with a message that names the fix.
    """
    return run(argv, VERBS, usage)


def usage() -> str:
    methods = "methods: " + ", ".join(options.names())
    return "\n".join([*listed("classify", VERBS), methods, presets(PRESETS)])


def data_command(argv: list[str]) -> None:
    """Fetch a data set and print its parts."""
    config = parse(DataConfig, argv, presets=PRESETS)
    splits = data.load(config.dataset, config.seed, config.data_dir)
    shape = "x".join(map(str, splits.train.x.shape[1:]))
    print(f"{config.dataset}: images {shape}, {splits.classes} classes")
    for name in ("train", "validation", "test"):
        part = getattr(splits, name)
        counts = part.y.bincount(minlength=splits.classes)
        print(
            f"  {name:10} {len(part):6} images, {int(counts.min())} to "
            f"{int(counts.max())} a class"
        )


def train_command(argv: list[str]) -> None:
    """Train one model and test it once."""
    config = parse(Config, argv, presets=PRESETS)
    if config.resume and config.out is not None and "--config" not in argv:
        stored = config.out / "config.toml"
        if stored.is_file():  # `--resume --out FOLDER` is enough to go on
            config = parse(Config, ["--config", str(stored), *argv], presets=PRESETS)
    print_result(train(config))


def evaluate_command(argv: list[str]) -> None:
    """Test a finished run, also on corrupted images."""
    import torch

    config = parse(EvaluateConfig, argv, presets=PRESETS)
    result = load_result(required(config.run, "run"))
    trained = result.config
    test = data.load(trained.dataset, trained.seed, trained.data_dir).test
    print_result(result)
    print(f"\n{'corruption':12}{'severity':>9}  accuracy %           ece %")
    for kind in metrics.CORRUPTIONS:
        for severity in config.severities:
            generator = torch.Generator().manual_seed(config.seed)
            x = metrics.corrupt(test.x, kind, severity, generator)
            logits = evaluate(result.model, data.Split(x, test.y))
            measured = test_metrics(logits, test.y)[1]
            print(
                f"{kind:12}{severity:9}  {percent(measured['accuracy']):20} "
                f"{100 * measured['ece'].value:.1f}"
            )


def compare_command(argv: list[str]) -> None:
    """Train methods x seeds beside dense and static; print a table."""
    config = parse(CompareConfig, argv, presets=PRESETS)
    settings = {f.name: getattr(config, f.name) for f in fields(Config)}
    first = Config(**(settings | {"out": None, "options": {}}))
    given, used, configs = dict(config.options), set(), {}
    for method in dict.fromkeys((*config.methods, config.method)):
        cls = options.method_class(method)
        names = set() if cls is None else {f.name for f in fields(cls)}
        chosen = {key: value for key, value in given.items() if key in names}
        used |= set(chosen)
        label = Path(method).name if ".py" in method else method
        configs[label] = replace(first, method=method, options=chosen)
    if set(given) - used:
        raise ValueError(
            f"none of the methods {', '.join(configs)} has an option "
            f"{sorted(set(given) - used)[0]!r}"
        )
    seeds = range(config.seed, config.seed + config.seeds)
    comparison = compare(configs, seeds, out=config.out, baseline=config.baseline)
    print(comparison.table(), end="")


def report_command(argv: list[str]) -> None:
    """Write the table and the figure of a comparison."""
    config = parse(ReportConfig, argv, presets=PRESETS)
    folder = Path(required(config.run, "run"))
    comparison = load_comparison(folder)
    print(comparison.table())
    for form in config.formats:
        path = (config.out or folder) / f"compare.{form}"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.draw(comparison, path)
        print(path)


def check_command(argv: list[str]) -> None:
    """Hold a method, such as your own file, to sparsekit's contract."""
    config = parse(CheckConfig, argv, presets=PRESETS)
    cls = options.method_class(config.method)
    if cls is None:
        raise ValueError("dense is no method: there is nothing to check")
    from sparsekit.testing import check_method  # slow to import, for this verb only

    try:
        check_method(cls)
    except AssertionError as error:
        raise ValueError(f"{cls.__name__} breaks the contract: {error}") from None
    print(f"{cls.__name__} keeps the contract")


def print_result(result: Result) -> None:
    """Metrics with intervals over test samples, then costs."""
    for name, interval in result.metrics.items():
        low, high = interval.low, interval.high
        print(f"{name:16}{interval.value:.4f} [{low:.4f}, {high:.4f}] n={interval.n}")
    for name, value in result.cost.items():
        print(f"{name:16}{value:,.2f}" if value < 1000 else f"{name:16}{value:,.0f}")


VERBS = {
    "data": data_command,
    "train": train_command,
    "evaluate": evaluate_command,
    "compare": compare_command,
    "report": report_command,
    "check": check_command,
}
