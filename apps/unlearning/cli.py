"""Commands: data, methods, train, evaluate, compare, report.

sparsekit unlearning train --config mnist-class --method l1_sparse --out runs/l1
"""

from dataclasses import dataclass, fields

from apps.common.config import RunConfig, parse
from apps.common.tables import percent
from apps.common.verbs import listed, presets, run
from apps.unlearning import data, service_cli, unlearner
from apps.unlearning.config import PRESETS, Config
from apps.unlearning.result import Result
from apps.unlearning.train import train


@dataclass(frozen=True)
class DataConfig(RunConfig):
    """Loads a data set and prints what would be forgotten.

    Args:
        dataset: mnist5k, mnist, cifar10, or the path of your .npz with arrays x and y.
        data_dir: where cifar10 or your file is.
        forget: as in `train`.
    """

    dataset: str = "mnist5k"
    data_dir: str | None = None
    forget: str = "random:0.1"


def main(argv: list[str] | None = None) -> int:
    """Forgets training data of a model, and compares with retraining.

    Returns 2 for a usage error, with a message that names the fix.
    """
    return run(argv, VERBS, usage)


def usage() -> str:
    methods = "methods: " + ", ".join(unlearner.discover())
    return "\n".join([*listed("unlearning", VERBS), methods, presets(PRESETS)])


def data_command(argv: list[str]) -> None:
    """Print a data set's parts and a forget set."""
    config = parse(DataConfig, argv, presets=PRESETS)
    loaded = data.load(config.dataset, config.forget, config.seed, config.data_dir)
    print(f"{loaded.name}: {loaded.classes} classes; forget {config.forget}")
    for name in ("forgotten", "retained", "held_out", "fresh"):
        part = getattr(loaded, name)
        counts = part.y.bincount(minlength=loaded.classes).tolist()
        print(f"  {name:10}{len(part):7}  a class: {' '.join(map(str, counts))}")


def methods_command(argv: list[str]) -> None:
    """List the methods and their settings."""
    parse(RunConfig, argv)
    for name, cls in unlearner.discover().items():
        first = (cls.__doc__ or "").strip().splitlines()[0]
        settings = ", ".join(f"{f.name}={f.default}" for f in fields(cls))
        exact = " (exact)" if cls.exact else ""
        print(f"{name:16}{first}{exact}\n{'':16}{settings or 'no settings'}")


def train_command(argv: list[str]) -> None:
    """Prune and train, unlearn, retrain, and print what was forgotten."""
    config = parse(Config, argv, presets=PRESETS)
    if config.resume and config.out is not None and "--config" not in argv:
        stored = config.out / "config.toml"
        if stored.is_file():  # `--resume --out FOLDER` is enough to go on
            config = parse(Config, ["--config", str(stored), *argv], presets=PRESETS)
    print_result(train(config))


def print_result(result: Result) -> None:
    """The three models side by side, then costs."""
    print(f"{'':10}  {'unlearned':22}{'retrained':22}{'original':22}gap")
    for name in ("UA", "MIA", "RA", "TA"):
        cells = [
            percent(result.metrics[f"{prefix}{name}"])
            for prefix in ("", "reference ", "original ")
        ]
        gap = 100 * result.value(f"{name} gap")
        print(f"{name:10}  {''.join(f'{cell:22}' for cell in cells)}{gap:+.1f}")
    print(f"{'mean gap':10}  {100 * result.value('gap'):.2f}")
    print(f"{'run time':10}  {100 * result.value('run time'):.1f} % of retraining")
    print(f"{'mask':10}  {result.provenance if result.masks else 'none'}")
    print(f"{'exact':10}  {'yes' if result.exact else 'no'}")
    for name, value in result.cost.items():
        print(f"{name:16}{value:,.2f}" if value < 1000 else f"{name:16}{value:,.0f}")


VERBS = {
    "data": data_command,
    "methods": methods_command,
    "train": train_command,
    **service_cli.VERBS,
}
