"""Commands: data, train, evaluate, compare, report, flops, export.

sparsekit continual train --config derpp-mnist --buffer 200 --out runs/derpp
sparsekit continual compare --config derpp-mnist --strategies er derpp --out runs/c
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from apps.common import verbs
from apps.common.config import VerbConfig, parse
from apps.common.images import PARTS
from apps.common.tables import percent
from apps.continual import figure, memory, metrics, strategy, streams
from apps.continual.compare import compare, load_comparison
from apps.continual.config import PRESETS, Config, StreamConfig
from apps.continual.export import export
from apps.continual.flops import RULES, training_flops
from apps.continual.result import Result, load_result
from apps.continual.train import train
from sparsekit.spelling import choice


@dataclass(frozen=True)
class DataConfig(StreamConfig):
    """Fetches a data set and prints the tasks it is cut into."""


@dataclass(frozen=True)
class TrainConfig(Config):
    """Trains one model on a stream of tasks.

    Args:
        memory_mb: of this process, at most; a training that takes more is refused.
            On Linux, device cpu.
    """

    memory_mb: float | None = None


@dataclass(frozen=True)
class EvaluateConfig(verbs.FinishedConfig):
    """Prints a finished run's metrics by every definition."""


@dataclass(frozen=True)
class CompareConfig(Config):
    """Trains several strategies with several seeds, beside fine-tuning and joint.

    Options go to every strategy that has a field of that name.

    Args:
        strategies: names.
        seeds: how many seeds, from `seed` on.
        baseline: label that paired differences refer to.
    """

    unused = verbs.GOES_ON | {"strategy": "give --strategies"}

    strategies: tuple[str, ...] = ("er", "derpp", "gdumb")
    seeds: int = 5
    baseline: str = "finetune"

    def __post_init__(self) -> None:
        """Options belong to other strategies than `strategy`: checked for each run."""


@dataclass(frozen=True)
class FlopsConfig(VerbConfig):
    """Prints the FLOPs of a published training, by the paper's rule and honestly.

    Args:
        network: resnet18-cifar or resnet18-tiny.
        method: ewc, lwf, er, agem, derpp, ..., or sparse, as sparcl-derpp.
        sparsity: of a sparse method.
    """

    network: str = "resnet18-cifar"
    method: str = "derpp"
    sparsity: float = 0.0


@dataclass(frozen=True)
class ExportConfig(VerbConfig):
    """Writes a finished run's model as one file for devices.

    Args:
        run: the run's folder.
        values: type of stored weights: float32, float16 or bfloat16.
        onnx: an ONNX file as well.
        out: folder for the files; default: the run's.
    """

    run: Path | None = None
    values: str = "float32"
    onnx: bool = False
    out: Path | None = None


def main(argv: list[str] | None = None) -> int:
    """Trains classifiers on a stream of tasks; measures what they forget.

    Returns 2 for a usage error, with a message that names the fix.
    """
    return verbs.run(argv, "continual", VERBS, PRESETS, strategies=strategy.discover)


def data_command(argv: list[str]) -> None:
    """Fetch a data set and print its tasks.

    sparsekit continual data --config derpp-mnist
    """
    config = parse(DataConfig, argv, presets=PRESETS, beside=Config)
    stream = streams.load(verbs.narrowed(config, Config))
    shape = "x".join(map(str, stream.shape))
    text = [f"{stream.name}: inputs {shape}, {stream.n_classes} classes"]
    tasks = []
    for i, task in enumerate(stream.tasks):
        sizes = {part: len(getattr(task, part)) for part in PARTS}
        names = [stream.names[c] for c in task.classes]
        tasks.append({"classes": names} | sizes)
        counted = ", ".join(f"{n} {part}" for part, n in sizes.items())
        text.append(f"  task {i + 1}: {counted}; classes {', '.join(names)}")
    facts = {"dataset": stream.name, "shape": list(stream.shape)}
    verbs.tell(facts | {"classes": stream.n_classes, "tasks": tasks}, *text)


def train_command(argv: list[str]) -> None:
    """Train one model on a stream and test all tasks after each.

    sparsekit continual train --config derpp-mnist --buffer 200 --out runs/derpp
    sparsekit continual train --resume --out runs/derpp
    """
    given = verbs.resumable(TrainConfig, argv, PRESETS)
    config = verbs.narrowed(given, Config, out=given.out, resume=given.resume)
    with memory.held(given.memory_mb, config):
        result = train(config)
    verbs.tell(measured(result), *lines(result))


def evaluate_command(argv: list[str]) -> None:
    """Print a finished run's metrics, by every library's definition.

    sparsekit continual evaluate --run runs/derpp
    """
    config = parse(EvaluateConfig, argv)
    result = load_result(verbs.required(config.run, "run"))
    a = result.matrix
    defined = {
        "forgetting": {n: metrics.forgetting(a, n) for n in metrics.FORGETTING},
        "backward": {n: metrics.backward_transfer(a, n) for n in metrics.BACKWARD},
        "forward": {
            n: metrics.forward_transfer(a, result.initial, n) for n in metrics.FORWARD
        },
    }
    text = ["\nby definition, in %"]
    for kind, values in defined.items():
        for name, value in values.items():
            text.append(f"  {kind + ',':12}{name:10}{100 * value:7.2f}")
    content = measured(result) | {"by_definition": defined}
    verbs.tell(content, *lines(result), *text)


def compare_command(argv: list[str]) -> None:
    """Train strategies x seeds beside fine-tuning and joint; print a table.

    sparsekit continual compare --config derpp-mnist --strategies er derpp --out runs/c
    """
    config = parse(CompareConfig, argv, presets=PRESETS)
    known = strategy.discover()
    unknown = [name for name in config.strategies if name not in known]
    if unknown:
        raise ValueError(
            choice(f"strategy {unknown[0]!r} is unknown", unknown[0], known)
        )
    names = {
        name: {f.name for f in fields(known[name]) if f.init}
        for name in config.strategies
    }
    first = verbs.narrowed(config, Config, strategy="finetune", strategy_options={})
    configs = {
        name: replace(first, strategy=name, strategy_options=own)
        for name, own in verbs.divided(
            config.strategy_options, names, "strategies"
        ).items()
    }
    seeds = range(config.seed, config.seed + config.seeds)
    comparison = compare(configs, seeds, out=config.out, baseline=config.baseline)
    verbs.tell(comparison.content(), comparison.table())


def flops_command(argv: list[str]) -> None:
    """Print the FLOPs of a published training, by both rules.

    sparsekit continual flops --method sparcl-derpp --sparsity 0.75
    """
    config = parse(FlopsConfig, argv)
    totals = {
        rule: training_flops(config.network, config.method, config.sparsity, rule)
        for rule in RULES
    }
    text = (f"{rule:10}{total:.3e} FLOPs" for rule, total in totals.items())
    verbs.tell(totals, *text)


def export_command(argv: list[str]) -> None:
    """Write a run's model for devices without torch, and as ONNX.

    sparsekit continual export --run runs/derpp --values float16
    """
    config = parse(ExportConfig, argv)
    run_folder = verbs.required(config.run, "run")
    written = export(run_folder, config.out, config.values, config.onnx)
    device = written.device
    text = [
        f"{device.path}: {device.bytes_on_disk:,} bytes, of {device.dense_bytes:,} "
        f"dense; differs from the model by {device.error:.0e}",
        f"{written.about}: how inputs are standardised, what the classes are called",
    ]
    if written.onnx is not None:
        size = written.onnx.stat().st_size
        text.append(f"{written.onnx}: {size:,} bytes, zeros included")
    content = {
        "file": device.path, "bytes": device.bytes_on_disk,
        "dense_bytes": device.dense_bytes, "error": device.error, "onnx": written.onnx,
        "about": written.about,
    }  # fmt: skip
    verbs.tell(content, *text)


def measured(result: Result) -> dict[str, Any]:
    """Metrics, cost and the accuracy matrix of a run."""
    return verbs.measured(result) | {"matrix": result.matrix.tolist()}


def lines(result: Result) -> list[str]:
    """The accuracy matrix, metrics, costs."""
    return [
        "accuracy in % on each task (columns) after each task (rows)",
        *(
            "  " + " ".join(f"{100 * value:6.1f}" for value in row)
            for row in result.matrix.tolist()
        ),
        *(f"{name:18}{percent(found)} %" for name, found in result.metrics.items()),
        *verbs.cost_lines(result.cost),
    ]


VERBS = {
    "data": data_command,
    "train": train_command,
    "evaluate": evaluate_command,
    "compare": compare_command,
    "report": verbs.reporter("continual", load_comparison, figure.draw),
    "flops": flops_command,
    "export": export_command,
}
