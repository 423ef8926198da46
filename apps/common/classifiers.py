"""Three classifiers on images [B, C, S, S]: an MLP, a small CNN, ResNet-18 for 32x32.

All end in an `nn.Linear` and use layers whose per-sample gradients are exact in
`sparsekit.data_pruning`.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from apps.common.seeds import seeded
from sparsekit.spelling import choice

NAMES = ("mlp", "cnn", "resnet18")


def mlp(width: int, depth: int, classes: int, channels: int, size: int) -> nn.Module:
    """`depth` hidden layers of `width` ReLU units."""
    layers: list[nn.Module] = [nn.Flatten()]
    n_in = channels * size * size
    for _ in range(depth):
        layers += [nn.Linear(n_in, width), nn.ReLU()]
        n_in = width
    return nn.Sequential(*layers, nn.Linear(n_in, classes))


def convolutions(
    width: int, depth: int, channels: int, size: int, norm: bool
) -> tuple[list[nn.Module], int]:
    """`depth` 3x3 convolutions, the first two halved by max pooling; and their outputs.

    `width` filters, then twice as many. Pooling comes before BatchNorm and ReLU, which
    saves three quarters of their work; before ReLU alone it is the same function,
    because ReLU is monotone.
    """
    layers: list[nn.Module] = []
    for i in range(depth):
        filters = width if i == 0 else 2 * width
        layers.append(nn.Conv2d(channels, filters, 3, padding=1, bias=not norm))
        channels = filters
        if i < 2:
            layers.append(nn.MaxPool2d(2))
            size //= 2
        layers += [nn.BatchNorm2d(filters)] * norm + [nn.ReLU()]
    return layers, channels * size * size


def cnn(width: int, depth: int, classes: int, channels: int, size: int) -> nn.Module:
    """`convolutions` with BatchNorm and a linear layer, all in one sequence."""
    layers, n_in = convolutions(width, depth, channels, size, norm=True)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(n_in, classes))


class CNN(nn.Module):
    """`convolutions` and a linear layer, by name: features, classifier."""

    def __init__(
        self, width: int, depth: int, classes: int, channels: int, size: int,
        norm: bool = False,
    ):  # fmt: skip
        super().__init__()
        layers, n_in = convolutions(width, depth, channels, size, norm)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(n_in, classes)

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
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet18(nn.Module):
    """Four stages of two blocks with width, 2, 4 and 8 x width channels.

    He, Zhang, Ren, Sun: Deep residual learning for image recognition, 2016. Differs
    from the paper: the stem is one 3x3 convolution without pooling, as usual for
    32x32 pixels.
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
    name: str, width: int, depth: int, classes: int, channels: int = 1,
    size: int = 28, seed: int = 0,
) -> nn.Module:  # fmt: skip
    """Model `name` with an initialisation that depends on `seed` alone.

    Raises ValueError for an unknown name, a depth below 1 (an MLP may have 0), an image
    too small to be halved twice.

    >>> model = build("resnet18", width=64, depth=0, classes=10, channels=3, size=32)
    >>> sum(p.numel() for p in model.parameters())
    11173962
    """
    if name not in NAMES:
        raise ValueError(choice(f"model {name!r} is unknown", name, NAMES))
    require_fit(name, depth, size)
    with seeded(seed):
        if name == "mlp":
            return mlp(width, depth, classes, channels, size)
        if name == "cnn":
            return cnn(width, depth, classes, channels, size)
        return ResNet18(width, classes, channels)


def require_fit(name: str, depth: int, size: int) -> None:
    """ValueError for a depth below 1 of the cnn, 0 of others; for a tiny image."""
    if name == "cnn" and (depth < 1 or size < 4):
        raise ValueError(
            f"cnn needs depth >= 1 and images of at least 4x4 pixels, got {depth} and "
            f"{size}x{size}"
        )
    if depth < 0:
        raise ValueError(f"depth must be at least 0, got {depth}")


def features(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the last layer with weights sees, [B, d], and the logits [B, K].

    >>> import torch
    >>> model = nn.Sequential(nn.ReLU(), nn.Linear(2, 3))
    >>> features(model, torch.tensor([[1.0, -1.0]]))[0]
    tensor([[1., 0.]])
    """
    last = [m for m in model.modules() if not [*m.children()] and [*m.parameters()]][-1]
    seen: list[Any] = []
    handle = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits = model(x)
    finally:
        handle.remove()
    return seen[0], logits
