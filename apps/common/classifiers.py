"""Three classifiers on images [B, C, S, S]: an MLP, a small CNN, ResNet-18 for 32x32.

All end in an `nn.Linear` and use layers whose per-sample gradients are exact in
`sparsekit.data_pruning`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAMES = ("mlp", "cnn", "resnet18")


def mlp(width: int, depth: int, classes: int, channels: int, size: int) -> nn.Module:
    """`depth` hidden layers of `width` ReLU units."""
    layers: list[nn.Module] = [nn.Flatten()]
    n_in = channels * size * size
    for _ in range(depth):
        layers += [nn.Linear(n_in, width), nn.ReLU()]
        n_in = width
    return nn.Sequential(*layers, nn.Linear(n_in, classes))


def cnn(width: int, depth: int, classes: int, channels: int, size: int) -> nn.Module:
    """`depth` 3x3 convolutions with BatchNorm, the first two halved by max pooling.

    `width` filters, then twice as many. Pooling comes before BatchNorm and ReLU, which
    saves three quarters of their work.
    """
    layers: list[nn.Module] = []
    for i in range(depth):
        filters = width if i == 0 else 2 * width
        layers.append(nn.Conv2d(channels, filters, 3, padding=1, bias=False))
        channels = filters
        if i < 2:
            layers.append(nn.MaxPool2d(2))
            size //= 2
        layers += [nn.BatchNorm2d(filters), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(channels * size * size, classes)
    )


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
    name: str,
    width: int,
    depth: int,
    classes: int,
    channels: int = 1,
    size: int = 28,
    seed: int = 0,
) -> nn.Module:
    """Model `name` with an initialisation that depends on `seed` alone.

    Raises ValueError for an unknown name, a depth below 1 (an MLP may have 0), an image
    too small to be halved twice.

    >>> model = build("resnet18", width=64, depth=0, classes=10, channels=3, size=32)
    >>> sum(p.numel() for p in model.parameters())
    11173962
    """
    if name not in NAMES:
        raise ValueError(f"model {name!r} is unknown; choose one of {', '.join(NAMES)}")
    if name == "cnn" and (depth < 1 or size < 4):
        raise ValueError(
            f"cnn needs depth >= 1 and images of at least 4x4 pixels, got {depth} and "
            f"{size}x{size}"
        )
    if depth < 0:
        raise ValueError(f"depth must be at least 0, got {depth}")
    with torch.random.fork_rng(devices=[]):  # the caller's generator is left alone
        torch.manual_seed(seed)
        if name == "mlp":
            return mlp(width, depth, classes, channels, size)
        if name == "cnn":
            return cnn(width, depth, classes, channels, size)
        return ResNet18(width, classes, channels)
