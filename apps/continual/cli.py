"""Commands: data, train, evaluate, compare, report.

sparsekit continual train --config derpp-mnist --buffer 200 --out runs/derpp
sparsekit continual compare --config derpp-mnist --strategies er derpp --out runs/c
"""

from dataclasses import dataclass

from apps.common.config import parse
from apps.common.verbs import listed, presets, run
from apps.continual import strategy, streams
from apps.continual.config import PRESETS, Config
from apps.continual.result import Result
from apps.continual.streams import PARTS
from apps.continual.train import train


@dataclass(frozen=True)
class DataConfig(Config):
    """Fetches a data set and prints the tasks it is cut into."""


def main(argv: list[str] | None = None) -> int:
    """Trains classifiers on a stream of tasks; measures what they forget.

    Returns 2 for a usage error, with a message that names the fix.
    """
    return run(argv, VERBS, usage)


def usage() -> str:
    names = "strategies: " + ", ".join(strategy.discover())
    return "\n".join([*listed("continual", VERBS), names, presets(PRESETS)])


def data_command(argv: list[str]) -> None:
    """Fetch a data set and print its tasks."""
    config = parse(DataConfig, argv, presets=PRESETS)
    stream = streams.load(config)
    shape = "x".join(map(str, stream.shape))
    print(f"{stream.name}: inputs {shape}, {stream.n_classes} classes")
    for i, task in enumerate(stream.tasks):
        sizes = ", ".join(f"{len(getattr(task, part))} {part}" for part in PARTS)
        named = ", ".join(stream.names[c] for c in task.classes)
        print(f"  task {i}: {sizes}; classes {named}")


def train_command(argv: list[str]) -> None:
    """Train one model on a stream and test all tasks after each."""
    config = parse(Config, argv, presets=PRESETS)
    if config.resume and config.out is not None and "--config" not in argv:
        stored = config.out / "config.toml"
        if stored.is_file():  # `--resume --out FOLDER` is enough to go on
            config = parse(Config, ["--config", str(stored), *argv], presets=PRESETS)
    print_result(train(config))


def print_result(result: Result) -> None:
    """The accuracy matrix, metrics, costs."""
    print("accuracy in % on each task (columns) after each task (rows)")
    for row in result.matrix.tolist():
        print("  " + " ".join(f"{100 * value:6.1f}" for value in row))
    for name, interval in result.metrics.items():
        print(f"{name:18}{100 * interval.value:6.2f} %")
    for name, value in result.cost.items():
        print(f"{name:18}{value:,.2f}" if value < 1000 else f"{name:18}{value:,.0f}")


VERBS = {
    "data": data_command,
    "train": train_command,
}
