"""The settings of one training on a stream of tasks."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from apps.common import options as methods
from apps.common.config import PresetConfig, RunConfig, Value, read_preset
from apps.common.ranges import at_least, in_unit_interval, positive
from sparsekit.method import require_sparsity

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class StreamConfig(PresetConfig):
    """A data set as a stream of tasks.

    Args:
        dataset: mnist5k, mnist, digits, tweets, reviews, cifar10, tiny-imagenet, the
            path of your .npz (arrays x, y and, if you like, task), or a folder of
            class folders.
        data_dir: where cifar10, tiny-imagenet or your file is; default:
            $SPARSEKIT_DATA, or here.
        scenario: class (classes are split over tasks, and told apart without the task),
            task (the task is known, in training and test) or domain (all tasks have the
            same classes, the inputs change).
        drift: of domain: permuted pixels, rotated images, or the tasks of your .npz.
        tasks: how many; an array task in your .npz says it instead.
        order: classes in the order in which they come; default: ascending.
        shuffle_classes: the seed draws the order.
        blurry: share of each task's training examples that are exchanged with other
            tasks, in [0, 1).
        train_size: so many training examples a task at most; default: all.
        seed: of the split, the order of classes, and what is exchanged.
    """

    dataset: str = "mnist5k"
    data_dir: str | None = None
    scenario: Literal["class", "task", "domain"] = "class"
    drift: Literal["permuted", "rotated", "tasks"] = "permuted"
    tasks: int = 5
    order: tuple[int, ...] = ()
    shuffle_classes: bool = False
    blurry: float = 0.0
    train_size: int | None = None
    seed: int = field(default=0, kw_only=True)


@dataclass(frozen=True)
class Config(StreamConfig, RunConfig):
    """One training on a stream of tasks. Every field is a flag and a key of a preset.

    Args:
        online: every example is seen once, and strategies are not told of tasks.
        model: mlp, cnn or resnet18.
        width: hidden units, or filters of the first convolution.
        depth: hidden layers or convolutions; unused by resnet18.
        strategy: a file in strategies/: finetune, joint, er, derpp, ...
        strategy_options: fields of the strategy, as alpha=0.2.
        loss_over: logits in the loss of the current batch: of all classes, or of the
            current task's classes only, as SparCL does it. Scenario task: always those.
        replay_from: when replay starts: as soon as the buffer holds something, as
            Mammoth does it, or with the second task, as SparCL does it.
        buffer: examples that the buffer holds; 0 for none.
        buffer_bytes: the same in bytes, all that is stored of an example; wins over
            `buffer` if given.
        policy: of the buffer: reservoir, balanced or herding.
        method: "dense", a name that `sparsekit methods` lists, or a file my_method.py.
        sparsity: fraction of zeros over all masked weights; unused by dense.
        options: other fields of the method; times in steps, "2 epochs" or "75%" (of all
            tasks together).
        keep_dense: patterns of parameter names that are not masked, as "classifier.*".
        backend: masked (dense weights with zeros), or values: layers store and compute
            alive weights only, which is faster at high sparsity. The same masks.
        epochs: passes over each task.
        batch: examples of the current task a step; an incomplete last batch is dropped,
            unless it is the only one.
        replay_batch: examples of the buffer a draw.
        optimizer: sgd, momentum (0.9) or adamw; a task begins with empty moments,
            unless online.
        lr: learning rate, constant.
        weight_decay: coefficient; biases and norms included.
        augment: random crops (4 pixels) and flips, of current and replayed images.
        part: that fills the accuracy matrix: test, or validation to choose settings.
        checkpoint_every: steps between checkpoints; 0: after every epoch.
        device: cpu or cuda.
        precision: of products and convolutions; bf16 is autocast, in training.
        compile: training passes go through torch.compile: a minute to begin with, then
            faster steps on a GPU; the same sums in another order.
        seed: of everything that is random.
    """

    online: bool = False
    model: Literal["mlp", "cnn", "resnet18"] = "mlp"
    width: int = 100
    depth: int = 2
    strategy: str = "er"
    strategy_options: dict[str, Value] = field(default_factory=dict)
    loss_over: Literal["all", "current"] = "all"
    replay_from: Literal["first", "second"] = "first"
    buffer: int = 200
    buffer_bytes: int | None = None
    policy: Literal["reservoir", "balanced", "herding"] = "reservoir"
    method: str = "dense"
    sparsity: float = 0.9
    options: dict[str, Value] = field(default_factory=dict)
    keep_dense: tuple[str, ...] = ()
    backend: Literal["masked", "values"] = "masked"
    epochs: int = 1
    batch: int = 10
    replay_batch: int = 10
    optimizer: Literal["sgd", "momentum", "adamw"] = "sgd"
    lr: float = 0.03
    weight_decay: float = 0.0
    augment: bool = False
    part: Literal["test", "validation"] = "test"
    checkpoint_every: int = 0
    device: str = "cpu"
    precision: Literal["float32", "bf16"] = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        check(self)


def preset(name: str, profile: str = "laptop", **changes: Any) -> Config:
    """A preset's settings in a profile, with some fields changed.

    Raises FileNotFoundError for an unknown preset, TypeError for an unknown field.

    >>> preset("derpp-mnist", "smoke", buffer=500).strategy
    'derpp'
    """
    return read_preset(Config, PRESETS, name, profile, **changes)


def check(config: Config) -> None:
    """ValueError for a setting out of range, before any work."""
    at_least(1, config, "tasks", "width", "epochs", "batch", "replay_batch")
    at_least(1, config, "buffer_bytes", "train_size")
    at_least(0, config, "buffer", "checkpoint_every", "depth", "weight_decay")
    require_sparsity(config.sparsity)
    positive(config, "lr")
    in_unit_interval(config, "blurry")
    if config.online and config.epochs > 1:
        raise ValueError(
            f"online means one pass: epochs must be 1, got {config.epochs}"
        )
    current = config.scenario == "task" or config.loss_over == "current"
    if config.blurry and (current or config.scenario == "domain"):
        raise ValueError(
            "blurry tasks hold all classes: use scenario class with loss_over all"
        )
    if config.online and (current or config.replay_from == "second"):
        raise ValueError(
            "online strategies are not told of tasks: use loss_over all, replay_from "
            "first and scenario class or domain"
        )
    methods.require_backend(config.backend, config.method)
    if config.compile and config.backend == "values":
        raise ValueError(
            "backend values has kernels of its own: use compile with backend masked"
        )
    if len(set(config.order)) < len(config.order):
        twice = next(c for c in config.order if config.order.count(c) > 1)
        raise ValueError(
            f"order names class {twice} twice; a class belongs to one task"
        )
    if config.order and config.shuffle_classes:
        raise ValueError("give order or shuffle_classes, not both")
    methods.build(config.method, config.sparsity, config.options, 100, 1000)
    from apps.continual import strategy  # here: it imports this module

    strategy.build(config)
