"""A layer in values mode that is slow and plain, to check everything else against."""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from sparsekit.execution.layer import SparseLayer


class ReferenceLayer(SparseLayer):
    """A Linear or Conv2d that makes its dense weight in every forward pass.

    The same kernels then run on the same numbers as in a masked dense layer, so that a
    training in values mode equals a masked one bit for bit.
    """

    places: Tensor

    def __init__(self, module: nn.Linear | nn.Conv2d, mask: Tensor | None = None):
        every = torch.ones_like(module.weight, dtype=torch.bool)
        super().__init__(module.weight, every if mask is None else mask)
        self.bias = None if module.bias is None else nn.Parameter(module.bias.detach())
        self._dense = (module,)  # in a tuple, it is no submodule

    def _derive(self) -> None:
        self.register_buffer("places", self.positions(), persistent=False)

    def to_module(self) -> nn.Module:
        module = self._dense[0]
        with torch.no_grad():
            module.weight.copy_(self.to_dense())
            if module.bias is not None:
                assert self.bias is not None
                module.bias.copy_(self.bias)
        return module

    def forward(self, x: Tensor) -> Tensor:
        self.build()
        numel = torch.Size(self.dense_shape).numel()
        flat = self.values.new_zeros(numel).index_put((self.places,), self.values)
        weight = flat.view(self.dense_shape)
        if self.probe is not None:
            weight = weight + self.probe
        multiply = linear if weight.dim() == 2 else conv2d
        return multiply(x, weight, self.bias)


def in_values_mode(model: nn.Module) -> nn.Module:
    """The model itself, its linear layers and convolutions replaced."""
    for name, module in list(model.named_modules()):
        if type(module) in (nn.Linear, nn.Conv2d):
            model.set_submodule(name, ReferenceLayer(module))
    return model
