"""Patterns: which entries of a weight stay or go together.

A pattern is a frozen dataclass. `count(shape, sparsity)` is the number of active
entries nearest to the wish that it can reach; `mask(scores, n_active)` chooses them.
Weights are (out, in) or (out, in, kernel...). Errors name the tensor if given `name`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from sparsekit.masks import count_active, topk_mask


class Pattern(ABC):
    """What every pattern answers."""

    @abstractmethod
    def count(self, shape: Sequence[int], sparsity: float, name: str = "") -> int:
        """The reachable number of active entries nearest to count_active(N, sparsity).

        Of two that are as near, the larger; at least one unit. ValueError if the
        pattern does not fit the shape.
        """

    @abstractmethod
    def mask(self, scores: Tensor, n_active: int, name: str = "") -> Tensor:
        """Bool mask with exactly `n_active` entries, in whole units of best mean score.

        ValueError if the count is not reachable, for NaN, or for a shape that does not
        fit. Ties as in `topk_mask`, by the order of the units.
        """


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Every entry for itself.

    >>> Unstructured().count((3, 5), 0.5)
    7
    """

    def count(self, shape: Sequence[int], sparsity: float, name: str = "") -> int:
        return count_active(prod(shape), sparsity)

    def mask(self, scores: Tensor, n_active: int, name: str = "") -> Tensor:
        return topk_mask(scores, n_active)


@dataclass(frozen=True)
class NM(Pattern):
    """The n best of every m consecutive entries along the input dimension.

    A convolution is grouped over m consecutive input channels at the same kernel
    position. The pattern fixes the sparsity to 1 - n/m, whatever is asked for.

    >>> NM(1, 2).mask(torch.tensor([[1.0, 2.0, 4.0, 3.0]]), 2)
    tensor([[False,  True,  True, False]])

    Source: Zhou et al. 2021, arXiv 2102.04010.
    """

    n: int
    m: int

    def __str__(self) -> str:
        return f"NM({self.n}, {self.m})"

    def __post_init__(self) -> None:
        _require_sizes(self, n=self.n, m=self.m)
        if self.n > self.m:
            raise ValueError(f"{self} keeps more than it has: n <= m is needed")

    def count(self, shape: Sequence[int], sparsity: float, name: str = "") -> int:
        count_active(prod(shape), sparsity)  # refuses what is not a sparsity
        self._require(shape, name)
        return prod(shape) // self.m * self.n

    def mask(self, scores: Tensor, n_active: int, name: str = "") -> Tensor:
        self._require(scores.shape, name)
        reachable = scores.numel() // self.m * self.n
        if n_active != reachable:
            raise ValueError(
                f"{self} keeps {reachable} of {scores.numel()} entries{_of(name)}, "
                f"not {n_active}"
            )
        last = scores.movedim(1, -1)
        groups = last.reshape(-1, self.m)
        if groups.is_floating_point() and bool(groups.isnan().any()):
            raise ValueError(f"scores{_of(name)} hold NaN: their order is undefined")
        best = groups.argsort(dim=1, descending=True, stable=True)[:, : self.n]
        mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, best, True)
        return mask.view(last.shape).movedim(-1, 1).contiguous()

    def _require(self, shape: Sequence[int], name: str) -> None:
        _require_matrix(self, shape, name)
        inputs = "in_features" if len(shape) == 2 else "in_channels"
        _require_divisible(self, inputs, shape[1], self.m, name)


class _Units(Pattern):
    """Patterns of equal, disjoint units, kept or dropped whole."""

    @abstractmethod
    def _view(self, tensor: Tensor, name: str) -> Tensor:
        """`tensor` with dimensions (unit row, unit column, ...entries of the unit)."""

    def count(self, shape: Sequence[int], sparsity: float, name: str = "") -> int:
        units = self._view(torch.empty(tuple(shape), device="meta"), name)
        size = prod(units.shape[2:])
        wish = count_active(prod(shape), sparsity)
        return max(1, (2 * wish + size) // (2 * size)) * size

    def mask(self, scores: Tensor, n_active: int, name: str = "") -> Tensor:
        exact = torch.promote_types(scores.dtype, torch.float32)
        units = self._view(scores.to(exact), name)
        size = prod(units.shape[2:])
        if n_active % size:
            raise ValueError(
                f"{self} keeps whole units of {size} entries{_of(name)}: {n_active} "
                "active entries are not reachable"
            )
        means = units.mean(dim=tuple(range(2, units.dim())))
        mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
        view = self._view(mask, name)
        chosen = topk_mask(means, n_active // size)
        view.copy_(chosen.view(*chosen.shape, *[1] * (view.dim() - 2)).expand_as(view))
        return mask


@dataclass(frozen=True)
class Block(_Units):
    """Blocks of height x width entries of the matrix (out, in * kernel).

    >>> Block(2, 2).mask(torch.tensor([[1.0, 2, 3, 4], [1, 2, 3, 4]]), 4)
    tensor([[False, False,  True,  True],
            [False, False,  True,  True]])
    """

    height: int
    width: int

    def __str__(self) -> str:
        return f"Block({self.height}, {self.width})"

    def __post_init__(self) -> None:
        _require_sizes(self, height=self.height, width=self.width)

    def _view(self, tensor: Tensor, name: str) -> Tensor:
        _require_matrix(self, tensor.shape, name)
        rows, columns = tensor.shape[0], prod(tensor.shape[1:])
        _require_divisible(self, "out", rows, self.height, name)
        inputs = "in" if tensor.dim() == 2 else "in * kernel"
        _require_divisible(self, inputs, columns, self.width, name)
        blocks = tensor.view(
            rows // self.height, self.height, columns // self.width, self.width
        )
        return blocks.transpose(1, 2)


@dataclass(frozen=True)
class Rows(_Units):
    """Whole output neurons or filters.

    >>> Rows().mask(torch.tensor([[1.0, 2.0], [3.0, 0.5]]), 2)
    tensor([[False, False],
            [ True,  True]])
    """

    def _view(self, tensor: Tensor, name: str) -> Tensor:
        _require_matrix(self, tensor.shape, name)
        return tensor.unsqueeze(1)


@dataclass(frozen=True)
class Columns(_Units):
    """Whole input features or channels, with all kernel positions.

    >>> Columns().mask(torch.tensor([[1.0, 2.0], [3.0, 0.5]]), 2)
    tensor([[ True, False],
            [ True, False]])
    """

    def _view(self, tensor: Tensor, name: str) -> Tensor:
        _require_matrix(self, tensor.shape, name)
        return tensor.transpose(0, 1).unsqueeze(1)


def _of(name: str) -> str:
    return f" in {name!r}" if name else ""


def _require_sizes(pattern: Pattern, **sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{pattern}: {name} is an integer >= 1, got {size!r}")


def _require_matrix(pattern: Pattern, shape: Sequence[int], name: str) -> None:
    if len(shape) < 2 or prod(shape) < 1:
        raise ValueError(
            f"{pattern} needs a weight (out, in, ...), got shape {tuple(shape)}"
            f"{_of(name)}"
        )


def _require_divisible(
    pattern: Pattern, dimension: str, size: int, divisor: int, name: str
) -> None:
    if size % divisor:
        raise ValueError(
            f"{pattern} needs {dimension} divisible by {divisor}, got {size}{_of(name)}"
        )
