"""What a method and a user read of a Sparsifier: plain numbers, and nothing changes."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from sparsekit import Sparsifier
from sparsekit.execution.linear import SparseLinear
from sparsekit.losses import as_it_was
from sparsekit.method import Context, Masks, Method
from sparsekit.methods.static import Static
from sparsekit.step_hooks import StepHooks

FORMS = ("masked", "values")


@dataclass(frozen=True)
class Looks(Method):
    """Shows every context to a function, and moves nothing."""

    sparsity: float
    look: object = None
    needs_dense_gradient: bool = True

    def start(self, context: Context) -> Masks:
        generator = torch.Generator().manual_seed(0)
        self.look(context)  # type: ignore[operator]
        return {
            name: torch.rand(weight.shape, generator=generator) > self.sparsity
            for name, weight in context.weights.items()
        }

    def due(self, step: int) -> bool:
        return step == 1

    def update(self, context: Context) -> Masks:
        self.look(context)  # type: ignore[operator]
        return dict(context.masks)

    def sparsity_at(self, step: int) -> float:
        return self.sparsity


def made(form: str, method: Method, **options) -> tuple[nn.Module, Sparsifier]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(9, 7), nn.Tanh(), nn.BatchNorm1d(7), nn.Linear(7, 3)
    )
    if form == "values":
        for place in (0, 3):
            mask = torch.rand_like(model[place].weight) > 0.5
            model[place] = SparseLinear.from_dense(model[place], mask)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return model, Sparsifier(model, optimizer, method, **options)


def backward(model: nn.Module, sparsifier: Sparsifier, graph: bool = False) -> None:
    sparsifier.optimizer.zero_grad()
    x = torch.randn(8, 9, generator=torch.Generator().manual_seed(1))
    model(x).square().mean().backward(create_graph=graph)


def finish(sparsifier: Sparsifier) -> None:
    sparsifier.before_step()
    sparsifier.optimizer.step()
    sparsifier.after_step()


@pytest.mark.parametrize("form", FORMS)
def test_a_method_sees_no_graph(form: str) -> None:
    seen: list[dict[str, Tensor]] = []

    def look(context: Context) -> None:
        tensors = {f"weight {n}": t for n, t in context.weights.items()}
        tensors |= {f"state {n}": t for n, t in context.state.items()}
        tensors |= {f"grad {n}": t for n, t in context.grads.items() if t is not None}
        tensors |= {f"mask {n}": t for n, t in context.masks.items()}
        assert not any(tensor.requires_grad for tensor in tensors.values())
        seen.append(tensors)

    model, sparsifier = made(form, Looks(0.5, look))
    for _ in range(3):
        backward(model, sparsifier)
        finish(sparsifier)
    assert len(seen) == 2  # at the start, and in step 1
    names = {"0.weight", "0.bias", "2.running_mean", "2.weight", "3.weight"}
    assert names <= {n.removeprefix("state ") for n in seen[0] if n[:5] == "state"}
    assert not [n for n in seen[0] if n.startswith("grad")]
    assert {n for n in seen[1] if n.startswith("grad")} == {
        "grad 0.weight", "grad 3.weight",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_gradients_of_a_graph_are_read_without_it() -> None:
    model, sparsifier = made("masked", Static(0.5))
    backward(model, sparsifier, graph=True)
    assert model[0].weight.grad.requires_grad
    for name, grad in sparsifier.grads.items():
        assert not grad.requires_grad
        assert not grad[~sparsifier.alive[name]].any()
        own = model.get_parameter(name).grad
        assert torch.equal(grad, own.detach() * sparsifier.alive[name])


def test_masks_of_layers_in_values_mode_refuse_to_be_written_to() -> None:
    _, sparsifier = made("values", Static(0.5))
    name = "0.weight"
    alive = sparsifier.alive[name].clone()
    half = torch.zeros_like(alive)
    half[:3] = True
    sparsifier.set_trainable(name, half)
    assert torch.equal(sparsifier.trainable[name], alive & half)
    assert torch.equal(sparsifier.trainable["3.weight"], sparsifier.alive["3.weight"])
    for masks in (sparsifier.alive, sparsifier.trainable, sparsifier.visited):
        for mask in masks.values():
            with pytest.raises(RuntimeError, match="inference tensor"):
                mask.fill_(True)
    sparsifier.set_trainable(name, torch.ones_like(alive))
    assert torch.equal(sparsifier.trainable[name], alive)


def test_a_function_that_chooses_sees_dense_shapes() -> None:
    seen = {}

    def choose(name: str, parameter: nn.Parameter) -> bool:
        seen[name] = parameter
        return parameter.shape == (7, 9)

    torch.manual_seed(0)
    layer = nn.Linear(9, 7).double()
    layer = SparseLinear.from_dense(layer, torch.rand(7, 9) > 0.5)
    frozen = SparseLinear.from_dense(nn.Linear(7, 3), torch.rand(3, 7) > 0.5)
    frozen.values.requires_grad_(False)
    model = nn.ModuleDict({"a": layer, "b": frozen})
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = Sparsifier(model, optimizer, Static(0.5), params=choose)
    assert list(sparsifier.alive) == ["a.weight"]
    shown = {name: (p.shape, p.dtype, p.requires_grad) for name, p in seen.items()}
    assert shown["a.weight"] == ((7, 9), torch.float64, True)
    assert shown["b.weight"] == ((3, 7), torch.float32, False)
    assert seen["a.weight"].is_meta
    assert isinstance(seen["a.weight"], nn.Parameter)


# ---- losses of the user --------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_named_losses(form: str) -> None:
    x = torch.randn(8, 9)
    losses = {"a": lambda m: m(x).square().mean(), "nothing": lambda m: None}
    model, sparsifier = made(form, Static(0.5), losses=losses)
    found = sparsifier.loss_grads
    assert (list(found), len(found)) == (["a", "nothing"], 2)
    assert found["nothing"] is None
    with pytest.raises(
        ValueError, match=r"named 'b': pass Sparsifier\(\.\.\., losses="
    ):
        found["b"]
    model.eval()
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    state = torch.get_rng_state()
    grads = found["a"]
    assert not model.training  # it was computed in training mode
    assert torch.equal(torch.get_rng_state(), state)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name])
    assert all(p.grad is None for p in model.parameters())
    model.train()
    losses["a"](model).backward()
    for name, grad in sparsifier.grads.items():
        torch.testing.assert_close(grads[name], grad)
        assert not grads[name][~sparsifier.alive[name]].any()


def fail(model: nn.Module, drawn: list[Tensor]) -> None:
    with as_it_was(model):
        assert all(module.training for module in model.modules())
        drawn.append(model(torch.ones(5, 4)))
        raise ArithmeticError


def test_a_model_is_as_it_was_though_a_loss_fails() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3).eval(), nn.Dropout())
    modes = [module.training for module in model.modules()]
    before = {n: b.clone() for n, b in model.named_buffers()}
    state = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with pytest.raises(ArithmeticError):
            fail(model, drawn)
    assert torch.equal(*drawn)  # dropout draws the same in every call
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])


# ---- hooks of the step ---------------------------------------------------------------


def hooked() -> tuple[torch.optim.Optimizer, list[str], StepHooks]:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], 0.1, fused=True)
    calls: list[str] = []
    weight.grad = torch.ones(2)
    hooks = StepHooks(
        optimizer, lambda: calls.append("before"), lambda: calls.append("after")
    )
    return optimizer, calls, hooks


def test_hooks_run_around_every_step_until_they_are_removed() -> None:
    optimizer, calls, hooks = hooked()
    optimizer.step()
    assert calls == ["before", "after"]
    optimizer.step()
    assert calls == ["before", "after"] * 2
    hooks.remove()
    optimizer.step()
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("found", "skipped"), [(0.0, False), (1.0, True), (None, False)]
)
def test_a_step_that_a_scaler_skips_runs_neither(found, skipped) -> None:
    optimizer, calls, _ = hooked()
    optimizer.found_inf = None if found is None else torch.tensor([found])  # type: ignore
    optimizer.step()
    assert calls == ([] if skipped else ["before", "after"])
    optimizer.found_inf = None  # type: ignore[attr-defined]
    optimizer.step()
    assert calls[-2:] == ["before", "after"]


def test_a_closure_is_refused_before_anything_happens() -> None:
    optimizer, calls, _ = hooked()
    for call in (
        lambda: optimizer.step(lambda: 0),
        lambda: optimizer.step(closure=int),
    ):
        with pytest.raises(ValueError, match=r"too late to mask: call loss\.backward"):
            call()
    assert calls == []


def test_attaching_again_after_detaching() -> None:
    model, sparsifier = made("masked", Static(0.5))
    assert sparsifier.attach() is sparsifier.attach()
    for times in (1, 2):
        backward(model, sparsifier)
        sparsifier.optimizer.step()
        assert sparsifier.step == times  # not twice
    sparsifier.detach()
    sparsifier.detach()
    backward(model, sparsifier)
    sparsifier.optimizer.step()
    assert sparsifier.step == 2
    sparsifier.attach()
    backward(model, sparsifier)
    with pytest.raises(ValueError, match="absent weights"):  # that step wrote to them
        sparsifier.optimizer.step()


# ---- a checkpoint, before and after the Sparsifier -----------------------------------


def run(model: nn.Module, sparsifier: Sparsifier, n: int) -> None:
    for _ in range(n):
        backward(model, sparsifier)
        finish(sparsifier)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_model_may_be_loaded_before_the_sparsifier_or_after(form, order) -> None:
    """The new one's own first masks leave no trace, in weights and in moments."""

    def build(seed: int, load=None) -> tuple[nn.Module, Sparsifier]:
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(9, 7), nn.Tanh(), nn.BatchNorm1d(7))
        model.append(nn.Linear(7, 3))
        if form == "values":
            for place in (0, 3):
                dense = model[place]
                mask = torch.rand_like(dense.weight) > 0.3
                model[place] = SparseLinear.from_dense(dense, mask)
        optimizer = torch.optim.Adam(model.parameters(), 0.1)
        if load is not None:
            load(model, optimizer)
        return model, Sparsifier(model, optimizer, Static(0.5), seed=seed)

    model, sparsifier = build(seed=1)
    run(model, sparsifier, 3)
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    moments = copy.deepcopy(sparsifier.optimizer.state_dict())  # it shares tensors
    masks = sparsifier.state_dict()

    def load(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)

    if order == "before":
        again, second = build(seed=2, load=load)
    else:
        again, second = build(seed=2)
        load(again, second.optimizer)
    second.load_state_dict(masks)
    assert (second.step, second.seed) == (3, 1)
    for n, tensor in again.state_dict().items():
        assert torch.equal(tensor, weights[n]), n
    run(model, sparsifier, 2)
    run(again, second, 2)
    for (n, one), two in zip(
        model.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), n


@pytest.mark.parametrize("form", FORMS)
def test_what_was_trained_since_is_not_put_back(form: str) -> None:
    """Loading into a Sparsifier that has stepped zeroes what is absent."""
    model, sparsifier = made(form, Static(0.5))
    state = sparsifier.state_dict()
    run(model, sparsifier, 2)
    trained = {n: t.clone() for n, t in model.state_dict().items()}
    sparsifier.load_state_dict(state)
    for n, tensor in model.state_dict().items():
        assert torch.equal(tensor, trained[n]), n


def test_frozen_weights_of_both_forms_keep_their_bits_and_thaw() -> None:
    for form in FORMS:
        model, sparsifier = made(form, Static(0.5))
        name = "0.weight"
        half = torch.zeros(7, 9, dtype=torch.bool)
        half[:4] = True
        sparsifier.set_trainable(name, half)
        weight = sparsifier._weights[name]
        before = weight.dense().clone()
        run(model, sparsifier, 2)
        assert torch.equal(weight.dense()[4:], before[4:])
        assert not torch.equal(weight.dense()[:4], before[:4])
        sparsifier.set_trainable(name, torch.ones_like(half))
        before = weight.dense().clone()
        run(model, sparsifier, 1)
        moved = weight.dense() != before
        assert torch.equal(moved[4:], moved[4:] & sparsifier.alive[name][4:])
        assert moved[4:].any()
        with pytest.raises(ValueError, match=r"no weight 'x'; there are 0\.weight, 3"):
            sparsifier.set_trainable("x", half)
        for wrong in (half[:4], half.float()):
            with pytest.raises(
                ValueError, match=r"must be a bool mask of shape \(7, 9"
            ):
                sparsifier.set_trainable(name, wrong)
