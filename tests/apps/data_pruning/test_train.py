"""Training: a loop written out, identities, budgets, batches, refusals."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
import torch.nn.functional as F

from apps.common import classifiers
from apps.common.seeds import mixed
from apps.data_pruning import data as sources
from apps.data_pruning import train as training
from apps.data_pruning.config import Config
from apps.data_pruning.train import (
    augmented,
    build_optimizer,
    epoch_batches,
    learning_rate_factor,
    n_steps,
    predict,
    train,
)


@pytest.fixture(scope="module")
def data(small) -> sources.Data:
    return sources.load(small)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_a_training_written_out(small, data) -> None:
    """SGD with Nesterov momentum by hand, on the batches of the same permutations."""
    config = replace(small, optimizer="sgd", lr=0.1, weight_decay=0.01, epochs=2)
    index = torch.arange(0, len(data), 3)
    found = train(config, data, index, budget="epochs")
    model = classifiers.build("mlp", 13, 1, 3, 1, 8, mixed(0, 0, 2))
    parameters = list(model.parameters())
    buffers = [torch.zeros_like(p) for p in parameters]
    generator = torch.Generator().manual_seed(mixed(0, 0, 0))
    passes = [index[torch.randperm(54, generator=generator)] for _ in range(3)]
    order = torch.cat(passes)
    total = round(2 * 54 / 17)
    assert found.steps == total
    for step in range(total):
        batch = order[17 * step : 17 * (step + 1)]
        x, y = data.splits.train.x[batch], data.splits.train.y[batch]
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
        lr = 0.1 * learning_rate_factor("one-cycle", step, total)
        with torch.no_grad():
            for p, g, v in zip(parameters, gradients, buffers, strict=True):
                g = g + 0.01 * p
                v.mul_(0.9).add_(g)
                p -= lr * (g + 0.9 * v)
    for p, q in zip(parameters, found.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)


def test_keeping_everything_is_training_on_all_data_bit_for_bit(small, data) -> None:
    everything = train(small, data)
    assert same(train(small, data, torch.arange(len(data))).model, everything.model)
    shuffled = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
    assert same(train(small, data, shuffled, budget="epochs").model, everything.model)
    ones = torch.ones(len(data))
    assert same(train(small, data, weights=ones).model, everything.model)


def test_equal_seeds_equal_results(small, data) -> None:
    first, again = train(small, data), train(small, data)
    assert same(first.model, again.model)
    assert first.losses == again.losses
    assert not same(first.model, train(small, data, run=1).model)
    assert not same(first.model, train(replace(small, seed=1), data).model)


def test_weights_of_zero_leave_examples_out_of_the_gradient(small, data) -> None:
    """Poisoned examples with weight 0 change nothing."""
    weights = torch.ones(len(data))
    weights[::5] = 0
    poisoned = sources.load(small)
    poisoned.splits.train.x[::5] = 1e3
    first = train(small, data, weights=weights)
    assert same(first.model, train(small, poisoned, weights=weights).model)
    assert not same(first.model, train(small, data).model)


def test_the_subset_alone_is_seen(small, data) -> None:
    index = torch.arange(1, len(data), 2)
    poisoned = sources.load(small)
    poisoned.splits.train.x[::2] = torch.nan
    assert same(train(small, data, index).model, train(small, poisoned, index).model)


@pytest.mark.parametrize(
    ("n_kept", "budget", "steps"),
    [(3500, "steps", 700), (350, "steps", 700), (350, "epochs", 70), (1, "epochs", 1)],
)
def test_budgets_by_hand(n_kept: int, budget: str, steps: int) -> None:
    assert n_steps(Config(epochs=20, batch=100), 3500, n_kept, budget) == steps


@pytest.mark.parametrize(("n", "batch", "taken"), [(10, 4, 7), (3, 8, 5), (5, 5, 4)])
def test_batches_pass_over_everything_equally_often(n, batch, taken) -> None:
    index = torch.arange(100, 100 + n)
    batches = list(islice(epoch_batches(index, batch, 3), taken))
    assert all(len(b) == batch for b in batches)
    counts = torch.cat(batches).sub(100).bincount(minlength=n)
    assert int(counts.max()) - int(counts.min()) <= 1
    flat = torch.cat(batches)
    for start in range(0, len(flat) - n + 1, n):
        assert sorted(flat[start : start + n].tolist()) == index.tolist()
    assert not torch.equal(flat[:n], index)


def test_watch_sees_every_epoch_with_its_clock(small, data) -> None:
    seen = []
    train(small, data, watch=lambda model, e, s: seen.append((e, s)))
    assert [e for e, _ in seen] == [0, 1, 2, 3, 4]
    seconds = [s for _, s in seen]
    assert seconds[0] == 0
    assert seconds == sorted(seconds)


def test_until_stops_the_same_training(small, data) -> None:
    states = {}

    def watch(model, epoch, seconds):
        states[epoch] = {k: v.clone() for k, v in model.state_dict().items()}

    train(small, data, watch=watch)
    part = train(small, data, until=2)
    for name, value in part.model.state_dict().items():
        assert torch.equal(value, states[2][name])
    assert part.steps == round(2 * round(4 * 161 / 17) / 4)


def test_augmentation_is_a_crop_of_the_reflected_image_or_its_mirror() -> None:
    x = torch.arange(2 * 3 * 11 * 11.0).reshape(2, 3, 11, 11)
    padded = F.pad(x, (4, 4, 4, 4), mode="reflect")
    generator = torch.Generator().manual_seed(0)
    places = set()
    for _ in range(40):
        found = augmented(x, generator)
        for i in range(2):
            matches = [
                (top, left, mirrored)
                for top in range(9)
                for left in range(9)
                for mirrored in (False, True)
                if torch.equal(
                    found[i].flip(2) if mirrored else found[i],
                    padded[i, :, top : top + 11, left : left + 11],
                )
            ]
            assert len(matches) == 1
            places.add(matches[0])
    assert len({p[0] for p in places}) == len({p[1] for p in places}) == 9
    assert {p[2] for p in places} == {False, True}


def test_flops_by_hand(small, data) -> None:
    forward = 2 * (64 * 13 + 13 * 3)
    assert train(small, data).flops == 3 * forward * 17 * round(4 * 161 / 17)


def test_predictions_do_not_depend_on_the_batch(small, data) -> None:
    model = train(replace(small, model="cnn", width=3), data).model
    x = data.splits.test.x
    whole = predict(small, model, x)
    torch.testing.assert_close(predict(small, model, x, batch=5), whole)
    assert not model.training


def test_the_compiled_model_trains_alike(small, data, monkeypatch) -> None:
    """The compiler is torch's; ours: one model, filled anew, and weights returned."""
    plain = train(small, data), train(small, data, run=1)
    monkeypatch.setattr(torch, "compile", lambda model, **_: lambda x: model(x))
    monkeypatch.setattr(training, "_compiled", training._compiled.__wrapped__)
    config = replace(small, compile=True)
    compiled = train(config, data), train(config, data, run=1)
    for a, b in zip(plain, compiled, strict=True):
        assert same(a.model, b.model)


def test_optimizers(small) -> None:
    model = torch.nn.Linear(2, 2)
    adamw, sgd = (build_optimizer(replace(small, optimizer=o), model)
                  for o in ("adamw", "sgd"))  # fmt: skip
    assert isinstance(adamw, torch.optim.AdamW)
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults["momentum"] == 0.9
    assert sgd.defaults["nesterov"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"indices": torch.tensor([3, 3])}, "repeat an example"),
        ({"indices": torch.tensor([161])}, r"in 0 \.\.\. 160, got 161"),
        ({"indices": torch.tensor([-1])}, r"in 0 \.\.\. 160, got -1"),
        ({"indices": torch.tensor([], dtype=torch.int64)}, "n >= 1"),
        ({"indices": torch.ones(161, dtype=torch.bool)}, "int64"),
        ({"budget": "hours"}, "steps, epochs"),
    ],
)
def test_bad_subsets_are_named(small, data, arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(small, data, **arguments)


def test_a_loss_that_is_not_finite_is_named(small) -> None:
    broken = sources.load(small)
    broken.splits.train.x[5] = torch.nan
    with pytest.raises(ValueError, match="in epoch 1: lower lr"):
        train(small, broken)
