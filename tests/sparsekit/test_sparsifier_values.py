"""One Sparsifier, two backends: layers that store values train as masked ones do."""

import copy
import io
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from sparsekit import Sparsifier, report
from sparsekit.dense_gradient import collect
from sparsekit.execution.layer import SparseLayer
from sparsekit.execution.linear import SparseLinear
from sparsekit.method import Method, discover
from sparsekit.methods.gradual import Gradual
from sparsekit.methods.mest import MEST
from sparsekit.methods.oneshot import OneShot
from sparsekit.methods.rigl import RigL
from sparsekit.methods.set import SET
from sparsekit.methods.snip import SNIP
from sparsekit.methods.static import Static
from sparsekit.testing.compilation import check_compile
from sparsekit.testing.reference_layer import ReferenceLayer
from sparsekit.testing.subject import factory

METHODS: dict[str, Method] = {
    "static": Static(0.8),
    "oneshot": OneShot(0.8, at=20),
    "gradual": Gradual(0.8, 10, 150, 7),
    "set": SET(0.8, every=7),
    "rigl": RigL(0.8, every=7, end=180),
    "mest": MEST(0.8, every=7, end=180, soft=True, extra=0.1),
}
OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3),
    "Adam": lambda p: torch.optim.Adam(p, 0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01),
}
FORMS = {
    "masked": lambda module: module,
    "reference": ReferenceLayer,
    "linear": lambda m: SparseLinear.from_dense(m, torch.ones_like(m.weight).bool()),
}


class Loop:
    """A training of a small model in float64; each form has the same weights."""

    def __init__(self, method: Method, *forms: str, optimizer="AdamW", **options):
        generator = torch.Generator().manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(23, 19), nn.Tanh(), nn.Linear(19, 13), nn.Tanh(), nn.Linear(13, 3)
        ).double()
        with torch.no_grad():
            for parameter in self.model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise.double() / 4)
        every = forms * 3 if len(forms) == 1 else forms
        for place, form in zip((0, 2, 4), every, strict=True):
            self.model[place] = FORMS[form](self.model[place])
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.sparsifier = Sparsifier(self.model, self.optimizer, method, **options)

    def loss(self, t: int, rows: slice = slice(None)) -> Tensor:
        generator = torch.Generator().manual_seed(t)
        x = torch.randn(29, 23, generator=generator).double()[rows]
        y = torch.stack([x[:, :7].sum(1), x[:, 7] * x[:, 8], x[:, 9].sin()], 1)
        return (self.model(x) - y).square().sum() / 29

    def gradient(self, t: int) -> None:
        self.optimizer.zero_grad()
        self.loss(t).backward()

    def finish(self) -> None:
        self.sparsifier.before_step()
        self.optimizer.step()
        self.sparsifier.after_step()

    def run(self, *steps: int) -> "Loop":
        for t in range(*steps):
            self.gradient(t)
            self.finish()
        return self

    def dense(self) -> dict[str, Tensor]:
        """Weights and moments as the dense model has them."""
        found = {}
        for name, weight in self.sparsifier._weights.items():
            found[name] = weight.dense().clone()
            for key, state in self.optimizer.state[weight.parameter].items():
                if state.shape == weight.parameter.shape:
                    stored = state.shape != weight.shape
                    dense = weight.layer.scatter(state) if stored else state
                    found[f"{key} of {name}"] = dense.clone()
        return found

    def bits(self) -> dict[str, Tensor]:
        found = self.dense() | {f"mask {n}": m for n, m in self.masks().items()}
        return found | {f"bias {i}": self.model[i].bias.clone() for i in (0, 2, 4)}

    def masks(self) -> dict[str, Tensor]:
        return {name: mask.clone() for name, mask in self.sparsifier.alive.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# ---- equal to the masked backend -------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", METHODS)
def test_equal_seeds_give_equal_masks_over_200_steps(name: str, optimizer: str) -> None:
    """Against real kernels, which round differently, and the plain reference."""
    masked = Loop(METHODS[name], "masked", optimizer=optimizer)
    reference = Loop(METHODS[name], "reference", optimizer=optimizer)
    fast = Loop(METHODS[name], "linear", optimizer=optimizer)
    moved = 0
    for t in range(200):
        before = masked.masks()
        for loop in (masked, reference, fast):
            loop.run(t, t + 1)
        assert same(reference.masks(), masked.masks()), t
        assert same(fast.masks(), masked.masks()), t
        moved += not same(before, masked.masks())
    expected = {"static": 0, "oneshot": 1, "gradual": 18}
    assert moved == expected.get(name, moved)
    assert moved > 18 or name in expected
    assert same(reference.bits(), masked.bits())
    for key, value in masked.bits().items():
        torch.testing.assert_close(fast.bits()[key], value, rtol=1e-6, atol=1e-9)
    assert fast.sparsifier.exploration == masked.sparsifier.exploration
    assert fast.sparsifier.density == masked.sparsifier.density


@pytest.mark.parametrize("policy", ["zero", "mean"])
@pytest.mark.parametrize("needs_gradient", [False, True])
def test_one_move_on_shared_tensors(policy: str, needs_gradient: bool) -> None:
    """The same weights, moments and gradients: the moved ones are equal bit for bit."""
    method = RigL(0.7, 5, 99) if needs_gradient else SET(0.7, every=5)
    masked = Loop(method, "masked", moments=policy).run(5)
    stored = Loop(method, "linear", moments=policy)
    stored.sparsifier.load_state_dict(masked.sparsifier.state_dict())
    masked.gradient(5)
    for name, weight in stored.sparsifier._weights.items():
        twin = masked.model.get_parameter(name)
        places = weight.layer.positions()
        weight.parameter.data.copy_(twin.detach().flatten()[places])
        weight.parameter.grad = twin.grad.flatten()[places]
        state = masked.optimizer.state[twin]
        stored.optimizer.state[weight.parameter] = {
            key: value.flatten()[places] if value.dim() else value.clone()
            for key, value in state.items()
        }
        if needs_gradient:
            weight.watcher.probe.grad = twin.grad.clone()
    before = masked.masks()
    masked.sparsifier.before_step()
    stored.sparsifier.before_step()
    assert not same(before, masked.masks())
    assert same(stored.masks(), masked.masks())
    assert same(stored.dense(), masked.dense())


@pytest.mark.parametrize("name", ["rigl", "gradual"])
def test_both_backends_in_one_model(name: str) -> None:
    masked = Loop(METHODS[name], "masked").run(40)
    mixed = Loop(METHODS[name], "reference", "masked", "reference").run(40)
    assert list(mixed.sparsifier.alive) == ["0.weight", "2.weight", "4.weight"]
    assert same(mixed.bits(), masked.bits())


@pytest.mark.parametrize(
    ("method", "compilations"),
    [(SET(0.7, every=3), 1), (RigL(0.7, every=3, end=9), 2)],
    ids=["set", "rigl"],
)
def test_compiled_models_train_the_same(method: Method, compilations: int) -> None:
    """Once, and once more with the gradient of absent weights."""
    check_compile(method, values=True, compilations=compilations)


# ---- the gradient of absent weights ----------------------------------------------


def accumulated(loop: Loop, t: int) -> None:
    """A step's gradient in three micro-batches."""
    loop.optimizer.zero_grad()
    for rows in (slice(0, 11), slice(11, 13), slice(13, 29)):
        loop.loss(t, rows).backward()


def before_forward(loop: Loop, t: int) -> None:
    loop.gradient(t)


def after_forward(loop: Loop, t: int) -> None:
    loss = loop.loss(t)
    loop.optimizer.zero_grad()
    loss.backward()


def zero_in_place(loop: Loop, t: int) -> None:
    loss = loop.loss(t)
    loop.optimizer.zero_grad(set_to_none=False)
    loss.backward()


def dropped_batch(loop: Loop, t: int) -> None:
    """A backward pass that is thrown away: its gradient may not stay."""
    loop.gradient(1000 + t)
    after_forward(loop, t)


def dropped_and_zeroed_in_place(loop: Loop, t: int) -> None:
    loop.gradient(1000 + t)
    zero_in_place(loop, t)


@pytest.mark.parametrize(
    "backward",
    [
        accumulated,
        before_forward,
        after_forward,
        zero_in_place,
        dropped_batch,
        dropped_and_zeroed_in_place,
    ],
)
def test_it_is_the_masked_gradient_whatever_the_order(backward) -> None:
    masked, stored = (Loop(RigL(0.8, 3, 99), f) for f in ("masked", "reference"))
    for t in range(20):
        for loop in (masked, stored):
            backward(loop, t)
        if stored.sparsifier.method.due(t):
            for name, weight in stored.sparsifier._weights.items():
                expected = masked.model.get_parameter(name).grad
                assert torch.equal(weight.gradient(dense=True), expected)
        for loop in (masked, stored):
            loop.finish()
    assert same(stored.bits(), masked.bits())


def test_it_is_scaled_as_the_gradient_of_the_values_is() -> None:
    """By clipping here, by GradScaler in the contract."""
    loop = Loop(RigL(0.8, 3, 99), "linear").run(3)
    loop.gradient(3)
    nn.utils.clip_grad_norm_(loop.model.parameters(), 1e-3)
    weights = loop.sparsifier._weights.values()
    values = {weight.name: weight.parameter.grad.clone() for weight in weights}
    control = Loop(RigL(0.8, 3, 99), "masked").run(3)
    control.gradient(3)
    collect([weight.watcher for weight in weights])
    for weight in weights:
        found = weight.gradient(dense=True)
        places = weight.layer.positions()
        assert torch.equal(found.flatten()[places], values[weight.name])
        dense = control.model.get_parameter(weight.name).grad
        ratio = float(values[weight.name].norm() / dense.flatten()[places].norm())
        assert ratio < 0.1
        torch.testing.assert_close(found, dense * ratio, rtol=1e-6, atol=1e-12)


def test_it_exists_only_in_steps_that_ask_for_it() -> None:
    loop = Loop(RigL(0.8, every=4, end=99), "linear")
    layers = [m for m in loop.model if isinstance(m, SparseLayer)]
    for t in range(12):
        assert all((m.probe is not None) == (t in (4, 8)) for m in layers), t
        loop.run(t, t + 1)
    other = Loop(SET(0.8, every=4), "linear")
    for t in range(9):
        assert all(m.probe is None for m in other.model if isinstance(m, SparseLayer))
        other.run(t, t + 1)


def test_a_backward_pass_before_it_was_asked_for_is_refused() -> None:
    loop = Loop(RigL(0.8, every=4, end=99), "linear").run(3)
    loop.gradient(3)
    state = loop.sparsifier.state_dict()
    loop.sparsifier.load_state_dict({**state, "step": 4})
    with pytest.raises(RuntimeError, match=r"'0\.weight' was not collected: run the"):
        loop.sparsifier.before_step()
    loop.gradient(4)
    loop.finish()
    assert loop.sparsifier.step == 5


def test_a_refused_gradient_leaves_the_training_unharmed() -> None:
    loop, control = (Loop(RigL(0.5, 2, 9), "reference").run(2) for _ in range(2))
    before = loop.bits()
    loop.gradient(2)
    loop.model[0].values.grad[5] = float("nan")
    with pytest.raises(ValueError, match=r"gradient of '0\.weight' .* in step 2"):
        loop.sparsifier.before_step()
    assert same(loop.bits(), before)
    assert same(loop.run(2, 6).bits(), control.run(2, 6).bits())


def test_snip_with_a_gradient_that_is_shared_out() -> None:
    masked, stored = Loop(SNIP(0.8, at=2), "masked"), Loop(SNIP(0.8, at=2), "reference")
    for t in range(5):
        for loop in (masked, stored):
            accumulated(loop, t)
            loop.finish()
    assert same(stored.bits(), masked.bits())


# ---- the number of weights changes -----------------------------------------------


def test_parameters_stay_themselves_while_a_loss_is_held() -> None:
    """The graph of the last step is alive while the next one is built."""
    loop = Loop(Gradual(0.9, 0, 20, 2), "linear")
    held = [m.values for m in loop.model if isinstance(m, SparseLayer)]
    sizes, losses = [], []
    for t in range(25):
        loop.optimizer.zero_grad()
        losses.append(loop.loss(t))
        losses[-1].backward()
        loop.finish()
        sizes.append(sum(map(len, held)))
    assert all(m.values is v for m, v in zip(loop.model[::2], held, strict=True))
    assert all(a >= b for a, b in pairwise(sizes))
    assert sizes[0] == 23 * 19 + 19 * 13 + 13 * 3
    assert sizes[-1] == round(0.1 * sizes[0])
    moments = loop.optimizer.state[held[0]]
    assert moments["exp_avg"].shape == moments["exp_avg_sq"].shape == held[0].shape


# ---- reading and writing masks ---------------------------------------------------


def test_masks_are_fresh_and_cannot_be_written_to() -> None:
    loop = Loop(SET(0.7, every=2), "linear")
    for kind in ("alive", "trainable", "visited"):
        masks = getattr(loop.sparsifier, kind)
        assert masks["0.weight"] is not masks["0.weight"]
        with pytest.raises(
            RuntimeError, match=r"[Ii]nplace update to inference tensor"
        ):
            masks["0.weight"][:5] = False
        with pytest.raises(TypeError, match="item assignment"):
            masks["0.weight"] = masks["0.weight"]
    alive = loop.sparsifier.alive["0.weight"]
    weight = loop.model[0].to_dense().requires_grad_()
    (weight * alive.clone()).sum().backward()  # a copy is a tensor like any other
    assert torch.equal(weight.grad, alive.double())


@pytest.mark.parametrize("form", ["masked", "reference"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_weights_keep_their_bits(form: str, optimizer: str) -> None:
    loop = Loop(Static(0.5), form, optimizer=optimizer).run(3)
    rows = torch.zeros(19, 23, dtype=torch.bool)
    rows[:7] = True
    loop.sparsifier.set_trainable("0.weight", ~rows)
    alive = loop.sparsifier.alive["0.weight"].clone()
    assert torch.equal(loop.sparsifier.trainable["0.weight"], alive & ~rows)
    before = loop.sparsifier._weights["0.weight"].dense().clone()
    loop.run(3, 9)
    after = loop.sparsifier._weights["0.weight"].dense()
    assert torch.equal(after[:7], before[:7])
    assert (after != before)[7:].sum() == alive[7:].sum()
    loop.sparsifier.set_trainable("0.weight", torch.ones_like(rows))
    assert torch.equal(loop.sparsifier.trainable["0.weight"], alive)
    loop.run(9, 12)
    thawed = loop.sparsifier._weights["0.weight"].dense()
    assert (thawed != before)[:7].sum() == alive[:7].sum()


@pytest.mark.parametrize("form", ["masked", "reference"])
def test_what_cannot_be_frozen_is_named(form: str) -> None:
    loop = Loop(SET(0.5, every=2, fraction=1.0), form).run(2)
    with pytest.raises(ValueError, match=r"no weight '0\.wieght'; there are 0\.weight"):
        loop.sparsifier.set_trainable("0.wieght", torch.ones(19, 23).bool())
    for wrong in (torch.ones(19, 23), torch.ones(23, 19).bool()):
        with pytest.raises(ValueError, match=r"bool mask of shape \(19, 23\), got"):
            loop.sparsifier.set_trainable("0.weight", wrong)
    loop.sparsifier.set_trainable("0.weight", torch.zeros(19, 23).bool())
    before = loop.bits()
    loop.gradient(2)
    with pytest.raises(ValueError, match=r"SET drops frozen weights of '0\.weight'"):
        loop.sparsifier.before_step()
    assert same(loop.bits(), before)


def test_finalize_returns_masks_and_lets_go() -> None:
    loop = Loop(RigL(0.7, every=4, end=99), "linear").run(4)
    assert loop.model[0].probe is not None
    masks = loop.sparsifier.finalize()
    assert loop.model[0].probe is None
    assert torch.equal(masks["0.weight"], loop.model[0].mask())
    masks["0.weight"].fill_(True)  # a plain copy


def test_reports_count_the_same_in_both_backends() -> None:
    x = torch.randn(2, 23).double()
    masked, stored = (Loop(Static(0.8), form) for form in ("masked", "linear"))
    table = report.table(stored.sparsifier, x)
    assert str(table) == str(report.table(masked.sparsifier, x))
    assert table.rows[0].active == stored.model[0].nnz


# ---- checkpoints -----------------------------------------------------------------


def through_a_file(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("name", ["rigl", "gradual"])
def test_a_masked_training_goes_on_in_values_mode_and_back(name: str) -> None:
    """The whole state: weights, masks, moments."""
    control = Loop(METHODS[name], "masked").run(60)
    first = Loop(METHODS[name], "masked").run(20)
    second = Loop(METHODS[name], "reference")
    hand_over(first, second)
    second.run(20, 40)
    third = Loop(METHODS[name], "masked")
    hand_over(second, third)
    assert same(third.run(40, 60).bits(), control.bits())


def hand_over(old: Loop, new: Loop) -> None:
    state = through_a_file(old.sparsifier.state_dict())
    new.sparsifier.load_state_dict(state)
    with torch.no_grad():
        for place in (0, 2, 4):
            new.model[place].bias.copy_(old.model[place].bias)
            pair = (old.model[place].bias, new.model[place].bias)
            old_state, new_state = (
                x.optimizer.state[p] for x, p in zip((old, new), pair, strict=True)
            )
            new_state.update(copy.deepcopy(old_state))
        for name, weight in new.sparsifier._weights.items():
            source = old.sparsifier._weights[name]
            states = old.optimizer.state[source.parameter]
            moved = {"": source.dense()} | {
                key: source.layer.scatter(value) if value.dim() == 1 else value.clone()
                for key, value in states.items()
            }
            if weight.parameter.dim() == 1:
                places = weight.layer.positions()
                moved = {
                    key: value.flatten()[places] if value.dim() else value
                    for key, value in moved.items()
                }
            weight.parameter.copy_(moved.pop(""))
            new.optimizer.state[weight.parameter].update(moved)


def test_connections_changed_by_something_else_are_refused() -> None:
    loop = Loop(SET(0.7, every=2), "linear").run(3)
    saved = copy.deepcopy(loop.model.state_dict())
    everything = [
        copy.deepcopy(x.state_dict())
        for x in (loop.model, loop.optimizer, loop.sparsifier)
    ]
    loop.model.load_state_dict(saved)  # the same connections: nothing to say
    expected = loop.run(3, 9).bits()
    loop.model.load_state_dict(saved)
    loop.gradient(9)
    with pytest.raises(ValueError, match=r"'0\.weight' were changed by something else"):
        loop.sparsifier.before_step()
    parts = (loop.model, loop.optimizer, loop.sparsifier)
    for x, state in zip(parts, everything, strict=True):
        x.load_state_dict(state)
    assert same(loop.run(3, 9).bits(), expected)


def test_replaced_layers_and_parameters_are_refused() -> None:
    loop = Loop(SET(0.7, every=2), "linear").run(1)
    loop.gradient(1)
    loop.model[0] = copy.deepcopy(loop.model[0])
    with pytest.raises(ValueError, match=r"'0\.weight' was replaced in the model"):
        loop.sparsifier.before_step()


# ---- which weights ---------------------------------------------------------------


def test_names_are_those_of_the_dense_weights() -> None:
    for form in ("masked", "linear"):
        loop = Loop(Static(0.5), form, params=["2.weight"])
        assert list(loop.sparsifier.alive) == ["2.weight"]
        wide = Loop(Static(0.5), form, params=lambda name, p: p.shape == (13, 19))
        assert list(wide.sparsifier.alive) == ["2.weight"]
    with pytest.raises(ValueError, match=r"'0\.values' goes by the name '0\.weight'"):
        Loop(Static(0.5), "linear", params=["0.values"])
    layer = ReferenceLayer(nn.Linear(5, 3))
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    assert list(Sparsifier(layer, optimizer, Static(0.5)).alive) == ["weight"]


def test_frozen_layers_and_embeddings_are_left_out() -> None:
    model = nn.Sequential(*(ReferenceLayer(nn.Linear(5, 5)) for _ in range(3)))
    model[0].values.requires_grad_(False)
    model[1].by_default = False
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert list(Sparsifier(model, optimizer, Static(0.5)).alive) == ["2.weight"]
    asked = Sparsifier(model, optimizer, Static(0.5), params=["1.weight"])
    assert list(asked.alive) == ["1.weight"]


def test_the_optimizer_must_hold_the_values() -> None:
    model = ReferenceLayer(nn.Linear(5, 3))
    other = torch.optim.SGD([model.bias], 0.1)
    with pytest.raises(ValueError, match="optimizer does not hold 'weight'"):
        Sparsifier(model, other, Static(0.5))


def test_an_objective_is_evaluated_on_a_dense_copy() -> None:
    """With the layer of the kernels; its masks are those of the masked model."""
    options = {"objective": lambda model: model(torch.ones(1, 23).double()).sum()}
    for method in (
        factory(discover()["synflow"])(0.7),
        factory(discover()["grasp"])(0.7),
    ):
        masked = Loop(method, "masked", **options)
        stored = Loop(method, "linear", **options)
        assert same(stored.bits(), masked.bits())
        assert isinstance(stored.model[0], SparseLinear)
