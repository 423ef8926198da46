"""What the probe of one sample accepts, and what it refuses, to the last digit."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from sparsekit.data_pruning.per_sample import gradient_norms
from sparsekit.data_pruning.probe import Probe, precise, require_batch_first
from tests.sparsekit.data_pruning.networks import by_loop, mlp

NORM = 13**0.5  # of the probe's whole gradient


def check(
    loss: float = 2.0,
    found: float = 2.0,
    norms: tuple[float, float] = (2.0, 3.0),
    dtype: torch.dtype = torch.float32,
    names: str = "ab",
) -> None:
    """A probe whose gradients have norms 2 and 3 looks at what the fast pass found."""
    probe = Probe(1, Counter("ab"), loss, {"a": 4.0, "b": 9.0})
    losses = torch.tensor([7.0, found, 5.0], dtype=torch.float64).to(dtype)
    squares = {
        name: torch.tensor([50.0, norm**2, 60.0], dtype=torch.float64)
        for name, norm in zip(names, norms, strict=False)
    }
    probe.check(losses, squares)


@pytest.mark.parametrize(
    ("loss", "room"), [(2.0, 2e-4), (-3.0, 3e-4), (1.0, 1e-4), (0.5, 1e-4)]
)
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_loss_may_differ_by_rounding_only(loss: float, room: float, sign) -> None:
    check(loss, loss + sign * 0.97 * room, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"the loss of sample 1 is .* by itself and"):
        check(loss, loss + sign * 1.03 * room, dtype=torch.float64)
    with pytest.raises(ValueError, match="samples influence each other"):
        check(loss, float("nan"))


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("which", [0, 1])
def test_a_norm_may_differ_by_rounding_of_the_whole_gradient(which: int, sign) -> None:
    room = sign * 10 * 1e-4 * NORM
    near, far = [2.0, 3.0], [2.0, 3.0]
    near[which] += 0.97 * room
    far[which] += 1.03 * room
    check(norms=tuple(near))
    with pytest.raises(ValueError, match=f"the gradient of {'ab'[which]!r} has norm"):
        check(norms=tuple(far))
    far[which] = float("nan")
    with pytest.raises(ValueError, match="by the rule of its layer"):
        check(norms=tuple(far))


def test_a_parameter_that_the_fast_pass_does_not_find_has_no_gradient() -> None:
    with pytest.raises(ValueError, match=r"gradient of 'b' has norm 3 .* and 0 by"):
        check(names="a")
    probe = Probe(0, Counter("a"), 1.0, {"a": 1.0, "unused": 0.0})
    probe.check(torch.ones(1), {"a": torch.ones(1)})


@pytest.mark.parametrize(("loss", "looked_at"), [(0.049, False), (0.05, True)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_of_a_loss_near_its_minimum_gradients_are_rounding(loss, looked_at, sign):
    if not looked_at:
        check(sign * loss, sign * loss, (5.0, 5.0))
        return
    with pytest.raises(ValueError, match="has norm"):
        check(sign * loss, sign * loss, (5.0, 5.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_less_exact(dtype: torch.dtype) -> None:
    check(norms=(2 + 0.29 * NORM, 3.0), dtype=dtype)
    with pytest.raises(ValueError, match="has norm"):
        check(norms=(2 + 0.31 * NORM, 3.0), dtype=dtype)


def test_autocast_and_fast_products_are_less_exact() -> None:
    far = (2 + 0.29 * NORM, 3.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check(norms=far)
    for precision in ("high", "medium"):
        torch.set_float32_matmul_precision(precision)
        try:
            check(norms=far)
        finally:
            torch.set_float32_matmul_precision("highest")
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(ValueError, match="has norm"):
            check(norms=far, dtype=dtype)


class Swapped(nn.Module):
    """Takes the second dimension for the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x.transpose(0, 1)).square().mean(0))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_dimension_as_long_as_the_batch_is_not_taken_for_it(n: int) -> None:
    x, y = torch.randn(n, n, 4), torch.zeros(n, dtype=torch.int64)
    few = 2 if n == 1 else 1  # never the batch's own number
    with pytest.raises(ValueError, match=f"'inner' is called .* a batch of {few}: the"):
        gradient_norms(Swapped(), x, y)


@pytest.mark.parametrize(
    ("args", "output"),
    [
        ((torch.ones(3, 2),), (torch.ones(3, 2),)),
        ((torch.ones(3, 2), torch.ones(3, 2)), torch.ones(3, 2)),
        ((), torch.ones(3, 2)),
        ((None,), torch.ones(3, 2)),
    ],
)
def test_a_layer_takes_one_tensor_and_returns_one(args, output) -> None:
    with pytest.raises(ValueError, match="'l' must be called with one tensor and re"):
        require_batch_first("l", args, output, 3)


@pytest.mark.parametrize(
    ("x", "right"),
    [
        (torch.ones(3, 2), True), (torch.ones(3), False), (torch.ones(2, 3), False),
        (torch.ones(3).long(), True), (torch.tensor(3), False),
        (torch.ones(3, 2, 2), True), (torch.ones(2).long(), False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["input", "output"])
def test_the_batch_is_the_first_dimension(x: Tensor, right: bool, where: str) -> None:
    args, output = (torch.ones(3, 2),), torch.ones(3, 2)
    if where == "input":
        args = (x,)
    else:
        output = x
    if right:
        require_batch_first("l", args, output, 3)
        return
    with pytest.raises(ValueError, match="must be its first dimension"):
        require_batch_first("l", args, output, 3)


def test_precise_is_float32_at_least() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert precise(torch.ones(2, dtype=dtype)).dtype == torch.float32
    assert precise(torch.ones(2, dtype=torch.float64)).dtype == torch.float64


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 2), nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_parameter_without_use_has_gradient_zero(one_by_one: bool) -> None:
    found = gradient_norms(
        Unused(), torch.randn(4, 3), torch.tensor([0, 1, 0, 1]), params=["unused"],
        one_by_one=one_by_one,
    )  # fmt: skip
    assert found.tolist() == [0.0] * 4


@pytest.mark.parametrize("one_by_one", [False, True])
def test_parameters_that_do_not_count_stay_as_they_are(one_by_one: bool) -> None:
    model, x, y = mlp()
    model[0].requires_grad_(False)
    before = {n: (p.clone(), p.requires_grad) for n, p in model.named_parameters()}
    wanted = ["0.weight", "2.bias"]  # one of them frozen
    gradient_norms(model, x, y, params=wanted, one_by_one=one_by_one)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]
        assert parameter.grad is None
        assert parameter.is_leaf


class Doubled(nn.Module):
    """A norm whose bias is its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(5)
        self.norm.bias = self.norm.weight
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)[:, :3]


def test_one_parameter_in_two_places_of_a_layer() -> None:
    torch.manual_seed(0)
    model, x, y = Doubled(), torch.randn(6, 5), torch.arange(6) % 3
    found = gradient_norms(model, x, y)
    torch.testing.assert_close(found.double(), by_loop(model, x, y))


def test_targets_may_require_a_gradient() -> None:
    model, x, _ = mlp()
    wish = torch.randn(13, 3)
    loss = lambda o, t: (o - t).square().sum(1)  # noqa: E731
    expected = gradient_norms(model, x, wish, loss=loss)
    given = wish.clone().requires_grad_()
    assert torch.equal(gradient_norms(model, x, given, loss=loss), expected)
    assert given.grad is None


def test_the_answer_is_plain_numbers() -> None:
    model, x, y = mlp()
    for one_by_one in (False, True):
        found = gradient_norms(model, x, y, one_by_one=one_by_one)
        assert not found.requires_grad
        assert (found.dtype, found.shape) == (torch.float32, (13,))
        found = gradient_norms(model.double(), x.double(), y, one_by_one=one_by_one)
        assert found.dtype == torch.float64
        model.float()


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("outside", [torch.no_grad, torch.inference_mode])
def test_it_may_be_called_where_gradients_are_off(outside, one_by_one: bool) -> None:
    model, x, y = mlp()
    expected = gradient_norms(model, x, y, one_by_one=one_by_one)
    with outside():
        found = gradient_norms(model, x, y, one_by_one=one_by_one)
        assert not torch.is_grad_enabled()
    assert torch.equal(found, expected)


class Noisy(nn.Module):
    """Draws, without its result being of use."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        torch.rand(3)
        return self.layer(x)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_the_random_state_is_as_it_was(one_by_one: bool) -> None:
    _, x, y = mlp()
    state = torch.get_rng_state()
    gradient_norms(Noisy(), x, y, one_by_one=one_by_one)
    torch.set_rng_state(state)
    expected = torch.rand(1)
    torch.set_rng_state(state)
    model = Noisy()
    state = torch.get_rng_state()
    gradient_norms(model, x, y, one_by_one=one_by_one)
    assert torch.equal(torch.get_rng_state(), state)
    assert expected.shape == (1,)
