"""What a layer type must answer about per-sample gradients: `Use` and `Rule`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# Entries of the largest temporary array: 16 MB in float32, small enough for a cache.
CHUNK = 4_194_304


@dataclass(frozen=True)
class Use:
    """One call of a layer: `module(inputs)`, and the gradient of what it returned.

    inputs: [B, ...]; grads: [B, ...], of the summed loss, one sample a row, float32 or
    float64; masks: of the module's own parameters, True = counts.
    """

    module: Any
    inputs: Tensor
    grads: Tensor
    masks: Mapping[str, Tensor]

    def chunks(self, entries_per_sample: int) -> Iterator["Use"]:
        """Parts of the batch whose temporary arrays fit into `CHUNK` entries."""
        size = max(1, CHUNK // max(1, entries_per_sample))
        pairs = zip(self.inputs.split(size), self.grads.split(size), strict=True)
        for inputs, grads in pairs:
            yield Use(self.module, inputs, grads, self.masks)

    def masked(self, name: str, gradient: Tensor) -> Tensor:
        """A parameter's gradient [B, *shape] without the entries that do not count."""
        return gradient * self.masks[name] if name in self.masks else gradient


class Rule(ABC):
    """How a type of layer answers. Its parameters are called weight and bias."""

    @abstractmethod
    def gradients(self, use: Use, names: set[str]) -> dict[str, Tensor]:
        """{name: [B, *shape of the parameter]}, masked."""

    def squared_norms(self, use: Use, names: set[str]) -> dict[str, Tensor]:
        """{name: [B]}, as cheaply as the rule can."""
        found = self.gradients(use, names)
        return {name: g.flatten(1).square().sum(1) for name, g in found.items()}
