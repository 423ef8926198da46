"""Linear layers and convolutions: layers whose weight gradient is a matrix product.

With a sample's inputs A (d, T) and output gradients G (q, T) at T positions, the
gradient of the weight is G A' (q, d). Its squared norm is either that of the product
("instantiate", T d q operations), or the sum over pairs of positions <A'A, G'G>
("ghost", T^2 (d + q) operations): whichever is less.

A convolution is one such product for each of its taps (entries of the kernel), with
inputs that are shifted against each other. Written row by row, a shift in the image is
a shift in memory, so that the shifted inputs are views of one array and are never
copied (as `unfold` would, k^2 times); and A'A of a tap is a part of one matrix, moved
along its diagonal. The output gradients get as many columns as the padded input, zero
beyond the image.

Source: Goodfellow 2015, arXiv 1510.01799, for T = 1; Bu et al. 2022, mixed ghost
clipping, for the choice.
"""

from abc import abstractmethod
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekit.data_pruning import rule
from sparsekit.data_pruning.rule import Rule, Use

# With fewer input channels, one product of unfolded inputs beats one for each tap.
FEW_CHANNELS = 8


@dataclass(frozen=True)
class Factors:
    """A and G of every sample and group, n in all.

    g: [n, q, T]; bases: inputs [n, d, >= T]; taps: (which base, shift) for each: A of a
    tap is base[:, :, shift : shift + T].
    """

    g: Tensor
    bases: list[Tensor]
    taps: list[tuple[int, int]]

    def inputs(self, tap: int) -> Tensor:
        base, shift = self.taps[tap]
        return self.bases[base][:, :, shift : shift + self.g.shape[2]]

    def gradient(self, tap: int) -> Tensor:
        """G A', [n, q, d]."""
        return torch.bmm(self.g, self.inputs(tap).mT)

    def ghost_is_cheaper(self) -> bool:
        (q, positions), d = self.g.shape[1:], self.bases[0].shape[1]
        pairs = sum(base.shape[2] ** 2 for base in self.bases)
        entries = q * d * len(self.taps)
        ghost = pairs * d + positions**2 * (q + len(self.taps))
        if entries > rule.CHUNK and pairs + positions**2 < entries:
            return True  # the product would not fit
        return ghost < positions * entries


def product_norms(factors: Factors) -> Tensor:
    """Sum over taps of ||G A'||^2, [n].

    >>> a, g = torch.ones(1, 2, 3), torch.ones(1, 5, 3)  # G A' is 5x2, all 3
    >>> product_norms(Factors(g, [a], [(0, 0)]))
    tensor([90.])
    """
    n_taps = len(factors.taps)
    if factors.g.shape[2] == 1:
        inputs = sum(factors.inputs(k).square().sum((1, 2)) for k in range(n_taps))
        return inputs * factors.g.square().sum((1, 2))
    if factors.ghost_is_cheaper():
        return _ghost_norms(factors)
    norms = (factors.gradient(k).square_().sum((1, 2)) for k in range(n_taps))
    return torch.stack(list(norms)).sum(0)


def _ghost_norms(factors: Factors) -> Tensor:
    positions = factors.g.shape[2]
    grams = [torch.bmm(base.mT, base) for base in factors.bases]
    pairs = factors.g.new_zeros(len(factors.g), positions, positions)
    for base, shift in factors.taps:
        part = slice(shift, shift + positions)
        pairs += grams[base][:, part, part]
    pairs *= torch.bmm(factors.g.mT, factors.g)
    return pairs.sum((1, 2)).clamp_(min=0)  # rounding of terms that cancel


def masked_product_norms(factors: Factors, mask: Tensor) -> Tensor:
    """Sum over taps of ||M * (G A')||^2, [n]; mask: [groups, q, d, taps] bool."""
    g = factors.g
    weights = mask.to(g.dtype).repeat(len(g) // len(mask), 1, 1, 1).unbind(3)
    if g.shape[2] == 1:  # sum_ij m_ij g_i^2 a_j^2
        norms = [
            torch.bmm(torch.bmm(g.square().mT, m), factors.inputs(k).square()).flatten()
            for k, m in enumerate(weights)
        ]
    else:
        norms = [
            (factors.gradient(k) * m).square_().sum((1, 2))
            for k, m in enumerate(weights)
        ]
    return torch.stack(norms).sum(0)


class Product(Rule):
    """Layers with a weight and a bias whose weight gradient is a product."""

    @abstractmethod
    def factors(self, use: Use) -> Factors:
        """Inputs and output gradients."""

    @abstractmethod
    def size(self, use: Use) -> int:
        """Entries, about, that the work on one sample needs."""

    @abstractmethod
    def bias(self, grads: Tensor) -> Tensor:
        """Output gradients summed over positions, [B, q]."""

    def gradients(self, use: Use, names: set[str]) -> dict[str, Tensor]:
        found = {}
        if "weight" in names:
            factors = self.factors(use)
            taps = [factors.gradient(k) for k in range(len(factors.taps))]
            weight = torch.stack(taps, 3)  # [B * groups, q, d, taps]
            weight = weight.reshape(len(use.inputs), *use.module.weight.shape)
            found["weight"] = use.masked("weight", weight)
        if "bias" in names:
            found["bias"] = use.masked("bias", self.bias(use.grads))
        return found

    def squared_norms(self, use: Use, names: set[str]) -> dict[str, Tensor]:
        found = super().squared_norms(use, names - {"weight"})
        if "weight" in names:
            parts = [self._weight(part) for part in use.chunks(self.size(use))]
            found["weight"] = torch.cat(parts)
        return found

    def _weight(self, use: Use) -> Tensor:
        factors, mask = self.factors(use), use.masks.get("weight")
        if mask is None:
            norms = product_norms(factors)
        else:
            (n, q, _), d = factors.g.shape, factors.bases[0].shape[1]
            groups = n // len(use.inputs)
            mask = mask.reshape(groups, q, d, len(factors.taps))
            norms = masked_product_norms(factors, mask)
        return norms.view(len(use.inputs), -1).sum(1)


class LinearRule(Product):
    """nn.Linear on [B, ..., d]."""

    def size(self, use: Use) -> int:
        d, q = use.module.in_features, use.module.out_features
        positions = use.inputs[0].numel() // d
        if positions == 1:
            return d + q
        return positions * (d + q) + min(2 * positions**2, d * q)

    def bias(self, grads: Tensor) -> Tensor:
        return self._rows(grads).sum(1)

    def factors(self, use: Use) -> Factors:
        inputs = use.inputs.to(use.grads.dtype)
        return Factors(self._rows(use.grads).mT, [self._rows(inputs).mT], [(0, 0)])

    def _rows(self, x: Tensor) -> Tensor:
        """[B, ..., d] as [B, T, d]."""
        return x.reshape(len(x), prod(x.shape[1:-1]), x.shape[-1])


class ConvRule(Product):
    """nn.Conv1d and nn.Conv2d: groups, stride, dilation, every padding mode."""

    def size(self, use: Use) -> int:
        module, positions = use.module, use.grads[0, 0].numel()
        d, n_taps = module.weight[0].numel(), prod(module.kernel_size)
        channels = use.inputs.shape[1] * (n_taps if self._unfolds(module) else 1)
        entries = positions * (channels + module.out_channels)
        return entries + module.groups * min(2 * positions**2, d * module.out_channels)

    def bias(self, grads: Tensor) -> Tensor:
        return grads.flatten(2).sum(2)

    def factors(self, use: Use) -> Factors:
        module, grads = use.module, use.grads
        inputs = self._padded(module, use.inputs.to(grads.dtype))
        kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
        if grads.dim() == 3:  # Conv1d: one row
            inputs, grads = inputs.unsqueeze(2), grads.unsqueeze(2)
            kernel, stride, dilation = ((1, *x) for x in (kernel, stride, dilation))
        n = len(inputs) * module.groups
        if self._unfolds(module):
            bases = [F.unfold(inputs, kernel, dilation=dilation, stride=stride)]
            taps, grads = [(0, 0)], grads.flatten(2)
        else:
            bases, taps, grads = _shifted(inputs, grads, kernel, stride, dilation)
        bases = [x.reshape(n, x.shape[1] // module.groups, x.shape[2]) for x in bases]
        return Factors(grads.reshape(n, -1, grads.shape[2]), bases, taps)

    def _unfolds(self, module: Any) -> bool:
        return module.in_channels // module.groups < FEW_CHANNELS

    def _padded(self, module: Any, inputs: Tensor) -> Tensor:
        padding = module._reversed_padding_repeated_twice  # for 'same' uneven
        mode = module.padding_mode
        return F.pad(inputs, padding, "constant" if mode == "zeros" else mode)


def _shifted(
    inputs: Tensor,
    grads: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[list[Tensor], list[tuple[int, int]], Tensor]:
    """Bases, taps and output gradients of a convolution: `Factors` before groups.

    Tap i reads rows stride * t + dilation * i: with a stride, rows of one remainder are
    a grid of their own, on which the tap is shifted by dilation * i // stride.
    """
    # (remainder, shift) of each tap, in both directions
    rows, columns = (
        [(dilation[side] * i % stride[side], dilation[side] * i // stride[side])
         for i in range(kernel[side])]
        for side in (0, 1)
    )  # fmt: skip
    height = grads.shape[2] + max(shift for _, shift in rows)
    width = grads.shape[3] + max(shift for _, shift in columns)
    missing = (
        width * stride[1] - inputs.shape[3],  # negative: rest that no tap reads
        height * stride[0] - inputs.shape[2],
    )
    inputs = F.pad(inputs, (0, missing[0], 0, missing[1]))
    bases: list[Tensor] = []
    found: dict[tuple[int, int], int] = {}
    taps = []
    for top, down in rows:
        for left, right in columns:
            if (top, left) not in found:
                found[top, left] = len(bases)
                grid = inputs[:, :, top :: stride[0], left :: stride[1]]
                bases.append(grid.flatten(2))
            taps.append((found[top, left], down * width + right))
    padded = F.pad(grads, (0, width - grads.shape[3])).flatten(2)
    positions = (grads.shape[2] - 1) * width + grads.shape[3]
    return bases, taps, padded[:, :, :positions]
