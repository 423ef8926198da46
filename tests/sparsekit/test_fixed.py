"""Given masks never move, whatever the optimizer does."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsekit import fixed
from sparsekit.masks import density


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def masks_of(model: nn.Module, share: float = 0.4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(p.shape, generator=generator) < share
        for name, p in model.named_parameters()
        if p.dim() > 1
    }


def optimizers() -> dict:
    return {
        "sgd": lambda ps: torch.optim.SGD(ps, 0.1, weight_decay=0.1),
        "momentum": lambda ps: torch.optim.SGD(ps, 0.1, 0.9, weight_decay=0.1),
        "adam": lambda ps: torch.optim.Adam(ps, 0.1),
        "adamw": lambda ps: torch.optim.AdamW(ps, 0.1, weight_decay=0.1, fused=True),
    }


def train(model: nn.Module, optimizer, after=lambda: None) -> None:
    generator = torch.Generator().manual_seed(2)
    for _ in range(6):
        x = torch.randn(11, 5, generator=generator)
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        after()


@pytest.mark.parametrize("kind", optimizers())
def test_kept_masks_equal_masks_applied_by_hand_after_each_step(kind):
    """The optimizers work entry by entry: what absent weights do changes no other."""
    ours, plain = network(), network()
    masks = masks_of(ours)
    make = optimizers()[kind]
    optimizer = make(ours.parameters())
    fixed.keep(ours, optimizer, masks)
    fixed.apply(plain, masks)

    def by_hand() -> None:
        with torch.no_grad():
            for name, mask in masks.items():
                plain.get_parameter(name)[~mask] = 0

    train(ours, optimizer)
    train(plain, make(plain.parameters()), by_hand)
    for name, p in ours.named_parameters():
        assert torch.equal(p, plain.get_parameter(name))
    for name, mask in masks.items():
        state = optimizer.state[ours.get_parameter(name)]
        for moment in state.values():
            if torch.is_tensor(moment) and moment.shape == mask.shape:
                assert not moment[~mask].any()
                assert moment[mask].any()


def test_what_may_not_change_keeps_its_bits():
    model = network()
    before = copy.deepcopy(model.state_dict())
    movable = {"0.weight": torch.rand(7, 5) < 0.5}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=0.1)
    fixed.keep(model, optimizer, {}, trainable=movable)
    train(model, optimizer)
    after = model.state_dict()
    same = after["0.weight"] == before["0.weight"]
    assert torch.equal(same, ~movable["0.weight"])
    assert not torch.equal(after["2.weight"], before["2.weight"])


def test_no_masks_are_a_plain_training():
    ours, plain = network(), network()
    optimizer = torch.optim.SGD(ours.parameters(), 0.1, 0.9)
    fixed.keep(ours, optimizer, {})
    train(ours, optimizer)
    train(plain, torch.optim.SGD(plain.parameters(), 0.1, 0.9))
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_masks_of_a_sparse_model_are_found_in_it():
    model = network()
    masks = masks_of(model)
    fixed.apply(model, masks)
    found = fixed.of_zeros(model)
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[name], masks[name]) for name in masks)
    with torch.no_grad():
        model[2].weight.fill_(1)
        model[0].bias.zero_()  # zeros of a vector are no mask
    assert list(fixed.of_zeros(model)) == ["0.weight"]


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), max_size=4))
@settings(deadline=None)
def test_density_is_the_share_of_true_entries(rows):
    masks = {str(i): torch.tensor(row) for i, row in enumerate(rows)}
    entries = [entry for row in rows for entry in row]
    expected = sum(entries) / len(entries) if entries else 1.0
    assert density(masks) == expected


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({"1.weight": torch.ones(2, dtype=torch.bool)}, "'1.weight': the model has 0."),
        ({"0.weight": torch.ones(7, 5)}, r"bool of shape \(7, 5\), got torch.float32"),
        ({"0.weight": torch.ones(5, 7, dtype=torch.bool)}, r"got torch.bool of \(5, 7"),
    ],
)
def test_a_mask_that_fits_nothing_is_refused(masks, words):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for refuses in (
        lambda: fixed.check(model, masks),
        lambda: fixed.apply(model, masks),
        lambda: fixed.keep(model, optimizer, masks),
        lambda: fixed.keep(model, optimizer, {}, trainable=masks),
    ):
        with pytest.raises(ValueError, match=words):
            refuses()


def test_its_sparsity_is_that_of_its_masks_at_any_time() -> None:
    masks = masks_of(network())
    method = fixed.Fixed.of(masks)
    alive = sum(int(mask.sum()) for mask in masks.values())
    for step in (0, 1, 1000):
        assert method.sparsity_at(step) == 1 - alive / 56
        assert not method.due(step)
