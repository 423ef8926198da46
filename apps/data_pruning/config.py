"""The settings of a training: data, network, optimisation, scoring."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from apps.common.config import PresetConfig, RunConfig, convert_table, read_preset
from apps.common.ranges import at_least, in_unit_interval, positive
from apps.common.toml import deep_merge, read_toml

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class DataConfig(PresetConfig):
    """Fetches a data set and prints its parts, and what is planted.

    Args:
        dataset: mnist5k, mnist, cifar10, or the path of yours: an .npz with arrays x
            and y, a .csv or .parquet table with a column y, a folder of class folders.
        data_dir: where cifar10 or your file is; default: $SPARSEKIT_DATA, or here.
        train_size: so many training examples, as many of each class as its share;
            default: all.
        noise: share of the training labels that are replaced by another class.
        duplicates: share of the training examples that are replaced by near copies of
            others.
        seed: of the split, and of what is planted.
    """

    dataset: str = "mnist5k"
    data_dir: str | None = None
    train_size: int | None = None
    noise: float = 0.0
    duplicates: float = 0.0
    seed: int = field(default=0, kw_only=True)


@dataclass(frozen=True)
class Config(DataConfig, RunConfig):
    """One training, and how examples are scored for it.

    Args:
        model: mlp, cnn or resnet18.
        width: hidden units, or filters of the first convolution.
        depth: hidden layers or convolutions; unused by resnet18.
        epochs: passes over all training examples; a subset gets the same steps or the
            same passes.
        batch: examples a step.
        optimizer: adamw, or sgd with Nesterov momentum 0.9.
        lr: peak learning rate; one-cycle: linear up in a tenth of the steps, then a
            cosine to 0.
        weight_decay: coefficient; biases and norms included.
        label_smoothing: in [0, 1).
        augment: random crops (4 pixels reflected at the edges) and flips.
        score_epoch: when scores of a model are taken.
        score_runs: trainings that a score is the mean of; scores of a whole training's
            trace use the first alone.
        device: cpu or cuda.
        precision: of products and convolutions; bf16 is autocast.
        compile: torch.compile for the training steps.
        seed: of everything that is random.
    """

    model: Literal["mlp", "cnn", "resnet18"] = "cnn"
    width: int = 8
    depth: int = 2
    epochs: int = 10
    batch: int = 100
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 0.02
    weight_decay: float = 0.1
    label_smoothing: float = 0.0
    augment: bool = False
    score_epoch: int = 2
    score_runs: int = 5
    device: str = "cpu"
    precision: Literal["float32", "bf16"] = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class TrainConfig(Config):
    """Trains on all examples, or on those of a file, and tests once.

    Args:
        subset: file with a column id, as `select` writes it; default: all examples.
        budget: steps, as many as for all examples, or epochs, as many passes.
    """

    subset: Path | None = None
    budget: Literal["steps", "epochs"] = "steps"


def check(config: Config) -> None:
    """ValueError for a setting out of range, before any work."""
    at_least(1, config, "width", "epochs", "batch", "score_runs", "train_size")
    in_unit_interval(config, "noise", "duplicates", "label_smoothing")
    if not 0 <= config.score_epoch <= config.epochs:
        raise ValueError(
            f"score_epoch must be in 0 ... {config.epochs} (epochs), got "
            f"{config.score_epoch}"
        )
    positive(config, "lr")
    at_least(0, config, "weight_decay")


def preset(name: str, profile: str = "laptop", **changes: Any) -> Config:
    """A preset's settings in a profile, with some fields changed.

    Raises FileNotFoundError for an unknown preset, TypeError for an unknown field.

    >>> config = preset("cnn-mnist5k", "smoke", noise=0.1)
    >>> config.epochs, config.noise
    (2, 0.1)
    """
    return read_preset(Config, PRESETS, name, profile, **changes)


def from_file(path: Path, profile: str) -> Config:
    """The settings of a TOML file in a profile, without a command line.

    Needs none of the packages that `parse` does.
    """
    table = read_toml(path)
    overlay = table.pop("profiles", {}).get(profile, {})
    values = convert_table(Config, deep_merge(table, overlay), str(path))
    return Config(**(values | {"profile": profile}))


def settings(config: Config) -> dict[str, Any]:
    """What decides the outcome for a seed, as plain values."""
    shown = asdict(config)
    for name in ("profile", "out", "resume", "seed", "data_dir"):
        shown.pop(name)
    return {name: shown[name] for name in Config.__annotations__ if name in shown}
