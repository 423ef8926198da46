"""Classifiers on inputs [B, C, S, S]: an MLP, a small CNN, ResNet-18 for small images.

All have one head over the classes of all tasks.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAMES = ("mlp", "cnn", "resnet18")


def mlp(width: int, depth: int, classes: int, channels: int, size: int) -> nn.Module:
    """`depth` hidden layers of `width` ReLU units; two of 100 are the literature's."""
    layers: list[nn.Module] = [nn.Flatten()]
    n_in = channels * size * size
    for _ in range(depth):
        layers += [nn.Linear(n_in, width), nn.ReLU()]
        n_in = width
    return nn.Sequential(*layers, nn.Linear(n_in, classes))


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


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, 1x1 where the shape changes."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """Four stages of two blocks with width, 2, 4 and 8 x width channels.

    The 16 3x3 convolutions in `blocks` are what SparCL masks: 98.4 % of the weights.

    He, Zhang, Ren, Sun: Deep residual learning for image recognition, 2016. Differs
    from the paper: the stem is one 3x3 convolution without pooling, as DER and SparCL
    have it for 32x32 and 64x64 pixels.
    """

    def __init__(self, width: int, classes: int, channels: int = 3):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks, n_in = [], width
        for stage in range(4):
            n_out = width * 2**stage
            blocks += [Block(n_in, n_out, 1 if stage == 0 else 2)]
            blocks += [Block(n_out, n_out, 1)]
            n_in = n_out
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(n_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = self.blocks(x)  # [B, 8 width, S/8, S/8]
        return self.classifier(x.mean((2, 3)))  # [B, classes]


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
