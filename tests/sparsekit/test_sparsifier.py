"""The Sparsifier: what it refuses, and that a refusal leaves the training unharmed."""

import copy
import io
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from sparsekit import Sparsifier
from sparsekit.masks import count_active
from sparsekit.method import Method, dense_masks
from sparsekit.methods.imp import IMP
from sparsekit.methods.oneshot import OneShot
from sparsekit.methods.rigl import RigL
from sparsekit.methods.set import SET
from sparsekit.methods.static import Static


class Loop:
    """A training of a small model on random data, the same for one seed."""

    def __init__(self, method: Method, seed: int = 0, optimizer=None, **options):
        generator = torch.Generator().manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(13, 11), nn.Tanh(), nn.Linear(11, 3))
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
        make = optimizer or (lambda p: torch.optim.AdamW(p, 0.01))
        self.optimizer = make(self.model.parameters())
        self.sparsifier = Sparsifier(self.model, self.optimizer, method, **options)

    def gradient(self, t: int) -> None:
        generator = torch.Generator().manual_seed(t)
        x = torch.randn(17, 13, generator=generator)
        self.optimizer.zero_grad()
        (self.model(x) - x[:, :3]).square().mean().backward()

    def step(self, t: int) -> None:
        self.gradient(t)
        self.sparsifier.before_step()
        self.optimizer.step()
        self.sparsifier.after_step()

    def run(self, *steps: int) -> "Loop":
        for t in range(*steps):
            self.step(t)
        return self

    def bits(self) -> dict[str, Tensor]:
        """Everything that a failed call may not have changed."""
        found = {f"model {n}": t for n, t in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"moment {key} {name}"] = torch.as_tensor(value)
        for kind in ("alive", "trainable", "visited"):
            for name, mask in getattr(self.sparsifier, kind).items():
                found[f"{kind} {name}"] = mask
        found["step"] = torch.tensor(self.sparsifier.step)
        found["seed"] = torch.tensor(self.sparsifier.seed)
        return {name: tensor.detach().clone() for name, tensor in found.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# ---- building --------------------------------------------------------------------


def test_bad_arguments_are_named() -> None:
    model = nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(TypeError, match=r"a class needs its arguments: RigL\("):
        Sparsifier(model, optimizer, RigL)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"a function, such as erk, .* got 'erk'"):
        Sparsifier(model, optimizer, RigL(0.9, allocation="erk"))  # type: ignore
    with pytest.raises(ValueError, match=r"seed must be an integer .* got -1"):
        Sparsifier(model, optimizer, Static(0.5), seed=-1)
    with pytest.raises(
        ValueError, match=r"no parameter 'wieght'; did you mean 'weight'\?"
    ):
        Sparsifier(model, optimizer, Static(0.5), params=["wieght"])


def test_a_model_with_nan_is_refused_untouched() -> None:
    model = nn.Linear(5, 3)
    with torch.no_grad():
        model.weight[1, 2] = float("nan")
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="weight 'weight' has NaN"):
        Sparsifier(model, optimizer, OneShot(0.5))
    assert torch.equal(model.weight.nan_to_num(9.0), before.nan_to_num(9.0))


def test_masks_cannot_be_replaced_by_mistake() -> None:
    loop = Loop(Static(0.5))
    for masks in (loop.sparsifier.alive, loop.sparsifier.trainable):
        with pytest.raises(TypeError, match="item assignment"):
            masks["0.weight"] = torch.ones(11, 13, dtype=torch.bool)


def test_the_same_seed_gives_the_same_masks_and_another_others() -> None:
    masks = [Loop(Static(0.5), seed=s).sparsifier.alive["0.weight"] for s in (0, 1)]
    assert torch.equal(*masks)  # the model's seed plays no part
    other = Sparsifier(
        loop_model := Loop(Static(0.5)).model,
        torch.optim.SGD(loop_model.parameters(), 0.1),
        Static(0.5),
        seed=1,
    )
    assert not torch.equal(other.alive["0.weight"], masks[0])


# ---- answers of a method ---------------------------------------------------------


@dataclass(frozen=True)
class Answers(Method):
    """Gives what it is told to in step 2."""

    sparsity: float
    answer: str

    def start(self, context):
        return dense_masks(context)

    def due(self, step):
        return step == 2

    def update(self, context):
        masks = {n: m.clone() for n, m in dense_masks(context).items()}
        match self.answer:
            case "nothing":
                return None
            case "one":
                return {"0.weight": masks["0.weight"]}
            case "floats":
                return {name: mask.float() for name, mask in masks.items()}
            case "shape":
                return {name: mask[:1] for name, mask in masks.items()}
            case "lists":
                return {name: mask.tolist() for name, mask in masks.items()}
            case "drop":
                masks["0.weight"][0] = False
                return masks
        raise AssertionError(self.answer)

    def sparsity_at(self, step):
        return self.sparsity


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ("nothing", TypeError, r"Answers must return \{name: bool mask\}, got None"),
        ("one", ValueError, r"one mask a weight; differs in \['2\.weight'\]"),
        ("floats", ValueError, r"bool mask of shape \(11, 13\) for '0\.weight', got"),
        ("shape", ValueError, r"shape \(11, 13\) for '0\.weight', got .* \(1, 13\)"),
        ("lists", TypeError, r"a bool tensor for '0\.weight'"),
    ],
)
def test_wrong_answers_change_nothing(answer, error, message: str) -> None:
    loop = Loop(Answers(0.0, answer)).run(2)
    before = loop.bits()
    loop.gradient(2)
    with pytest.raises(error, match=message):
        loop.sparsifier.before_step()
    assert same(loop.bits(), before)


def test_frozen_weights_may_not_be_dropped() -> None:
    loop = Loop(Answers(0.0, "drop")).run(2)
    loop.sparsifier.trainable["0.weight"][0, 5] = False
    before = loop.bits()
    loop.gradient(2)
    with pytest.raises(ValueError, match=r"drops frozen weights of '0\.weight'"):
        loop.sparsifier.before_step()
    assert same(loop.bits(), before)
    loop.sparsifier.trainable["0.weight"].fill_(True)
    loop.sparsifier.before_step()
    assert not loop.sparsifier.alive["0.weight"][0].any()


# ---- the two lines ---------------------------------------------------------------


def test_the_order_of_the_lines_is_watched() -> None:
    loop = Loop(RigL(0.5, 2, 9))
    with pytest.raises(RuntimeError, match="after_step was called without before_step"):
        loop.sparsifier.after_step()
    with pytest.raises(RuntimeError, match=r"call before_step after loss\.backward"):
        loop.sparsifier.before_step()
    loop.gradient(0)
    loop.sparsifier.before_step()
    before = loop.bits()
    with pytest.raises(RuntimeError, match="called twice without after_step"):
        loop.sparsifier.before_step()
    with pytest.raises(RuntimeError, match="save after after_step"):
        loop.sparsifier.state_dict()
    assert same(loop.bits(), before)
    loop.optimizer.step()
    loop.sparsifier.after_step()
    assert same(loop.run(1, 5).bits(), Loop(RigL(0.5, 2, 9)).run(5).bits())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_refused_when_connections_move(value) -> None:
    loop, expected = Loop(RigL(0.5, 2, 9)).run(2), Loop(RigL(0.5, 2, 9)).run(2)
    before = loop.bits()
    loop.gradient(2)
    loop.model[0].weight.grad[4, 7] = value
    with pytest.raises(ValueError, match=r"gradient of '0\.weight' .* in step 2"):
        loop.sparsifier.before_step()
    assert same(loop.bits(), before)
    assert same(loop.run(2, 6).bits(), expected.run(2, 6).bits())  # and it goes on


def test_a_weight_that_is_not_finite_is_refused_when_connections_move() -> None:
    loop = Loop(SET(0.5, every=2)).run(2)
    with torch.no_grad():
        loop.model[2].weight[1, 1] = float("nan")
    loop.gradient(2)
    with pytest.raises(ValueError, match=r"weight '2\.weight' has NaN"):
        loop.sparsifier.before_step()
    assert loop.sparsifier.step == 2


def test_another_device_than_the_masks_is_refused() -> None:
    loop = Loop(SET(0.5, every=2)).run(1)
    masks = {n: m.clone() for n, m in loop.sparsifier.alive.items()}
    state = loop.sparsifier.state_dict()
    loop.model.to("meta")
    where = r"'0\.weight' is on meta, its mask on cpu: build the optimizer"
    with pytest.raises(ValueError, match=where):
        loop.sparsifier.before_step()
    with pytest.raises(ValueError, match=where):
        loop.sparsifier.load_state_dict(state)
    assert all(torch.equal(m, masks[n]) for n, m in loop.sparsifier.alive.items())


@pytest.mark.parametrize("value", [0.5, torch.nan])
def test_absent_weights_that_something_else_wrote_are_refused(value) -> None:
    """As by loading a dense checkpoint after the masks were made; nothing moves."""
    loop = Loop(RigL(0.5, every=2, end=9)).run(2)
    loop.gradient(2)
    absent = ~loop.sparsifier.alive["0.weight"]
    with torch.no_grad():  # writing zeros, or alive weights, is nobody's harm
        loop.model[0].weight.masked_fill_(absent, 0).add_(loop.model[0].weight)
    loop.sparsifier.before_step()
    loop.optimizer.step()
    loop.sparsifier.after_step()
    loop.gradient(3)
    absent = ~loop.sparsifier.alive["0.weight"]
    before = loop.sparsifier.alive["0.weight"].clone()
    with torch.no_grad():
        loop.model[0].weight[absent] = value
    with pytest.raises(ValueError, match=r"absent weights of '0\.weight' are not zero"):
        loop.sparsifier.before_step()
    assert before.equal(loop.sparsifier.alive["0.weight"])
    with torch.no_grad():
        loop.model[0].weight[absent] = 0
    loop.sparsifier.before_step()


def test_two_sparsifiers_of_one_optimizer() -> None:
    """Each its layer; but a move that takes the step away takes it from all."""
    loop = Loop(SET(0.5, every=2, end=9), params=["0"])
    second = Sparsifier(
        loop.model, loop.optimizer, SET(0.9, every=3, end=9), params="2"
    )
    for t in range(9):
        loop.gradient(t)
        loop.sparsifier.before_step()
        second.before_step()
        loop.optimizer.step()
        loop.sparsifier.after_step()
        second.after_step()
    assert int(loop.sparsifier.alive["0.weight"].sum()) == count_active(13 * 11, 0.5)
    assert int(second.alive["2.weight"].sum()) == count_active(11 * 3, 0.9)
    assert not loop.model[2].weight[~second.alive["2.weight"]].any()
    loop = Loop(RigL(0.5, every=2, end=9), params=["0"]).run(2)
    second = Sparsifier(loop.model, loop.optimizer, Static(0.9), params="2")
    loop.gradient(2)
    loop.sparsifier.before_step()
    with pytest.raises(RuntimeError, match=r"allocation=by_layer"):
        second.before_step()


def test_replaced_parameters_are_refused() -> None:
    loop = Loop(SET(0.5, every=2)).run(1)
    loop.model.load_state_dict(copy.deepcopy(loop.model.state_dict()), assign=True)
    loop.gradient(1)
    with pytest.raises(ValueError, match=r"'0\.weight' was replaced .* assign=True"):
        loop.sparsifier.before_step()


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(11, 5, sparse=True)
    optimizer = torch.optim.SparseAdam(embedding.parameters())
    sparsifier = Sparsifier(embedding, optimizer, Static(0.5), params=["weight"])
    before = embedding.weight.detach().clone()
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match=r"gradient of 'weight' .*sparse=False"):
        sparsifier.before_step()
    assert torch.equal(embedding.weight, before)


def test_closures_are_refused_in_both_forms() -> None:
    loop = Loop(Static(0.5))
    loop.sparsifier.attach()

    def closure() -> Tensor:
        loop.gradient(0)
        return torch.zeros(())

    before = loop.bits()
    for call in (
        lambda: loop.optimizer.step(closure),
        lambda: loop.optimizer.step(closure=closure),
    ):
        with pytest.raises(ValueError, match=r"call loss\.backward\(\) first"):
            call()
    assert same(loop.bits(), before)
    loop.sparsifier.detach()
    with pytest.raises(RuntimeError, match=r"closures .* are not supported"):
        loop.sparsifier.before_step()


def test_attached_and_explicit_lines_together_are_refused() -> None:
    loop = Loop(Static(0.5))
    loop.sparsifier.attach()
    loop.sparsifier.attach()  # once more does nothing
    loop.gradient(0)
    loop.optimizer.step()
    assert loop.sparsifier.step == 1
    loop.gradient(1)
    loop.sparsifier.before_step()
    with pytest.raises(RuntimeError, match="two lines or attach"):
        loop.optimizer.step()


def test_finalize_leaves_a_plain_model() -> None:
    loop = Loop(Static(0.5))
    loop.sparsifier.attach()
    loop.gradient(0)
    loop.optimizer.step()
    masks = loop.sparsifier.finalize()
    for name, mask in masks.items():
        assert torch.equal(mask, loop.sparsifier.alive[name])
        assert mask is not loop.sparsifier.alive[name]
        assert (loop.model.get_parameter(name)[~mask] == 0).all()
    loop.gradient(1)
    loop.optimizer.step()
    assert loop.sparsifier.step == 1
    assert (loop.model[0].weight[~masks["0.weight"]] != 0).any()
    plain = nn.Sequential(nn.Linear(13, 11), nn.Tanh(), nn.Linear(11, 3))
    plain.load_state_dict(loop.model.state_dict())  # names are unchanged


# ---- freezing --------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    ],
)
def test_a_gradient_mask_does_not_freeze_but_trainable_does(optimizer) -> None:
    loop = Loop(Static(0.5), optimizer=optimizer).run(3)
    control = copy.deepcopy(loop.model)
    alive = loop.sparsifier.alive["0.weight"]
    loop.sparsifier.trainable["0.weight"][:5] = False
    loop.run(3, 9)
    where = alive.clone()
    where[5:] = False
    assert torch.equal(loop.model[0].weight[where], control[0].weight[where])
    assert not torch.equal(loop.model[0].weight[5:], control[0].weight[5:])
    # the same optimizer moves them, though their gradient is zero
    naive = Loop(Static(0.5), optimizer=optimizer).run(3)
    for t in range(3, 9):
        naive.gradient(t)
        naive.model[0].weight.grad[:5] = 0
        naive.sparsifier.before_step()
        naive.optimizer.step()
        naive.sparsifier.after_step()
    drift = (naive.model[0].weight - control[0].weight)[where].abs().max()
    assert drift.item() > 1e-4


def test_absent_weights_do_not_train_though_trainable_says_so() -> None:
    loop = Loop(Static(0.5)).run(2)
    for mask in loop.sparsifier.trainable.values():
        mask.fill_(True)
    loop.run(2, 4)
    for name, alive in loop.sparsifier.alive.items():
        assert torch.equal(loop.sparsifier.trainable[name], alive)
        parameter = loop.model.get_parameter(name)
        assert (loop.optimizer.state[parameter]["exp_avg"][~alive] == 0).all()
    assert same(loop.bits(), Loop(Static(0.5)).run(4).bits())


def test_rewinding_does_not_touch_frozen_weights() -> None:
    loop = Loop(IMP(0.5, rounds=1, every=4)).run(3)
    largest = loop.model[0].weight.detach().abs() > 0.5
    assert largest.any()
    loop.sparsifier.trainable["0.weight"][largest] = False
    kept = loop.model[0].weight.detach()[largest].clone()
    loop.run(3, 6)
    assert torch.equal(loop.model[0].weight[largest], kept)


# ---- phases ----------------------------------------------------------------------


@pytest.mark.parametrize("cut", [6, 9])
def test_a_training_in_phases_resumes(cut: int) -> None:
    """RigL, then SET from step 6; the dense gradient is watched for RigL only."""
    second = SET(0.8, every=2)
    loop = Loop(RigL(0.8, every=2, end=20)).run(6)
    before = loop.bits()
    loop.sparsifier.set_method(second)
    assert same(loop.bits(), before)
    loop.run(6, cut)
    again = Loop(second, seed=1)
    again.model.load_state_dict(loop.model.state_dict())
    again.optimizer.load_state_dict(copy.deepcopy(loop.optimizer.state_dict()))
    again.sparsifier.load_state_dict(checkpoint(loop))
    assert same(again.run(cut, 12).bits(), loop.run(cut, 12).bits())


def test_the_same_method_again_changes_nothing() -> None:
    method = RigL(0.8, every=3, end=20)
    loop, plain = Loop(method), Loop(method)
    for t in range(9):
        loop.sparsifier.set_method(RigL(0.8, every=3, end=20))
        loop.step(t)
    assert same(loop.bits(), plain.run(9).bits())


def test_methods_that_cannot_take_over_are_refused() -> None:
    loop = Loop(Static(0.8)).run(3)
    with pytest.raises(TypeError, match=r"a class needs its arguments"):
        loop.sparsifier.set_method(RigL)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"goes back to step 2, .* this is step 3"):
        loop.sparsifier.set_method(IMP(0.8, every=9, rewind_to=2))
    loop.gradient(3)
    loop.sparsifier.before_step()
    with pytest.raises(RuntimeError, match="between the lines"):
        loop.sparsifier.set_method(RigL(0.8))


# ---- what can be read ------------------------------------------------------------


def test_density_and_exploration_count_masks() -> None:
    loop, union = Loop(SET(0.7, every=2)), None
    for t in range(9):
        loop.step(t)
        masks = torch.cat([m.flatten() for m in loop.sparsifier.alive.values()])
        union = masks.clone() if union is None else union | masks
        assert loop.sparsifier.density == pytest.approx(float(masks.double().mean()))
    assert loop.sparsifier.exploration == pytest.approx(float(union.double().mean()))
    assert loop.sparsifier.exploration > loop.sparsifier.density


# ---- checkpoints -----------------------------------------------------------------


def checkpoint(loop: Loop) -> dict:
    """Through a file, without pickled code."""
    buffer = io.BytesIO()
    torch.save(loop.sparsifier.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def flip(packed: Tensor) -> Tensor:
    return packed ^ 255


DAMAGE = {
    "a key": (lambda s: s.pop("visited"), r"\['visited'\] missing"),
    "step": (lambda s: s.update(step="3"), "'step' must be an integer .* '3'"),
    "early": (lambda s: s.update(step=-1), "'step' must be an integer .* -1"),
    "seed": (lambda s: s.update(seed=None), "'seed' must be an integer .* None"),
    "shapes": (lambda s: s.update(shapes=3), "'shapes' must be by name"),
    "no masks": (lambda s: s.update(alive=[]), "'alive' must be by name"),
    "a mask": (lambda s: s["alive"].pop("2.weight"), r"no 'alive' mask of '2\.weight'"),
    "cut": (
        lambda s: s["trainable"].update({"2.weight": s["trainable"]["2.weight"][:2]}),
        r"'trainable' mask of '2\.weight': .*uint8 of length 5",
    ),
    "flipped": (
        lambda s: s["trainable"].update({"0.weight": flip(s["trainable"]["0.weight"])}),
        r"'0\.weight'",
    ),
    "unseen": (
        lambda s: s["visited"].update({"0.weight": 0 * s["visited"]["0.weight"]}),
        r"masks of '0\.weight' contradict each other",
    ),
    "rewind": (lambda s: s.update(rewind=None), "holds no model of step 1"),
    "rewind to less": (lambda s: s["rewind"].pop("0.bias"), r"'0\.bias' differs"),
    "rewind to other": (
        lambda s: s["rewind"].update({"0.bias": torch.zeros(5)}),
        r"'0\.bias' differs in shape",
    ),
    "no gradients": (lambda s: s.update(gradients=1), "'gradients' must be by name"),
    "gradient of another": (
        lambda s: s["gradients"].update({"0.weight": torch.zeros(5)}),
        r"gradient of '0\.weight' must be finite numbers of shape",
    ),
    "gradient of none": (
        lambda s: s["gradients"].update({"9.weight": torch.zeros(5)}),
        r"gradient of '9\.weight' must be finite numbers of shape None",
    ),
    "gradient with NaN": (
        lambda s: s["gradients"].update({"0.weight": nan_like(s, "0.weight")}),
        r"gradient of '0\.weight' must be finite",
    ),
}


def nan_like(state: dict, name: str) -> torch.Tensor:
    return torch.full(state["shapes"][name], float("nan"))


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_checkpoints_are_refused_whole(what: str) -> None:
    damage, message = DAMAGE[what]
    method = IMP(0.8, rounds=2, every=4, rewind_to=1)
    state = checkpoint(Loop(method).run(6))
    damage(state)
    loop, control = Loop(method).run(3), Loop(method).run(3)
    before = loop.bits()
    with pytest.raises(ValueError, match=message):
        loop.sparsifier.load_state_dict(state)
    assert same(loop.bits(), before)
    assert same(loop.run(3, 12).bits(), control.run(3, 12).bits())


@pytest.mark.parametrize("state", [None, [], {}, {"model": {}}])
def test_what_is_no_checkpoint_is_refused(state) -> None:
    loop = Loop(Static(0.5))
    with pytest.raises(ValueError, match="not a Sparsifier's state"):
        loop.sparsifier.load_state_dict(state)


def test_a_checkpoint_of_another_model_or_other_params_is_refused() -> None:
    state = checkpoint(Loop(Static(0.5)).run(2))
    other = nn.Sequential(nn.Linear(13, 7), nn.Tanh(), nn.Linear(7, 3))
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    sparsifier = Sparsifier(other, optimizer, Static(0.5))
    before = {n: m.clone() for n, m in sparsifier.alive.items()}
    with pytest.raises(
        ValueError, match=r"'0\.weight' has shape \[11, 13\] there and \[7, 13\] here"
    ):
        sparsifier.load_state_dict(state)
    assert all(torch.equal(before[n], m) for n, m in sparsifier.alive.items())
    part = Loop(Static(0.5), params=["0.weight"])
    with pytest.raises(
        ValueError, match=r"'2\.weight' has shape \[3, 11\] there and None here"
    ):
        part.sparsifier.load_state_dict(state)


def test_another_method_goes_on_from_a_checkpoint_without_rewinding() -> None:
    """A ticket found by IMP, then trained by RigL: its moves must not rewind."""
    found = Loop(IMP(0.8, rounds=1, every=3)).run(5)
    loop = Loop(RigL(0.8, every=2, end=20), seed=1)
    loop.model.load_state_dict(found.model.state_dict())
    loop.optimizer.load_state_dict(found.optimizer.state_dict())
    loop.sparsifier.load_state_dict(checkpoint(found))
    loop.step(5)
    before = copy.deepcopy(loop.model)
    old = {n: m.clone() for n, m in loop.sparsifier.alive.items()}
    loop.step(6)  # RigL moves
    for name, mask in loop.sparsifier.alive.items():
        assert not torch.equal(mask, old[name])
        kept = mask & old[name]
        weight = loop.model.get_parameter(name)
        assert torch.equal(weight[kept], before.get_parameter(name)[kept])
    assert torch.equal(loop.model[0].bias, before[0].bias)


def test_saving_does_not_alias_the_training() -> None:
    loop = Loop(SET(0.7, every=2)).run(3)
    state = loop.sparsifier.state_dict()
    copied = copy.deepcopy(state)
    loop.run(3, 9)
    for kind in ("alive", "trainable", "visited"):
        for name, packed in copied[kind].items():
            assert torch.equal(state[kind][name], packed)
    assert state["step"] == 3
