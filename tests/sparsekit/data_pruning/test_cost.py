"""Which way of a per-sample norm is taken: the one with fewer products."""

import pytest
import torch

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
