"""What linear layers share whose rows, in groups, read some of the inputs."""

from abc import abstractmethod
from typing import Self

import torch
from torch import Tensor, nn

from sparsekit.execution.layer import linear_of


class PackedLinear(nn.Module):
    """y = W x + b with W packed: what exists, group by group, and where it belongs.

    Attributes:
        weight: what exists; columns: (groups, k) integers, what each group reads.
        in_features, out_features; bias: (out_features,) or None.
    """

    columns: Tensor
    weight: nn.Parameter
    bias: nn.Parameter | None

    @classmethod
    def _like(cls, module: nn.Linear, packed: Tensor, columns: Tensor) -> Self:
        """With the bias of a dense layer, its mode, and what of it is trained."""
        layer = cls(packed, columns, module.in_features, module.bias)
        layer.weight.requires_grad_(module.weight.requires_grad)
        if layer.bias is not None:
            layer.bias.requires_grad_(module.bias.requires_grad)
        return layer.train(module.training)

    def to_module(self) -> nn.Linear:
        """The dense layer, with zeros where nothing is read."""
        return linear_of(self.to_dense(), self.bias, self.training)

    def to_dense(self) -> Tensor:
        """The dense weight (out, in), detached."""
        return self._scatter(self.weight.detach())

    def mask(self) -> Tensor:
        """bool (out, in): True where the layer reads."""
        return self._scatter(torch.ones_like(self.weight, dtype=torch.bool))

    @abstractmethod
    def _scatter(self, values: Tensor) -> Tensor:
        """Values like the packed weight -> (out, in), zero elsewhere."""
