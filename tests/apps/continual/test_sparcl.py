"""SparCL: what it is without its parts, exact counts, frozen weights, resuming."""

from dataclasses import replace

import pytest
import torch

from apps.continual import streams, training
from apps.continual.gradient_mask import GradientMask
from apps.continual.strategies.sparcl import SparCL
from apps.continual.train import train
from sparsekit import Sparsifier
from sparsekit.data_pruning.removal import DataRemoval
from sparsekit.masks import count_active
from sparsekit.methods.static import Static
from tests.apps.continual.test_strategies import same
from tests.apps.continual.test_train import interrupted_at

OFF = {"ddr": "off", "dgm": "off"}
PARTS = {"stage": 1, "removal_stages": 2, "every": 3}


@pytest.fixture(scope="module")
def tiny(small):
    """Three tasks of 4 epochs of 6 steps."""
    return replace(small, strategy="sparcl", method="tdm", sparsity=0.7, batch=16,
                   train_size=96, epochs=4, replay_from="second",
                   loss_over="current")  # fmt: skip


@pytest.mark.parametrize("replay", ["er", "derpp", "agem"])
@pytest.mark.parametrize("method", ["dense", "rigl"])
def test_without_its_parts_it_is_the_replay_strategy(small, replay, method) -> None:
    options = {"alpha": 0.3, "beta": 0.7} if replay == "derpp" else {}
    plain = replace(small, strategy=replay, strategy_options=options, method=method,
                    sparsity=0.6, optimizer="momentum", augment=True)  # fmt: skip
    around = {"replay": replay, **options, **OFF}
    ours = train(replace(plain, strategy="sparcl", strategy_options=around))
    assert same(ours, train(plain))


def test_at_sparsity_0_the_masks_change_nothing(tiny) -> None:
    dense = replace(tiny, strategy="derpp", method="dense", strategy_options={})
    options = {"alpha": 1.0, "beta": 0.5, "stage": 1, "variant": "released", **OFF}
    assert same(train(replace(tiny, sparsity=0.0, strategy_options=options)),
                train(dense))  # fmt: skip


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("backend", ["masked", "values"])
def test_counts_are_exact_in_every_step(tiny, monkeypatch, variant, backend) -> None:
    after_step, seen = Sparsifier.after_step, []

    def watched(self) -> None:
        after_step(self)
        numel = sum(mask.numel() for mask in self.alive.values())
        alive = sum(int(mask.sum()) for mask in self.alive.values())
        seen.append((numel - alive) / numel)
        assert alive == count_active(numel, self.method.sparsity_at(self.step - 1))
        if self.method.due(self.step - 1):  # all may train in a step that moves
            assert all(m.equal(self.trainable[n]) for n, m in self.alive.items())

    monkeypatch.setattr(Sparsifier, "after_step", watched)
    train(replace(tiny, backend=backend, strategy_options={**PARTS, "variant": variant,
                                                           "ddr": "off"}))  # fmt: skip
    assert len(seen) == 72
    expanded = [round(sparsity, 2) < 0.7 for sparsity in seen]
    first = variant == "released"  # there the first task expands too
    one = [True] * 6 + [False] * 18
    assert expanded == (one if first else [False] * 24) + one + one


CASES = [
    ({"variant": "paper"}, "masked"),
    ({"variant": "released", "replay": "er", "ddr": "random"}, "masked"),
    ({"variant": "paper", "dgm": "random"}, "values"),
]


@pytest.mark.parametrize(("options", "backend"), CASES)
def test_it_resumes_in_the_middle_of_a_task(
    tiny, tmp_path, monkeypatch, options, backend
) -> None:
    config = replace(tiny, strategy_options={**PARTS, **options}, backend=backend,
                     checkpoint_every=4, augment=True, optimizer="momentum",
                     weight_decay=0.01)  # fmt: skip
    whole = train(config)
    for n_steps in (5, 29, 45):
        out = tmp_path / str(n_steps)
        again = interrupted_at(monkeypatch, n_steps, replace(config, out=out))
        assert same(whole, again), n_steps
        assert all(m.equal(again.masks[n]) for n, m in whole.masks.items())


def test_layers_that_store_values_train_the_same(tiny) -> None:
    """Up to rounding; and where they live, exactly."""
    options = {**PARTS, "variant": "released"}
    masked = train(replace(tiny, strategy_options=options))
    values = train(replace(tiny, strategy_options=options, backend="values"))
    for name, mask in masked.masks.items():
        assert mask.equal(values.masks[name])
    for ours, theirs in zip(
        values.model.parameters(), masked.model.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_masked_gradients_freeze_weights(tiny, monkeypatch, optimizer) -> None:
    """Whatever the optimizer: the chosen share of the alive weights moves."""
    options = {**PARTS, "updated": 0.25, "ddr": "off"}
    config = replace(tiny, strategy_options=options, optimizer=optimizer,
                     weight_decay=0.1)  # fmt: skip
    before_step, after_step = Sparsifier.before_step, Sparsifier.after_step
    frozen, held = [], {}

    def before(self) -> None:
        before_step(self)
        for name, mask in self.alive.items():
            held[name] = self.model.get_parameter(name).detach().clone()
            if not self.method.due(self.step):
                trained = self.trainable[name]
                assert int(trained.sum()) == count_active(int(mask.sum()), 0.75)

    def after(self) -> None:
        after_step(self)
        for name, mask in self.alive.items():
            kept = mask & ~self.trainable[name]
            now = self.model.get_parameter(name)
            assert torch.equal(now[kept], held[name][kept])
            frozen.append(int(kept.sum()))

    monkeypatch.setattr(Sparsifier, "before_step", before)
    monkeypatch.setattr(Sparsifier, "after_step", after)
    train(config)
    assert frozen.count(0) < len(frozen) / 2


def check_gradient_mask(kind: type[GradientMask]) -> None:
    """Three in ten with the largest gradients move, with momentum; chosen every 2."""
    model = torch.nn.Linear(10, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sparsifier = Sparsifier(model, optimizer, Static(0.0))
    masks = kind(share=0.3, every=2)
    rising = 1 + torch.arange(10.0)
    moved = []
    for grad in (rising, rising.flip(0), rising.flip(0), rising):
        model.weight.grad = grad[None].clone()
        before = model.weight.detach().clone()
        masks.update(sparsifier, lambda: sparsifier.grads)
        sparsifier.before_step()
        optimizer.step()
        sparsifier.after_step()
        moved.append((model.weight != before)[0].nonzero()[:, 0].tolist())
    assert moved == [[7, 8, 9], [7, 8, 9], [0, 1, 2], [0, 1, 2]]
    masks.thaw(sparsifier)
    assert sparsifier.trainable["weight"].all()


def test_a_gradient_mask_keeps_the_largest_and_thaws() -> None:
    check_gradient_mask(GradientMask)


class Multiplies(GradientMask):
    """As the release does it: gradients are masked, and momentum goes on."""

    def update(self, sparsifier, score) -> None:
        super().update(sparsifier, score)
        for name, trained in sparsifier.trainable.items():
            sparsifier.model.get_parameter(name).grad.mul_(trained)
        self.thaw(sparsifier)


class Smallest(GradientMask):
    def update(self, sparsifier, score) -> None:
        super().update(sparsifier, lambda: {n: -g for n, g in score().items()})


class Once(GradientMask):
    """Never chooses again."""

    def update(self, sparsifier, score) -> None:
        super().update(sparsifier, score)
        self.since = 1


class Always(GradientMask):
    """Chooses in every step."""

    def update(self, sparsifier, score) -> None:
        self.since = 0
        super().update(sparsifier, score)


class NeverThaws(GradientMask):
    def thaw(self, sparsifier) -> None: ...


@pytest.mark.parametrize("mutant", [Multiplies, Smallest, Once, Always, NeverThaws])
def test_broken_gradient_masks_fail(mutant) -> None:
    with pytest.raises(AssertionError):
        check_gradient_mask(mutant)


def test_removal_shortens_epochs_as_planned(tiny) -> None:
    options = {"stage": 1, "removal_stages": 3, "removed": 0.5}
    result = train(replace(tiny, strategy_options=options))
    removal = DataRemoval(96, share=0.5, stage=1, stages=3)
    planned = [removal.n_kept(epoch) // 16 for epoch in range(4)]
    assert planned == [6, 5, 4, 3]
    assert [row["steps"] for row in result.history] == planned * 3
    by_chance = train(replace(tiny, strategy_options={**options, "ddr": "random"}))
    assert [row["steps"] for row in by_chance.history] == planned * 3
    assert not same(result, by_chance)


def test_the_schedule_of_the_release(tiny) -> None:
    """50 epochs of 312 steps: 1 % on top for 5 epochs, moves until 40, then rest."""
    config = replace(tiny, sparsity=0.75, epochs=50)
    strategy = SparCL(variant="released", ddr="off")
    plan = training.Plan(((312,) * 50,) * 2)
    strategy.method(config, plan)
    for task, method in enumerate(strategy.tasks):
        due = [t for t in range(2 * 15600) if method.due(t)]
        assert due == [15600 * task + 1560 * k for k in range(10)]
        assert method.sparsity_at(due[0]) == pytest.approx(0.74)
        assert method._shrink_and_grow(due[1]) == (pytest.approx(0.76), 0.75)
        assert method._shrink_and_grow(due[9]) == (0.75, 0.75)
    paper = SparCL(ddr="off")
    paper.method(config, plan)
    first, second = paper.tasks
    assert (first.inter, second.inter) == (0.0, 0.01)
    assert [t for t in range(15600) if first.due(t)] == [
        *range(1560, 15600, 1560),
        15599,
    ]


def test_gradients_of_the_paper_cost_passes(tiny) -> None:
    flops = {}
    for variant in ("paper", "released"):
        options = {"variant": variant, "stage": 2, **OFF}
        numbers = {"inter": 0.0, "intra": 0.01}
        result = train(replace(tiny, strategy_options=options, options=numbers))
        flops[variant] = result.cost["train_flops"]
    state = training.build(tiny, streams.load(tiny))
    one = state.flops.sparse + state.flops.backward
    # Epoch 2 of each task moves: the batch of 16, and 11 of the buffer from task 1 on.
    extra = (3 * 16 + 2 * 11) * one
    assert flops["paper"] - flops["released"] == pytest.approx(extra, rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replay": "finetune"}, r"'finetune' is no strategy that replays.* er"),
        ({"replay": "gdumb"}, "no strategy that replays"),
        ({"updated": 0.0}, r"share of weights that train is in \(0, 1\], got 0"),
        ({"removed": 1.0}, "some examples must stay"),
        ({"stage": 0}, "stage .* got 0"),
        ({"variant": "mine"}, "variant of strategy 'sparcl' must be"),
    ],
)
def test_options_out_of_range_are_named(tiny, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(tiny, strategy_options=options)


def test_options_that_follow_from_others_are_refused(tiny) -> None:
    config = replace(tiny, options={"every": 3})
    with pytest.raises(ValueError, match="'every' of tdm follows from stage"):
        training.build(config, streams.load(config))
