"""Sums of gradients: of which steps, without a scaler's factor, saved as copies."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from sparsekit import Sparsifier
from sparsekit.gathering import Gathering
from sparsekit.methods.dsl import DSL
from sparsekit.methods.imp import IMP
from sparsekit.methods.static import Static
from sparsekit.weights import MaskedWeight


def gathering(dense: bool = True) -> tuple[Gathering, MaskedWeight]:
    parameter = nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.SGD([parameter], 0.1)
    weight = MaskedWeight("w", parameter, optimizer)
    with torch.no_grad():
        weight.move(torch.tensor([[True, True, False]] * 2), "zero")
    return Gathering({"w": weight}, optimizer, dense), weight


def accept(what: str, grad: Tensor | None) -> None:
    """Takes every gradient."""


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("scale", [None, 4.0])
def test_what_is_added_up(dense: bool, scale: float | None) -> None:
    sums, weight = gathering(dense)
    mask = torch.ones(2, 3) if dense else weight.alive.float()
    if scale is not None:
        sums.optimizer.grad_scale = torch.tensor(scale)  # type: ignore[attr-defined]
    assert sums.total(weight) is None
    for step in (1.0, 2.0, 4.0):
        weight.parameter.grad = torch.full((2, 3), step * (scale or 1))
        sums.add(accept)
    assert torch.equal(weight.summed, 7 * mask)
    weight.parameter.grad = torch.full((2, 3), 8.0 * (scale or 1))
    assert torch.equal(sums.total(weight), 15 * mask)  # this step's is not added yet
    assert torch.equal(weight.summed, 7 * mask)
    weight.parameter.grad = None
    sums.add(accept)
    assert torch.equal(sums.total(weight), 7 * mask)
    sums.clear()
    assert sums.total(weight) is None
    weight.parameter.grad = torch.full((2, 3), 3.0 * (scale or 1))
    assert torch.equal(sums.total(weight), 3 * mask)


def test_a_refused_gradient_adds_nothing() -> None:
    sums, weight = gathering()
    weight.parameter.grad = torch.ones(2, 3)
    sums.add(accept)

    def refuse(what: str, grad: Tensor | None) -> None:
        raise ArithmeticError(what)

    with pytest.raises(ArithmeticError, match="gradient of 'w'"):
        sums.add(refuse)
    assert torch.equal(weight.summed, torch.ones(2, 3))


def test_a_sum_is_no_view_of_a_gradient_or_of_what_was_saved() -> None:
    sums, weight = gathering()
    weight.parameter.grad = torch.ones(2, 3)
    sums.add(accept)
    weight.parameter.grad.zero_()
    assert torch.equal(weight.summed, torch.ones(2, 3))
    state = sums.state()
    other, same = gathering()
    other.load(state)
    for one, of in ((sums, weight), (other, same)):
        of.parameter.grad = torch.ones(2, 3)
        one.add(accept)
        assert torch.equal(of.summed, torch.full((2, 3), 2.0))
    assert torch.equal(state["w"], torch.ones(2, 3))
    other.load({})
    assert same.summed is None
    assert other.state() == {}


def training(method) -> SimpleNamespace:
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return SimpleNamespace(
        model=model,
        optimizer=optimizer,
        sparsifier=Sparsifier(model, optimizer, method),
    )


def step(made: SimpleNamespace, finish: bool = True) -> None:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(made.sparsifier.step))
    made.optimizer.zero_grad()
    made.model(x).square().mean().backward()
    made.sparsifier.before_step()
    if finish:
        made.optimizer.step()
        made.sparsifier.after_step()


def test_only_steps_before_a_move_are_gathered() -> None:
    made = training(DSL(0.5, every=5, end=20, gradient_steps=3))
    gathered = []
    for _ in range(11):
        step(made)
        gathered.append(bool(made.sparsifier.state_dict()["gradients"]))
    # Moves are in steps 5 and 10, and see those of 3, 4, 5 and 8, 9, 10.
    assert gathered == [False, False, False, True, True] + [False] * 3 + [
        True, True, False,
    ]  # fmt: skip


def test_a_model_to_rewind_to_is_kept_once_and_only_for_who_rewinds() -> None:
    made = training(Static(0.5))
    step(made)
    assert made.sparsifier.state_dict()["rewind"] is None
    made = training(IMP(0.5, rounds=2, every=4, rewind_to=2))
    for done in range(3):
        if done == 2:
            wanted = made.model.weight.detach().clone()
        assert made.sparsifier.state_dict()["rewind"] is None
        step(made)
    kept = made.sparsifier.state_dict()["rewind"]
    assert torch.equal(kept["weight"], wanted)
    for _ in range(6):
        step(made)
    assert torch.equal(made.sparsifier.state_dict()["rewind"]["weight"], wanted)


def test_masks_may_be_loaded_into_a_model_that_is_dense() -> None:
    """Absent weights are zero then, and their moments too."""
    trained = training(Static(0.5))
    step(trained)
    state = trained.sparsifier.state_dict()
    fresh = training(Static(0.5))
    step(fresh)
    with torch.no_grad():
        fresh.model.weight.fill_(1.0)
    fresh.sparsifier.load_state_dict(state)
    alive = trained.sparsifier.alive["weight"]
    assert torch.equal(fresh.model.weight != 0, alive)
    assert torch.equal(fresh.sparsifier.alive["weight"], alive)
    step(fresh)


def test_loading_between_the_two_lines_begins_a_new_step() -> None:
    made = training(Static(0.5))
    state = made.sparsifier.state_dict()
    step(made, finish=False)
    with pytest.raises(RuntimeError, match="save after after_step"):
        made.sparsifier.state_dict()
    made.sparsifier.load_state_dict(state)
    with pytest.raises(RuntimeError, match="after_step was called without before"):
        made.sparsifier.after_step()
    step(made)
    assert made.sparsifier.step == 1
