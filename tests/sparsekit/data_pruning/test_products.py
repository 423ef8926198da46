"""Chunks, and the choice between two ways to the same norm, by counting operations."""

from itertools import product

import pytest
import torch
from torch import nn

from sparsekit.data_pruning import rule
from sparsekit.data_pruning.products import (
    FEW_CHANNELS,
    ConvRule,
    Factors,
    LinearRule,
    masked_product_norms,
    product_norms,
)
from sparsekit.data_pruning.rule import Use


@pytest.mark.parametrize(
    ("entries", "sizes"),
    [(0, [10, 2]), (1, [10, 2]), (2, [5, 5, 2]), (3, [3, 3, 3, 3]), (10, [1] * 12),
     (11, [1] * 12)],
)  # fmt: skip
def test_chunks_hold_what_fits(entries: int, sizes: list[int], monkeypatch) -> None:
    assert rule.CHUNK * 4 == 16 * 2**20  # bytes of float32
    monkeypatch.setattr(rule, "CHUNK", 10)
    inputs, grads = torch.arange(12.0)[:, None], torch.arange(12.0, 24)[:, None]
    masks = {"weight": torch.ones(1, dtype=torch.bool)}
    module = nn.Linear(1, 1)
    parts = list(Use(module, inputs, grads, masks).chunks(entries))
    assert [len(part.inputs) for part in parts] == sizes
    assert torch.equal(torch.cat([part.inputs for part in parts]), inputs)
    assert torch.equal(torch.cat([part.grads for part in parts]), grads)
    assert all(part.module is module and part.masks is masks for part in parts)


def factors(n: int, q: int, d: int, positions: int, taps: int, longer: int) -> Factors:
    """Taps that are shifted by one each, alternately on two bases."""
    torch.manual_seed(0)
    n_bases = min(taps, 2)
    bases = [torch.randn(n, d, positions + longer).double() for _ in range(n_bases)]
    where = [(k % n_bases, k % (longer + 1)) for k in range(taps)]
    return Factors(torch.randn(n, q, positions).double(), bases, where)


SHAPES = list(product([1, 5], [1, 4], [1, 2, 3, 7], [1, 3], [0, 2]))


@pytest.mark.parametrize(("q", "d", "positions", "taps", "longer"), SHAPES)
def test_both_ways_and_masks_give_the_same_norms(q, d, positions, taps, longer):
    made = factors(3, q, d, positions, taps, longer)
    weights = []
    for base, shift in made.taps:
        a = made.bases[base][:, :, shift : shift + positions]
        weights.append(torch.einsum("nqt,ndt->nqd", made.g, a))
    whole = torch.stack(weights, 3)
    torch.testing.assert_close(product_norms(made), whole.square().sum((1, 2, 3)))
    mask = torch.rand(1, q, d, taps) > 0.5
    expected = (whole * mask).square().sum((1, 2, 3))
    torch.testing.assert_close(masked_product_norms(made, mask), expected)
    per_group = torch.rand(3, q, d, taps) > 0.5  # three groups of one sample
    expected = (whole * per_group).square().sum((1, 2, 3))
    torch.testing.assert_close(masked_product_norms(made, per_group), expected)


@pytest.mark.parametrize(("q", "d", "positions", "taps", "longer"), SHAPES)
def test_the_cheaper_way_is_taken(q, d, positions, taps, longer, monkeypatch) -> None:
    """T d q a tap, against a Gram matrix for each base and one of the gradients."""
    made = factors(1, q, d, positions, taps, longer)
    multiplied = positions * d * q * taps
    wide = positions + longer
    ghost = sum(wide * wide * d for _ in made.bases)
    ghost += positions * positions * q
    ghost += positions * positions * taps  # parts of Gram matrices that are added
    assert made.ghost_is_cheaper() == (ghost < multiplied)
    # If the products do not fit into a chunk and the pairs are fewer, it is ghosts.
    entries = q * d * taps
    pairs = wide * wide * len(made.bases) + positions * positions
    for chunk in (entries - 1, entries):
        monkeypatch.setattr(rule, "CHUNK", chunk)
        forced = chunk < entries and pairs < entries
        assert made.ghost_is_cheaper() == (forced or ghost < multiplied)


def test_pairs_as_many_as_entries_do_not_force_ghosts(monkeypatch) -> None:
    made = factors(1, 2, 4, 2, 1, 0)  # 8 entries, 4 + 4 pairs
    monkeypatch.setattr(rule, "CHUNK", 7)
    assert not made.ghost_is_cheaper()


def use(module: nn.Module, x: torch.Tensor) -> Use:
    return Use(module, x, torch.zeros_like(module(x)).detach(), {})


@pytest.mark.parametrize(
    ("positions", "size"),
    # Inputs and gradients; then two matrices of pairs, or one of the weight's size.
    [(1, 5 + 7), (3, 3 * 12 + 2 * 9), (4, 4 * 12 + 2 * 16), (5, 5 * 12 + 35)],
)
def test_work_on_a_sample_of_a_linear_layer(positions: int, size: int) -> None:
    x = torch.randn(2, positions, 5)
    assert LinearRule().size(use(nn.Linear(5, 7), x)) == size


@pytest.mark.parametrize(
    ("module", "shape", "size"),
    [
        # inputs and gradients at 25 places; a product of 16 x 4 x 9 entries
        (nn.Conv2d(16, 4, 3, padding=1), (16, 5, 5), 25 * 20 + 16 * 4 * 9),
        # 4 places: two matrices of 16 pairs
        (nn.Conv2d(16, 4, 3, padding=1), (16, 2, 2), 4 * 20 + 2 * 16),
        # few channels: inputs are unfolded, 9 of each
        (nn.Conv2d(3, 4, 3, padding=1), (3, 5, 5), 25 * (27 + 4) + 3 * 4 * 9),
        (nn.Conv2d(16, 4, 3, padding=1, groups=2), (16, 5, 5),
         25 * 20 + 2 * 8 * 4 * 9),
        (nn.Conv1d(16, 4, 3, padding=1), (16, 5), 5 * 20 + 2 * 25),
    ],
)  # fmt: skip
def test_work_on_a_sample_of_a_convolution(module, shape, size: int) -> None:
    assert ConvRule().size(use(module, torch.randn(2, *shape))) == size


@pytest.mark.parametrize("groups", [1, 2])
def test_few_channels_of_a_group_are_unfolded(groups: int) -> None:
    for channels in (FEW_CHANNELS - 1, FEW_CHANNELS):
        module = nn.Conv2d(channels * groups, 2 * groups, 3, groups=groups)
        made = ConvRule().factors(use(module, torch.randn(2, channels * groups, 5, 5)))
        assert len(made.taps) == (1 if channels < FEW_CHANNELS else 9)
        assert len(made.g) == 2 * groups
    assert FEW_CHANNELS == 8
