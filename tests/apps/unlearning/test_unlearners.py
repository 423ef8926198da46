"""Identities that hold for every method, or pin one of them down."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apps.common.images import Split
from apps.common.roc import auc
from apps.unlearning import Result, unlearn
from apps.unlearning.ensemble import Shards, Store, train_shards
from apps.unlearning.fitting import Recipe, fit
from apps.unlearning.models import anew
from apps.unlearning.unlearner import Problem, build, discover
from apps.unlearning.unlearners.finetune import Finetune
from apps.unlearning.unlearners.fisher import Fisher, batch_diagonal, diagonal
from apps.unlearning.unlearners.l1_sparse import L1Sparse, soft_threshold
from apps.unlearning.unlearners.random_labels import RandomLabels, relabelled
from apps.unlearning.unlearners.salun import SalUn, salient
from sparsekit import fixed
from tests.apps.unlearning.states import assert_equal, state

RECIPE = Recipe(epochs=3, batch=13, lr=0.02, weight_decay=0.01)
METHODS = [name for name in discover() if name != "sisa"]


def run(network, records, method, **arguments) -> Result:
    retain, forget, fresh = records
    arguments = {"recipe": RECIPE, "held_out": fresh, "fresh": fresh} | arguments
    return unlearn(network, retain, forget, method, **arguments)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_given_is_not_changed_and_a_seed_decides(network, records, method):
    before = state(network)
    first = run(network, records, method)
    assert_equal(state(network), before)
    assert_equal(state(first.model), state(run(network, records, method).model))
    assert first.samples["forget"]["correct"].shape == (13,)
    assert first.metrics["UA"] == pytest.approx(
        1 - float(first.samples["forget"]["correct"].mean())
    )


@pytest.mark.parametrize("method", METHODS)
def test_absent_weights_stay_zero(network, records, method):
    generator = torch.Generator().manual_seed(1)
    masks = {
        name: torch.rand(p.shape, generator=generator) < 0.5
        for name, p in network.named_parameters()
        if p.dim() > 1
    }
    fixed.apply(network, masks)
    for given in (masks, None):  # None: found in the model
        result = run(network, records, method, masks=given)
        for name, mask in masks.items():
            assert not result.model.get_parameter(name)[~mask].any()
            assert result.model.get_parameter(name)[mask].any()
    assert not result.exact  # where the mask comes from is not known


@pytest.mark.parametrize("method", METHODS)
def test_a_single_record_can_be_forgotten(network, records, method):
    """With batch norm, and a retain set that leaves a single record in a batch."""
    retain, forget, fresh = records
    one = Split(forget.x[:1], forget.y[:1], forget.ids[:1])
    options = {"batch": 12} if "batch" in vars(build(method)) else {}
    result = run(network, (retain, one, fresh), method, options=options)
    assert result.samples["forget"]["correct"].shape == (1,)
    assert all(torch.isfinite(t).all() for t in state(result.model).values())


class Careless(Finetune):
    """A mutant: masks are applied before the first step only."""

    def run(self, problem):
        return Finetune.run(self, replace(problem, masks={}))


def test_a_method_that_lets_absent_weights_grow_is_caught(network, records):
    masks = {"0.weight": torch.rand(7, 11) < 0.5}
    fixed.apply(network, masks)
    with pytest.raises(RuntimeError, match="Careless gave absent weights"):
        run(network, records, Careless(epochs=1), masks=masks)


@pytest.mark.parametrize("method", METHODS)
def test_full_masks_are_no_masks(network, records, method):
    full = {
        name: torch.ones_like(p, dtype=torch.bool)
        for name, p in network.named_parameters()
        if p.dim() > 1
    }
    a, b = (run(network, records, method, masks=m) for m in (full, {}))
    for name, tensor in state(a.model).items():
        torch.testing.assert_close(tensor, state(b.model)[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        "finetune", "l1_sparse", "gradient_ascent", "neggrad_plus", "random_labels",
        "salun", "scrub",
    ],
)  # fmt: skip
def test_no_epochs_leave_the_model_as_it_was(network, records, method):
    result = run(network, records, method, options={"epochs": 0})
    assert_equal(state(result.model), state(network))


def test_nothing_to_forget_is_an_error(network, records):
    retain = records[0]
    empty = Split(retain.x[:0], retain.y[:0])
    with pytest.raises(ValueError, match="forget is empty"):
        unlearn(network, retain, empty)
    with pytest.raises(ValueError, match="both retain and forget"):
        unlearn(network, retain, retain)


def test_gamma_0_is_fine_tuning(network, records):
    options = {"epochs": 2, "lr": 0.05}
    plain = run(network, records, "finetune", options=options)
    for prox in (False, True):
        zero = options | {"gamma": 0.0, "prox": prox}
        l1 = run(network, records, "l1_sparse", options=zero)
        assert_equal(state(l1.model), state(plain.model))


def test_the_proximal_step_makes_zeros_and_the_sub_gradient_none(network, records):
    options = {"epochs": 3, "gamma": 0.5, "lr": 0.05}
    counts = {}
    for prox in (False, True):
        method = build("l1_sparse", options | {"prox": prox})
        model = run(network, records, method).model
        counts[prox] = int((model[0].weight == 0).sum())
    assert counts[False] == 0
    assert counts[True] > 0


def test_soft_threshold_solves_the_orthogonal_lasso():
    layer = nn.Linear(5, 1, bias=False)
    given = layer.weight.detach().clone()
    soft_threshold(layer, 0.2)
    expected = given.sign() * (given.abs() - 0.2).clamp(min=0)
    torch.testing.assert_close(layer.weight.detach(), expected)


def test_the_penalty_decays_as_published():
    assert [L1Sparse(epochs=5, plain=2, gamma=3.0).penalty(e) for e in range(5)] == (
        pytest.approx([3.0, 2.0, 1.0, 0.0, 0.0])
    )
    assert L1Sparse(epochs=5, plain=5, gamma=3.0).penalty(4) == 3.0


def test_retraining_is_training_on_data_that_never_had_the_forget_set(network, records):
    result = run(network, records, "retrain", seed=4)
    alone = fit(anew(network)(4), records[0], RECIPE, seed=4)
    assert_equal(state(result.model), state(alone))
    assert result.exact


@pytest.mark.parametrize("slices", [1, 3])
def test_sisa_equals_sisa_that_never_saw_the_records(network, records, slices):
    retain, forget, _ = records
    both = Split(*(torch.cat([getattr(s, n) for s in (retain, forget)]) for n in "xy"),
                 torch.cat([retain.ids, forget.ids]))  # fmt: skip
    shards, store = Shards(2, slices), Store()
    model = train_shards(anew(network), both, shards, RECIPE, seed=0, store=store)
    one = Split(forget.x[:1], forget.y[:1], forget.ids[:1])
    rest = torch.arange(len(both)) != len(retain)
    kept = Split(both.x[rest], both.y[rest], both.ids[rest])
    before = store.work
    result = unlearn(model, kept, one, "sisa", recipe=RECIPE)
    anew_model = train_shards(anew(network), kept, shards, RECIPE, seed=0)
    assert_equal(state(result.model), state(anew_model))
    assert result.exact
    assert store.work - before < anew_model.store.work  # a shard was not touched
    stale = set(store.sizes).difference(result.model.keys)
    assert 1 <= len(stale) <= slices


def test_sisa_of_one_shard_is_retraining(network, records):
    retain, forget, _ = records
    model = train_shards(anew(network), forget, Shards(1, 1), RECIPE, seed=2)
    sharded = unlearn(model, retain, forget, "sisa", recipe=RECIPE, masks={})
    retrained = unlearn(network, retain, forget, "retrain", recipe=RECIPE, seed=2)
    assert_equal(state(sharded.model.models[0]), state(retrained.model))


def test_sisa_s_arithmetic_is_the_paper_s():
    table = {1: [20], 2: [13, 13], 4: [8] * 4, 8: [4, 4, 5, 4, 5, 4, 5, 4]}
    for slices, epochs in table.items():
        assert Shards(1, slices).epochs(20) == epochs


def test_sparse_checkpoints_take_less(network, records, tmp_path):
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(11, 400), nn.ReLU(), nn.Linear(400, 3))
    masks = {"0.weight": torch.rand(400, 11) < 0.05}
    sizes = {}
    for name, given in (("dense", {}), ("sparse", masks)):
        store = Store(tmp_path / name)
        train_shards(
            anew(wide), records[0], Shards(1, 2), RECIPE,
            seed=0, masks=given, store=store,
        )  # fmt: skip
        files = list((tmp_path / name).glob("*.safetensors"))
        sizes[name] = sum(path.stat().st_size for path in files)
        assert sizes[name] == store.nbytes
        again = Store(tmp_path / name)  # another process finds them
        train_shards(
            anew(wide), records[0], Shards(1, 2), RECIPE,
            seed=0, masks=given, store=again,
        )  # fmt: skip
        assert again.work == 0
        assert again.nbytes == store.nbytes
        assert len(files) == 2
    assert sizes["sparse"] < sizes["dense"] / 2


def test_the_fisher_diagonal_is_the_mean_over_records_and_labels(network, records):
    retain = records[0]
    found = diagonal(network.eval(), retain, 3)
    expected = {n: torch.zeros_like(p) for n, p in network.named_parameters()}
    for i in range(len(retain)):
        log_p = F.log_softmax(network(retain.x[i : i + 1]), 1)[0]
        for label in range(3):
            grads = torch.autograd.grad(
                log_p[label], list(network.parameters()), retain_graph=True
            )
            for name, grad in zip(expected, grads, strict=True):
                expected[name] += log_p[label].exp().detach() * grad.square()
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name] / len(retain), rtol=1e-4, atol=1e-7
        )
    # Squares of batch means are what they are: far smaller.
    batch = batch_diagonal(network, retain, 3)
    assert batch["3.weight"].sum() < 0.5 * found["3.weight"].sum()


def test_fisher_wipes_the_forgotten_class_s_row_and_no_other(network, records):
    wiped = (
        run(network, records, Fisher(alpha=1e-12), removed_class=1, masks={})
        .model[3]
        .weight.detach()
    )
    plain = run(network, records, Fisher(alpha=1e-12), masks={}).model[3].weight
    change = (wiped - plain.detach()).abs().amax(1)
    assert change[1] > 0.05
    assert change[[0, 2]].max() == 0
    with pytest.raises(ValueError, match="has none"):
        unlearn(
            nn.Sequential(nn.Conv1d(11, 3, 1), nn.Flatten()),
            Split(records[0].x[:, :, None], records[0].y),
            Split(records[1].x[:, :, None], records[1].y),
            "fisher",
        )


def test_salun_moves_only_the_salient_entries(network, records):
    """100 steps with momentum and weight decay; the others keep their bits."""
    retain, forget, _ = records
    method = SalUn(saliency=0.3, epochs=20, batch=13)
    problem = Problem(copy.deepcopy(network), retain, forget)
    movable = salient(problem, 0.3, 13)
    total = sum(m.numel() for m in movable.values())
    assert sum(int(m.sum()) for m in movable.values()) == round(0.3 * total)
    after = run(network, records, method, masks={}).model
    for name, mask in movable.items():
        before, now = network.get_parameter(name), after.get_parameter(name)
        assert torch.equal(before[~mask], now[~mask])
        assert bool((before[mask] != now[mask]).any()) or not mask.any()


def test_salun_of_everything_is_random_labels(network, records):
    a = run(network, records, SalUn(saliency=1.0, lr=0.01))
    b = run(network, records, RandomLabels(lr=0.01))
    for name, tensor in state(a.model).items():
        torch.testing.assert_close(tensor, state(b.model)[name], rtol=0, atol=1e-6)


def test_random_labels_include_the_true_one_unless_told_otherwise(network, records):
    problem = Problem(network, records[0], records[1])
    found = {}
    for other_only in (False, True):
        method = RandomLabels(other_only=other_only)
        equal = 0.0
        for epoch in range(200):
            ((_, y),) = problem.batches(records[1], 256, epoch)
            ((_, random),) = relabelled(problem, method, epoch, 3)
            equal += float((y == random).double().mean()) / 200
        found[other_only] = equal
    assert found[True] == 0
    assert found[False] == pytest.approx(1 / 3, abs=0.04)


def test_gradient_ascent_is_bounded(network, records):
    """With a step that would destroy the model it stops where unseen records are."""
    trained = fit(
        copy.deepcopy(network), records[0], replace(RECIPE, epochs=20), seed=0
    )
    options = {"lr": 0.05, "epochs": 30}
    bounded = run(trained, records, "gradient_ascent", options=options)
    free = run(trained, records, "gradient_ascent", options=options | {"bound": False})
    assert free.metrics["UA"] > bounded.metrics["UA"]
    assert free.metrics["RA"] < bounded.metrics["RA"]
    with pytest.raises(ValueError, match="held_out"):
        unlearn(trained, records[0], records[1], "gradient_ascent")


def test_ascent_raises_and_descent_lowers_the_loss_on_the_forget_set(network, records):
    """A flipped sign would be seen here."""
    options = {"lr": 1e-3, "epochs": 1, "bound": False}
    before = run(network, records, "finetune", options={"epochs": 0})
    after = run(network, records, "gradient_ascent", options=options)
    loss = [float(r.samples["forget"]["loss"].mean()) for r in (before, after)]
    assert loss[1] > loss[0]


def test_neggrad_plus_steps_along_its_two_gradients():
    """One step of a linear model, by hand; alpha = 1 is fine-tuning."""
    x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1])
    line = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(line.weight)
    options = {"epochs": 1, "lr": 0.1, "weight_decay": 0.0, "alpha": 0.75}
    result = unlearn(
        line, Split(x[:1], y[:1]), Split(x[1:], y[1:]), "neggrad_plus",
        options=options, masks={},
    )  # fmt: skip
    # d CE / d W = (p - onehot) x', p = (1/2, 1/2).
    retain = torch.tensor([[-0.5, 0.0], [0.5, 0.0]])
    forget = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    expected = -0.1 * (0.75 * retain - 0.25 * forget)
    torch.testing.assert_close(result.model.weight.detach(), expected)


def test_neggrad_plus_of_the_retain_set_alone_is_fine_tuning(network, records):
    options = {"epochs": 2, "lr": 0.05}
    plain = run(network, records, "finetune", options=options)
    alone = run(network, records, "neggrad_plus", options=options | {"alpha": 1.0})
    assert_equal(state(alone.model), state(plain.model))
    with pytest.raises(ValueError, match="alpha must be"):
        build("neggrad_plus", {"alpha": 0.0})


def test_neggrad_plus_goes_through_the_forget_set_again_and_again(records):
    method = build("neggrad_plus", {"batch": 5, "epochs": 2})
    problem = Problem(nn.Linear(11, 3), *records[:2])
    batches = method.forget_batches(problem, 1)
    sizes = [len(next(batches)[1]) for _ in range(7)]
    assert sizes == [5, 5, 3, 5, 5, 3, 5]  # 13 records


def test_scrub_forgets_what_finetuning_keeps(records):
    """On random labels, which a network can only memorise."""
    retain, forget, _ = records
    generator = torch.Generator().manual_seed(0)
    noisy = [
        Split(s.x, torch.randint(0, 3, s.y.shape, generator=generator), s.ids)
        for s in (retain, forget)
    ]
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(11, 64), nn.ReLU(), nn.Linear(64, 3))
    both = Split(torch.cat([s.x for s in noisy]), torch.cat([s.y for s in noisy]))
    fit(wide, both, replace(RECIPE, epochs=60, weight_decay=0.0), seed=0)
    options = {"lr": 0.1, "epochs": 8, "max_epochs": 6, "milestones": ()}
    scrubbed = unlearn(wide, *noisy, "scrub", options=options)
    kept = unlearn(wide, *noisy, "finetune", options={"lr": 1e-3, "epochs": 1})
    assert kept.metrics["UA"] < 0.1
    assert scrubbed.metrics["UA"] > 0.3
    assert scrubbed.metrics["RA"] > scrubbed.metrics["UA"]
    assert auc(kept.samples["forget"]["confidence"].numpy(),
               scrubbed.samples["forget"]["confidence"].numpy()) > 0.7  # fmt: skip


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("magic", {}, "choose one of"),
        ("finetune", {"lrr": 1.0}, "has no option 'lrr'"),
        ("finetune", {"lr": "fast"}, "option lr of method 'finetune' must be"),
        ("finetune", {"lr": -1.0}, "lr must be positive"),
        ("l1_sparse", {"gamma": -1.0}, "gamma must be"),
        ("salun", {"saliency": 0.0}, "saliency must be"),
        ("influence", {"damping": 0.0}, "needs damping > 0"),
        ("sisa", {}, "trained by train_shards"),
    ],
)
def test_bad_settings_are_named(network, records, method, options, message):
    with pytest.raises(ValueError, match=message):
        unlearn(network, *records[:2], method, options=options)


def test_models_that_lack_something_are_refused(records):
    retain, forget, _ = records

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x[:, :3] * self.scale

    with pytest.raises(ValueError, match="no reset_parameters"):
        unlearn(Scale(), retain, forget, "retrain", recipe=RECIPE)
    flat = nn.Sequential(nn.Linear(11, 3), nn.Flatten(0))
    with pytest.raises(ValueError, match="logits"):
        unlearn(flat, retain, forget, "random_labels")
    mask = {"scale": torch.ones(2, dtype=torch.bool)}
    with pytest.raises(ValueError, match="the mask of 'scale'"):
        unlearn(Scale(), retain, forget, masks=mask)
    with pytest.raises(ValueError, match="provenance"):
        unlearn(Scale(), retain, forget, mask_provenance="unknown")
