"""The networks that benchmarks run: a ResNet-18 and a small vision transformer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.common.classifiers import Block


def resnet18(width: int = 16, classes: int = 10) -> nn.Module:
    """ResNet-18 for small images, [B, 3, 32, 32]: no pooling at the start."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False)]
    layers += [nn.BatchNorm2d(width), nn.ReLU()]
    n_in = width
    for stage in range(4):
        for block in range(2):
            n_out = width * 2**stage
            layers.append(Block(n_in, n_out, 2 if stage and not block else 1))
            n_in = n_out
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, classes)]
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """A transformer block with the norm first."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, d // self.heads)
        mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """[B, 3, 32, 32], patches of 4x4: 64 tokens of width 96, 4 blocks."""

    def __init__(self, width: int = 96, depth: int = 4, heads: int = 4):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.position = nn.Embedding(64, width)
        self.blocks = nn.Sequential(*(Encoder(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        places = torch.arange(64, device=x.device).repeat(len(x), 1)
        tokens = self.blocks(tokens + self.position(places))
        return self.head(self.norm(tokens).mean(1))


NETWORKS = {"resnet18-w16": resnet18, "vit-w96-d4": ViT}
