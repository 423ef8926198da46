"""Optimizer state, measured against torch's own optimizers and closed forms."""

import copy

import pytest
import torch
from torch import nn

from sparsekit import Sparsifier, moments
from sparsekit.methods.set import SET

OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p),
    "amsgrad": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, initial_accumulator_value=0.5),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "NAdam": lambda p: torch.optim.NAdam(p),
    "Rprop": lambda p: torch.optim.Rprop(p),
}
SHAPED = {
    "momentum": {"momentum_buffer"},
    "Adam": {"exp_avg", "exp_avg_sq"},
    "amsgrad": {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"},
    "RMSprop": {"square_avg", "momentum_buffer", "grad_avg"},
    "Adagrad": {"sum"},
    "Adadelta": {"square_avg", "acc_delta"},
    "NAdam": {"exp_avg", "exp_avg_sq"},
    "Rprop": {"prev", "step_size"},
}


def stepped(name: str, n_steps: int = 3):
    """A parameter (7, 5) and its optimizer after some steps."""
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(7, 5, generator=generator))
    optimizer = OPTIMIZERS[name]([parameter])
    for _ in range(n_steps):
        parameter.grad = torch.randn(7, 5, generator=generator)
        optimizer.step()
    return parameter, optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_clear_by_shape_covers(name: str) -> None:
    parameter, optimizer = stepped(name)
    before = copy.deepcopy(optimizer.state[parameter])
    where = torch.rand(7, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    moments.clear(optimizer, parameter, where)
    after = optimizer.state[parameter]
    shaped = {k for k, v in after.items() if isinstance(v, torch.Tensor) and v.dim()}
    assert shaped == SHAPED[name]
    for key, value in after.items():
        if key in shaped:
            assert (value[where] == 0).all()
            assert torch.equal(value[~where], before[key][~where])
            assert (before[key][where] != 0).any()
        else:
            assert value == before[key], key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reset_is_a_new_optimizer(name: str) -> None:
    """It goes on as a new one would, from the same weights and gradients."""
    parameter, optimizer = stepped(name)
    moments.reset(optimizer)
    other = nn.Parameter(parameter.detach().clone())
    new = OPTIMIZERS[name]([other])
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        gradient = torch.randn(7, 5, generator=generator)
        parameter.grad, other.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        new.step()
        assert torch.equal(parameter, other)


def ratio(k: int, t: int, beta1: float = 0.9, beta2: float = 0.999) -> float:
    """Length of the k-th Adam step after a return at step t, in learning rates."""
    return (1 - beta1**k) / ((1 - beta2**k) / (1 - beta2 ** (t + k))) ** 0.5


def steps_after_a_return(t: int, policy: str, n: int) -> list[float]:
    """A weight is dropped and comes back after t steps of a constant gradient."""
    parameter = nn.Parameter(torch.zeros(3, 1, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter], lr=1.0, eps=0.0)
    gradient = torch.tensor([[2.0], [0.5], [0.5]], dtype=torch.float64)
    for _ in range(t):
        parameter.grad = gradient.clone()
        optimizer.step()
    grown = torch.tensor([[False], [True], [False]])
    moments.clear(optimizer, parameter, grown)
    if policy == "mean":
        moments.fill_mean(optimizer, parameter, grown, ~grown)
    lengths = []
    for _ in range(n):
        before = float(parameter.detach()[1])
        parameter.grad = gradient.clone()
        optimizer.step()
        lengths.append(abs(float(parameter.detach()[1]) - before))
    return lengths


@pytest.mark.parametrize("t", [100, 1000])
def test_steps_after_a_return_follow_the_formula(t: int) -> None:
    measured = steps_after_a_return(t, "zero", 60)
    expected = [ratio(k, t) for k in range(1, 61)]
    # The formula leaves out the first moment's bias correction, 1 at a late step.
    exact = [r / (1 - 0.9 ** (t + k)) for k, r in enumerate(expected, start=1)]
    assert measured == pytest.approx(exact, rel=1e-9)
    assert measured == pytest.approx(expected, rel=3e-5)
    assert max(measured) == pytest.approx({100: 2.15, 1000: 5.24}[t], abs=0.005)


def test_the_limit_that_the_docstring_names() -> None:
    lengths = [ratio(k, 10**6) for k in range(1, 61)]
    assert max(lengths) == pytest.approx(6.6, abs=0.05)
    assert lengths.index(max(lengths)) + 1 == 12


def test_the_mean_policy_starts_small() -> None:
    """exp_avg_sq starts at the mean of 4 and 0.25, times 1 - 0.999^t."""
    t = 1000
    measured = steps_after_a_return(t, "mean", 3)
    second = (1 - 0.999**t) * (4 + 0.25) / 2
    for k, length in enumerate(measured, start=1):
        second = 0.999 * second + 0.001 * 0.25
        first = 0.5 * (1 - 0.9**k) / (1 - 0.9 ** (t + k))
        expected = first / (second / (1 - 0.999 ** (t + k))) ** 0.5
        assert length == pytest.approx(expected, rel=1e-9)
    assert measured[0] < 0.1 * steps_after_a_return(t, "zero", 1)[0]


def test_mean_changes_second_moments_of_grown_weights_only() -> None:
    parameter, optimizer = stepped("amsgrad")
    state = optimizer.state[parameter]
    before = {k: v.clone() for k, v in state.items()}
    old = torch.zeros(7, 5, dtype=torch.bool)
    old[:3] = True
    grown = torch.zeros(7, 5, dtype=torch.bool)
    grown[5] = True
    moments.fill_mean(optimizer, parameter, grown, old)
    assert torch.equal(state["exp_avg"], before["exp_avg"])
    for key in ("exp_avg_sq", "max_exp_avg_sq"):
        expected = before[key].clone()
        expected[5] = before[key][:3].mean()
        torch.testing.assert_close(state[key], expected)
    moments.fill_mean(optimizer, parameter, grown, torch.zeros_like(old))
    torch.testing.assert_close(state["exp_avg_sq"][5], expected_row(before))


def expected_row(before: dict) -> torch.Tensor:
    return before["exp_avg_sq"][:3].mean().expand(5)


@pytest.mark.parametrize("policy", ["zero", "mean"])
def test_the_sparsifier_follows_the_policy(policy: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(11, 7)
    optimizer = torch.optim.AdamW(model.parameters())
    method = SET(0.5, every=4)
    sparsifier = Sparsifier(model, optimizer, method, moments=policy)
    for t in range(5):
        optimizer.zero_grad()
        model(torch.randn(13, 11)).square().mean().backward()
        old = sparsifier.alive["weight"].clone()
        sparsifier.before_step()
        alive = sparsifier.alive["weight"]
        if t == 4:
            second = optimizer.state[model.weight]["exp_avg_sq"]
            assert (alive & ~old).any()
            wanted = 0.0 if policy == "zero" else float(second[alive & old].mean())
            grown = second[alive & ~old]
            torch.testing.assert_close(grown, torch.full_like(grown, wanted))
            assert (optimizer.state[model.weight]["exp_avg"][alive & ~old] == 0).all()
            assert (second[~alive] == 0).all()
        optimizer.step()
        sparsifier.after_step()


def test_an_unknown_policy_is_refused() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"one of \('zero', 'mean'\), got 'keep'"):
        Sparsifier(model, optimizer, SET(0.5), moments="keep")
