"""The settings of one experiment: prune, forget, compare with retraining."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from apps.common.config import RunConfig, Value, read_preset
from apps.common.ranges import at_least, positive
from apps.unlearning import forget, unlearner
from apps.unlearning.fitting import Recipe
from sparsekit.method import require_sparsity

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class Config(RunConfig):
    """One experiment. Every field is a flag of the command line and a key of a preset.

    Args:
        dataset: mnist5k, mnist, cifar10, or the path of yours: an .npz with arrays x
            and y, a .csv or .parquet table with a column y, a folder of class folders.
        data_dir: where cifar10 or your file is; default: $SPARSEKIT_DATA, or here.
        model: mlp, cnn, or resnet18 for 32x32 pixels.
        width: hidden units, or filters of the first convolution.
        depth: hidden layers, or convolutions; resnet18 takes no notice.
        forget: what to forget: random:0.1, class:3, backdoor:0.1, confusion:3,5,50,
            ATTRIBUTE=VALUE of your .npz (say subject=17), or a file with record ids.
        pruner: dense, omp (one-shot with rewinding), imp (iterative), synflow, random.
        sparsity: fraction of zeros over all pruned weights; unused by dense.
        prunable: all weight matrices, or conv: those of convolutions only.
        rewind: epochs after which the weights are kept that omp and imp go back to.
        rounds: of imp.
        mask_from: data that omp and imp see: all, the forget set included, or retain.
        reference: the retraining that gaps refer to: with the same mask and fresh
            weights, with a mask chosen anew from the retain set, or dense.
        method: a name that `sparsekit unlearning methods` lists.
        options: the method's fields, such as epochs, lr, gamma.
        epochs: passes of the original training, and of the reference.
        batch: samples a step; the incomplete last batch of an epoch is dropped.
        optimizer: adamw, or sgd with momentum 0.9.
        lr: peak learning rate.
        schedule: one-cycle, cosine, steps (a tenth after 1/2 and 3/4) or constant.
        weight_decay: coefficient; biases and norms included.
        augment: random crops and flips of training images.
        model_seed: of weights and the order of the data; default: `seed`, which draws
            the split and the forget set as well.
        part: test, or validation to choose settings by: fresh data of all metrics.
        device: cpu or cuda.
    """

    dataset: str = "mnist5k"
    data_dir: str | None = None
    model: Literal["mlp", "cnn", "resnet18"] = "cnn"
    width: int = 8
    depth: int = 2
    forget: str = "random:0.1"
    pruner: Literal["dense", "omp", "imp", "synflow", "random"] = "dense"
    sparsity: float = 0.95
    prunable: Literal["all", "conv"] = "all"
    rewind: int = 1
    rounds: int = 5
    mask_from: Literal["all", "retain"] = "all"
    reference: Literal["same-mask", "retain-mask", "dense"] = "same-mask"
    method: str = "finetune"
    options: dict[str, Value] = field(default_factory=dict)
    epochs: int = 20
    batch: int = 100
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 0.01
    schedule: Literal["one-cycle", "cosine", "steps", "constant"] = "one-cycle"
    weight_decay: float = 0.1
    augment: bool = False
    model_seed: int | None = None
    part: Literal["test", "validation"] = "test"
    device: str = "cpu"

    def __post_init__(self) -> None:
        check(self)

    @property
    def drawn(self) -> int:
        """The seed of weights and order."""
        return self.seed if self.model_seed is None else self.model_seed

    @property
    def recipe(self) -> Recipe:
        """How the original and the reference are trained."""
        return Recipe(
            self.epochs,
            self.batch,
            self.optimizer,
            self.lr,
            self.schedule,
            self.weight_decay,
            self.augment,
        )


def preset(name: str, profile: str = "laptop", **changes: Any) -> Config:
    """A preset's settings in a profile, with some fields changed.

    Raises FileNotFoundError for an unknown preset, TypeError for an unknown field.

    >>> preset("mnist-class", "smoke", pruner="omp").forget
    'class:3'
    """
    return read_preset(Config, PRESETS, name, profile, **changes)


def check(config: Config) -> None:
    """ValueError for a setting out of range, before any work."""
    if config.method == "sisa" and config.pruner in ("omp", "imp"):
        raise ValueError(
            "sisa is exact with masks that no data decide: pruner dense, synflow or "
            f"random, not {config.pruner}"
        )
    at_least(1, config, "width", "epochs", "batch", "rounds")
    at_least(0, config, "model_seed", "weight_decay")
    if not 0 <= config.rewind < config.epochs:
        raise ValueError(
            f"rewind must be in [0, epochs = {config.epochs}), got {config.rewind}"
        )
    require_sparsity(config.sparsity)
    positive(config, "lr")
    forget.parse(config.forget)
    unlearner.build(config.method, config.options)
