"""The settings of one training."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from apps.common import options
from apps.common.config import RunConfig, Value, read_preset
from apps.common.ranges import at_least, in_unit_interval, positive
from sparsekit.method import require_sparsity

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class Config(RunConfig):
    """One training. Every field is a flag of the command line and a key of a preset.

    Args:
        dataset: mnist5k, mnist, cifar10, or the path of yours: an .npz with arrays x
            and y, a .csv or .parquet table with a column y, a folder of class folders.
        data_dir: where cifar10 or your file is; default: $SPARSEKIT_DATA, or here.
        model: mlp, cnn, lstm, resnet or mobilenet.
        width: hidden units, filters of the first convolution, or hidden state.
        depth: hidden layers, convolutions, recurrent layers, or blocks.
        norm: BatchNorm in the cnn.
        method: "dense", a name that `sparsekit methods` lists, or a file my_method.py.
        sparsity: fraction of zeros over all masked weights, in [0, 1); unused by dense.
        options: other fields of the method; times in steps, "2 epochs" or "75%".
        mask_seed: of the method's random choices; default: `seed`, which draws the
            split, the initial weights and the order of the data as well.
        backend: masked (dense weights with zeros), or values: layers store and compute
            alive weights only, which is faster at high sparsity. The same masks.
        keep_dense: patterns of parameter names that are not masked, as "classifier.*".
        moments: optimizer state of regrown weights: zero, or mean of the layer.
        epochs: passes over the train part.
        batch: samples a step; the incomplete last batch of an epoch is dropped.
        optimizer: adamw, or sgd with momentum 0.9.
        lr: peak learning rate.
        schedule: one-cycle (linear up in a tenth of the steps, cosine to 0), cosine or
            constant.
        weight_decay: coefficient; biases and norms included.
        label_smoothing: in [0, 1).
        keep: weights that are tested: of the last epoch, or of the best on validation
            among the epochs that have the final sparsity.
        device: cpu or cuda.
    """

    dataset: str = "mnist5k"
    data_dir: str | None = None
    model: Literal["mlp", "cnn", "lstm", "resnet", "mobilenet"] = "mlp"
    width: int = 100
    depth: int = 2
    norm: bool = False
    method: str = "static"
    sparsity: float = 0.9
    options: dict[str, Value] = field(default_factory=dict)
    mask_seed: int | None = None
    backend: Literal["masked", "values"] = "masked"
    keep_dense: tuple[str, ...] = ()
    moments: Literal["zero", "mean"] = "zero"
    epochs: int = 20
    batch: int = 100
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 0.01
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    weight_decay: float = 0.1
    label_smoothing: float = 0.0
    keep: Literal["last", "best"] = "last"
    device: str = "cpu"

    def __post_init__(self) -> None:
        check(self)


def preset(name: str, profile: str = "laptop", **changes: Any) -> Config:
    """A preset's settings in a profile, with some fields changed.

    Raises FileNotFoundError for an unknown preset, TypeError for an unknown field.

    >>> config = preset("mlp-mnist5k", "smoke", method="rigl")
    >>> config.width, config.method
    (30, 'rigl')
    """
    return read_preset(Config, PRESETS, name, profile, **changes)


def check(config: Config) -> None:
    """ValueError for a setting out of range, before any work."""
    at_least(1, config, "width", "epochs", "batch")
    at_least(0, config, "mask_seed", "weight_decay")
    require_sparsity(config.sparsity)
    positive(config, "lr")
    in_unit_interval(config, "label_smoothing")
    options.require_backend(config.backend, config.method)
    options.build(config.method, config.sparsity, config.options, 100, 1000)
