"""Classifiers on inputs [B, C, S, S]: an MLP, a small CNN, ResNet-18 for small images.

All have one head over the classes of all tasks. The 16 3x3 convolutions in the blocks
of ResNet-18 are what SparCL masks: 98.4 % of the weights.
"""

from typing import Any

import torch
from torch import Tensor, nn

from apps.common.classifiers import NAMES, ResNet18, mlp


class CNN(nn.Module):
    """`depth` 3x3 convolutions, the first two halved by max pooling, and a linear one.

    `width` filters, then twice as many. No BatchNorm: its running statistics would be
    those of the last task.
    """

    def __init__(self, width: int, depth: int, classes: int, channels: int, size: int):
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(depth):
            filters = width if i == 0 else 2 * width
            layers.append(nn.Conv2d(channels, filters, 3, padding=1))
            channels = filters
            if i < 2:
                layers.append(nn.MaxPool2d(2))
                size //= 2
            layers.append(nn.ReLU())
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * size * size, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))  # [B, classes]


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
        raise ValueError(f"model {name!r} is unknown; choose one of {', '.join(NAMES)}")
    if name != "mlp" and len(shape) != 3:
        raise ValueError(f"{name} needs images, got inputs of shape {list(shape)}: mlp")
    if name == "cnn" and (depth < 1 or shape[1] < 4):
        raise ValueError(
            f"cnn needs depth >= 1 and images of at least 4x4 pixels, got {depth} and "
            f"{shape[1]}x{shape[2]}"
        )
    channels, size = (shape[0], shape[1]) if len(shape) == 3 else (shape[0], 1)
    with torch.random.fork_rng(devices=[]):  # the caller's generator is left alone
        torch.manual_seed(seed)
        if name == "mlp":
            return mlp(width, depth, classes, channels, size)
        if name == "cnn":
            return CNN(width, depth, classes, channels, size)
        return ResNet18(width, classes, channels)


def features(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the last layer with weights sees, [B, d], and the logits [B, K]."""
    last = [m for m in model.modules() if not [*m.children()] and [*m.parameters()]][-1]
    seen: list[Any] = []
    handle = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits = model(x)
    finally:
        handle.remove()
    return seen[0], logits
