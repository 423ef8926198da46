"""Classifiers on inputs [B, C, S, S]: an MLP, a small CNN, ResNet-18 for small images.

All have one head over the classes of all tasks. The 16 3x3 convolutions in the blocks
of ResNet-18 are what SparCL masks: 98.4 % of the weights.
"""

from torch import nn

from apps.common import classifiers
from apps.common.classifiers import NAMES
from apps.common.seeds import seeded
from sparsekit.spelling import choice


def build(
    name: str,
    width: int,
    depth: int,
    classes: int,
    shape: tuple[int, ...],
    seed: int = 0,
) -> nn.Module:
    """Model `name` for inputs of `shape`, initialised by `seed` alone.

    shape: (C, S, S) of images, or (D,) of vectors, which the MLP alone takes.

    Raises ValueError for an unknown name, or a model that does not fit the shape.

    >>> model = build("resnet18", 64, 0, classes=10, shape=(3, 32, 32))
    >>> sum(p.numel() for p in model.parameters())
    11173962
    """
    if name not in NAMES:
        raise ValueError(choice(f"model {name!r} is unknown", name, NAMES))
    if name != "mlp" and len(shape) != 3:
        raise ValueError(f"{name} needs images, got inputs of shape {list(shape)}: mlp")
    channels, size = (shape[0], shape[1]) if len(shape) == 3 else (shape[0], 1)
    if name != "cnn":
        return classifiers.build(name, width, depth, classes, channels, size, seed)
    classifiers.require_fit(name, depth, size)
    with seeded(seed):
        # No BatchNorm: its running statistics would be those of the last task.
        return classifiers.CNN(width, depth, classes, channels, size)
