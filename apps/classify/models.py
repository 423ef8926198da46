"""Small classifiers on images `[B, C, S, S]`: MLP, CNN, LSTM, ResNet and MobileNet.

Shapes were chosen by measured step time on one thread (batch 100, AdamW): 0.6 ms for
`mlp(100, 2)`, 3 ms for `cnn(8, 2)`, 3 ms for `lstm(64, 1)` on 28x28 images.
"""

from torch import Tensor, nn

from apps.classify.config import Config
from apps.common.classifiers import CNN, Block, mlp
from apps.common.seeds import seeded
from sparsekit.spelling import choice

NAMES = ("mlp", "cnn", "lstm", "resnet", "mobilenet")


class LSTM(nn.Module):
    """Reads an image row by row: `size` steps of `channels * size` values.

    `width` is the hidden size, `depth` the number of stacked layers; the last hidden
    state is classified.
    """

    def __init__(self, width, depth, classes, channels=1, size=28):
        super().__init__()
        self.recurrent = nn.LSTM(channels * size, width, depth, batch_first=True)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.transpose(1, 2).flatten(2)  # [B, S, C * S]
        _, (hidden, _) = self.recurrent(rows)  # [depth, B, width]
        return self.classifier(hidden[-1])  # [B, classes]


def resnet(width: int, depth: int, classes: int, channels: int = 1):
    """`depth` residual blocks; each after the first halves the image, doubles width."""
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
    layers += [nn.BatchNorm2d(width), nn.ReLU()]
    for i in range(depth):
        layers.append(Block(width * 2 ** max(0, i - 1), width * 2**i, min(i, 1) + 1))
    return nn.Sequential(*layers, *head(width * 2 ** (depth - 1), classes))


def mobilenet(width: int, depth: int, classes: int, channels: int = 1):
    """A 3x3 convolution of stride 2, then `depth` pairs of depthwise 3x3 and 1x1.

    Every second pair from the second on halves the image and doubles the width. Nearly
    all weights are in the 1x1 convolutions.
    """

    def unit(n_in: int, n_out: int, kernel: int, stride: int, groups: int = 1):
        padding = kernel // 2
        conv = nn.Conv2d(n_in, n_out, kernel, stride, padding, 1, groups, bias=False)
        return [conv, nn.BatchNorm2d(n_out), nn.ReLU()]

    layers: list[nn.Module] = unit(channels, width, 3, 2)
    for i in range(depth):
        grows = i % 2
        layers += unit(width, width, 3, 1 + grows, groups=width)
        layers += unit(width, width * (1 + grows), 1, 1)
        width *= 1 + grows
    return nn.Sequential(*layers, *head(width, classes))


def head(width: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


def build(
    name: str, width: int, depth: int, classes: int, channels: int = 1,
    size: int = 28, seed: int = 0, norm: bool = False,
) -> nn.Module:  # fmt: skip
    """Model `name` with an initialisation that depends on `seed` alone.

    Raises ValueError for an unknown name, `width` or `depth` below 1 (an MLP may have
    depth 0: softmax regression), an image too small to pool, `norm` without a CNN.

    >>> model = build("mlp", width=100, depth=2, classes=10)
    >>> sum(p.numel() for p in model.parameters())
    89610
    """
    if name not in NAMES:
        raise ValueError(choice(f"model {name!r} is unknown", name, NAMES))
    if width < 1 or depth < (0 if name == "mlp" else 1):
        raise ValueError(f"{name} needs width and depth >= 1, got {width} and {depth}")
    if name == "cnn" and size < 4:
        raise ValueError(f"cnn needs images of at least 4x4 pixels, got {size}x{size}")
    if norm and name != "cnn":  # resnet and mobilenet have it anyway
        raise ValueError(f"norm=true is an option of the cnn, not of the {name}")
    with seeded(seed):
        if name == "mlp":
            return mlp(width, depth, classes, channels, size)
        if name == "cnn":
            return CNN(width, depth, classes, channels, size, norm)
        if name == "resnet":
            return resnet(width, depth, classes, channels)
        if name == "mobilenet":
            return mobilenet(width, depth, classes, channels)
        return LSTM(width, depth, classes, channels, size)


def of_config(config: Config, shape: tuple[int, int, int]) -> nn.Module:
    """The model of a config. shape: classes, channels, size."""
    how = (config.model, config.width, config.depth)
    return build(*how, *shape, config.seed, config.norm)
