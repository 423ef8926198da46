"""The settings of one training."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from apps.common import options
from apps.common.config import RunConfig, parse

PRESETS = Path(__file__).parent / "presets"

Value = str | int | float | bool


@dataclass(frozen=True)
class Config(RunConfig):
    """One training. Every field is a flag of the command line and a key of a preset.

    Args:
        dataset: mnist5k, mnist, cifar10, or the path of your .npz with arrays x and y.
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
    argv = ["--config", name, "--profile", profile]
    return replace(parse(Config, argv, presets=PRESETS), **changes)


def check(config: Config) -> None:
    """ValueError for a setting out of range, before any work."""
    for name in ("width", "epochs", "batch"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if config.mask_seed is not None and config.mask_seed < 0:
        raise ValueError(f"mask_seed must be at least 0, got {config.mask_seed}")
    if not 0 <= config.sparsity < 1:
        raise ValueError(
            f"sparsity is the fraction of zeros, in [0, 1), got {config.sparsity}"
        )
    if not (config.lr > 0 and math.isfinite(config.lr)):
        raise ValueError(f"lr must be positive, got {config.lr}")
    if not config.weight_decay >= 0:
        raise ValueError(f"weight_decay must be at least 0, got {config.weight_decay}")
    if not 0 <= config.label_smoothing < 1:
        raise ValueError(
            f"label_smoothing must be in [0, 1), got {config.label_smoothing}"
        )
    if config.backend == "values" and config.method == "dense":
        raise ValueError(
            "backend values stores what a sparse method keeps: method dense needs "
            "backend masked"
        )
    options.build(config.method, config.sparsity, config.options, 100, 1000)
