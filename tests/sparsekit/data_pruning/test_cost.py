"""Which way of a per-sample norm is taken: the one with fewer products."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparsekit.data_pruning import rule
from sparsekit.data_pruning.per_sample import gradient_norms
from sparsekit.data_pruning.products import Factors


@pytest.mark.parametrize(
    ("positions", "q", "d", "taps", "ghost"),
    [
        (2, 512, 512, 1, True),  # few pixels, many channels
        (1024, 4, 4, 1, False),
        (64, 4096, 1, 1, False),  # the gradients' own pairs are the cost
        (16, 4096, 4, 1, False),
        (16, 4, 4096, 1, False),  # the inputs' pairs are
        (3, 64, 64, 9, True),
        (40, 16, 16, 9, True),
        (200, 16, 16, 9, False),
    ],
)
def test_products_are_counted(
    positions: int, q: int, d: int, taps: int, ghost: bool
) -> None:
    """By a count of both ways: pairs of positions, or entries of the gradient."""
    factors = Factors(
        torch.zeros(1, q, positions), [torch.zeros(1, d, positions)], [(0, 0)] * taps
    )
    by_pairs = positions**2 * d + positions**2 * q + positions**2 * taps
    by_entries = positions * q * d * taps
    assert ghost is (by_pairs < by_entries)  # the table above is right
    assert factors.ghost_is_cheaper() is ghost


class Products(TorchDispatchMode):
    """Entries of the largest result of a batched product."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.bmm.default:
            self.largest = max(self.largest, result.numel())
        return result


class Tokens(nn.Module):
    """[B, positions, d] -> [B, classes]."""

    def __init__(self, d: int, q: int):
        super().__init__()
        self.layer, self.head = nn.Linear(d, q), nn.Linear(q, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.layer(x)).mean(1))


class Pixels(nn.Module):
    """[B, c, side, side] -> [B, classes]."""

    def __init__(self, c: int, q: int, groups: int):
        super().__init__()
        self.layer, self.head = nn.Conv2d(c, q, 3, groups=groups), nn.Linear(q, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.layer(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Tokens(30, 30), (40, 30)),
        (Tokens(30, 7), (9, 30)),
        (Tokens(5, 60), (60, 5)),
        (Pixels(3, 12, 1), (3, 9, 9)),
        (Pixels(12, 12, 1), (12, 7, 7)),
        (Pixels(32, 32, 4), (32, 6, 6)),
    ],
)
def test_products_are_made_in_parts_that_fit(
    model: nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same norms, and neither more numbers at a time than told nor far fewer."""
    x, y = torch.randn(96, *shape), torch.arange(96) % 2
    whole = gradient_norms(model, x, y)
    for chunk in (20_000, 60_000):
        monkeypatch.setattr(rule, "CHUNK", chunk)
        with Products() as products:
            norms = gradient_norms(model, x, y)
        torch.testing.assert_close(norms, whole, rtol=1e-4, atol=1e-5)
        assert chunk / 40 < products.largest <= chunk
