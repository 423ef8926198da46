"""The form that one layer takes: what fits it, and what is faster here."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.execution import calibration
from sparsekit.execution.blocked import to_blocked
from sparsekit.execution.blocks import BlockLinear
from sparsekit.execution.conv import SparseConv2d
from sparsekit.execution.embedding import SparseEmbedding
from sparsekit.execution.linear import SparseLinear
from sparsekit.execution.semi_structured import SemiStructuredLinear

FORMS = ("auto", "values", "blocks", "compact", "2:4")
MARGIN = 1.05  # a form must be this much faster than dense to be taken
VALUES: dict[type[nn.Module], Any] = {
    nn.Linear: SparseLinear,
    nn.Conv2d: SparseConv2d,
    nn.Embedding: SparseEmbedding,
}

Make = Callable[[nn.Module, Tensor], nn.Module]


@dataclass(frozen=True)
class Choice:
    """What became of one layer, and why. Times: None if not measured."""

    name: str
    shape: tuple[int, ...]
    density: float
    form: str
    dense_ms: float | None
    sparse_ms: float | None
    reason: str


@dataclass(frozen=True)
class Layer:
    """A dense layer, and what decides its form."""

    name: str
    module: nn.Module
    mask: Tensor
    x: Tensor | None  # its input for the example
    training: bool
    density: float  # when it runs

    def choice(self, form: str, reason: str) -> Choice:
        shape = tuple(self.mask.shape)
        return Choice(self.name, shape, self.density, form, None, None, reason)

    def timed(self, make: Make, form: str) -> Choice:
        """Dense against sparse for this input, at the density at which it will run."""
        assert self.x is not None
        mask = self.mask
        if self.density != float(mask.float().mean()):  # to be pruned later
            noise = torch.rand(mask.shape, generator=torch.Generator().manual_seed(0))
            mask = noise < self.density
        x = self.x
        mode = "training" if self.training else "inference"
        stride = getattr(self.module, "stride", "")
        key = (
            f"{type(self.module).__name__} {tuple(mask.shape)} stride {stride} input "
            f"{tuple(x.shape)} {mode}"
        )

        def dense_call(layout: torch.memory_format) -> Callable[[], Any]:
            module = copy.deepcopy(self.module)
            if x.dim() != 4:
                return calibration.layer_call(module, x, self.training)
            module.to(memory_format=layout)  # type: ignore[call-overload]
            inner = x.contiguous(memory_format=layout)
            return calibration.layer_call(module, inner, self.training)

        def sparse_call() -> Callable[[], Any]:
            module = make(self.module, mask)
            inner = to_blocked(x) if isinstance(module, SparseConv2d) else x
            return calibration.layer_call(module, inner, self.training)

        layouts = [torch.contiguous_format, torch.channels_last][: 1 + (x.dim() == 4)]
        dense = min(
            calibration.seconds(f"{key} {layout}", partial(dense_call, layout))
            for layout in layouts
        )
        full = f"{key} {form} density {self.density:.2g}"
        sparse = calibration.seconds(full, sparse_call)
        wins = sparse * MARGIN < dense
        return replace(
            self.choice(form if wins else "dense", f"{dense / sparse:.2f}x"),
            dense_ms=dense * 1e3,
            sparse_ms=sparse * 1e3,
        )


def maker(to: str, block: int) -> Make:
    """(dense layer, mask) -> the layer in its new form; ValueError if it fits none."""

    def make(module: nn.Module, mask: Tensor) -> nn.Module:
        kind = type(module)
        if to == "values" and kind in VALUES:
            return VALUES[kind].from_dense(module, mask)
        if to == "blocks" and isinstance(module, nn.Linear):
            # Any non-zero keeps its block: a mask of `!= 0` may have holes in it.
            return BlockLinear.from_dense(_zeroed(module, mask), block)
        if to == "2:4" and isinstance(module, nn.Linear):
            return SemiStructuredLinear.from_dense(_zeroed(module, mask))
        raise ValueError(f"{kind.__name__} has no form {to!r}")

    return make


def _zeroed(module: nn.Linear, mask: Tensor) -> nn.Linear:
    copied = copy.deepcopy(module)
    with torch.no_grad():
        copied.weight.masked_fill_(~mask, 0)
    return copied
