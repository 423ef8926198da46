"""Training: identities (sparsity 0 = dense, resume = uninterrupted), costs by hand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from apps.classify import data, result
from apps.classify.config import Config
from apps.classify.train import (
    build_model,
    epoch_batches,
    train,
)
from apps.common import options
from sparsekit.masks import count_active

TINY = Config(model="mlp", width=11, depth=2, epochs=3, method="static", sparsity=0.8)


def weights(trained: result.Result) -> dict[str, torch.Tensor]:
    return trained.model.state_dict()


def assert_equal(a: result.Result, b: result.Result) -> None:
    """The same training, bit for bit, except for time and memory."""
    for name, value in weights(a).items():
        assert torch.equal(value, weights(b)[name]), name
    assert a.masks.keys() == b.masks.keys()
    assert all(torch.equal(a.masks[name], b.masks[name]) for name in a.masks)
    assert a.metrics == b.metrics
    timeless = [[{**row, "seconds": 0} for row in r.history] for r in (a, b)]
    assert timeless[0] == timeless[1]
    assert a.cost["train_flops"] == b.cost["train_flops"]


@pytest.mark.parametrize("method", ["static", "set", "rigl", "oneshot"])
def test_sparsity_0_is_dense_bit_for_bit(method: str) -> None:
    dense = train(replace(TINY, method="dense"))
    options = {"fraction": 0.0} if method in ("set", "rigl") else {}
    sparse = train(replace(TINY, method=method, sparsity=0.0, options=options))
    for name, value in weights(dense).items():
        assert torch.equal(value, weights(sparse)[name])
    assert dense.metrics == sparse.metrics
    assert dense.cost["params_active"] == sparse.cost["params_active"]


def test_equal_seeds_give_equal_results_and_others_do_not() -> None:
    config = replace(TINY, method="rigl")
    assert_equal(train(config), train(config))
    other = train(replace(config, seed=1))
    assert not torch.equal(other.samples["nll"], train(config).samples["nll"])


def test_the_mask_seed_moves_connections_and_nothing_else() -> None:
    starts = {}

    def watch(epoch, model, sparsifier):
        if epoch == 0:
            weights = {n: p.clone() for n, p in model.named_parameters()}
            starts[mask_seed] = (weights, sparsifier.finalize())

    for mask_seed in (None, 0, 1):
        train(replace(TINY, epochs=1, mask_seed=mask_seed), watch)
    for default, same in zip(starts[None], starts[0], strict=True):
        assert all(torch.equal(default[name], same[name]) for name in default)
    (weights, masks), (other_weights, other_masks) = starts[0], starts[1]
    for name, mask in masks.items():
        both = mask & other_masks[name]
        assert mask.sum() == other_masks[name].sum()
        assert both.sum() < mask.sum()
        assert torch.equal(weights[name][both], other_weights[name][both])


def test_the_global_random_state_is_neither_used_nor_moved() -> None:
    torch.manual_seed(1)
    first = train(TINY)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = train(TINY)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(before, state)
    assert_equal(first, second)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "dense"},
        {"method": "rigl", "options": {"every": 20}},
        {"method": "gradual", "options": {"every": 20}},
        {"method": "imp", "options": {"rounds": 2, "rewind_to": 5}},
        {"method": "set", "optimizer": "sgd", "lr": 0.05, "keep": "best"},
        {"method": "mest", "model": "cnn", "width": 2, "norm": True, "moments": "mean"},
    ],
    ids=lambda c: c["method"],
)
def test_resume_equals_uninterrupted(tmp_path: Path, changes: dict) -> None:
    config = replace(TINY, **changes)
    expected = train(config)

    class Interrupted(Exception):
        pass

    def stop_after(n: int):
        def watch(epoch, model, sparsifier):
            if epoch == n:
                raise Interrupted

        return watch

    for cuts in ([1], [2], [1, 2]):
        out = tmp_path / "-".join(map(str, cuts))
        for i, cut in enumerate(cuts):
            with pytest.raises(Interrupted):
                train(replace(config, out=out, resume=i > 0), stop_after(cut))
        resumed = train(replace(config, out=out, resume=True))
        assert_equal(resumed, expected)


def test_resume_without_the_checkpoints_masks_would_differ(tmp_path: Path) -> None:
    """Negative control: the checkpoint's contents matter to the comparison above."""
    config = replace(TINY, method="rigl", options={"every": 20})
    expected = train(config)

    def spoil(epoch, model, sparsifier):
        if epoch == 2:
            with torch.no_grad():
                sparsifier.alive["1.weight"].logical_not_().logical_not_()
                model[1].weight.mul_(1 + 1e-6)

    spoiled = train(config, spoil)
    assert not torch.equal(weights(spoiled)["1.weight"], weights(expected)["1.weight"])


def test_a_finished_run_is_loaded_and_not_repeated(tmp_path: Path) -> None:
    config = replace(TINY, method="rigl", out=tmp_path / "run")
    first = train(config)
    called = []
    again = train(replace(config, resume=True), lambda *a: called.append(a))
    assert_equal(first, again)
    assert called == []
    assert torch.equal(first.samples["correct"], again.samples["correct"])


def test_without_out_nothing_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(replace(TINY, epochs=1))
    assert list(tmp_path.iterdir()) == []


def test_sparsity_and_zeros_at_the_end() -> None:
    trained = train(replace(TINY, method="gradual"))
    total = sum(mask.numel() for mask in trained.masks.values())
    alive = sum(int(mask.sum()) for mask in trained.masks.values())
    # one layer at a time, so each tensor's own rounding is allowed
    assert abs(alive - count_active(total, 0.8)) <= len(trained.masks)
    for name, mask in trained.masks.items():
        assert not weights(trained)[name][~mask].any()
    assert trained.history[-1]["density"] == pytest.approx(alive / total)


def test_samples_and_metrics_agree() -> None:
    trained = train(TINY)
    test = data.load("mnist5k", seed=0).test
    with torch.no_grad():
        logits = trained.model(test.x)
    expected = float((logits.argmax(1) == test.y).double().mean())
    assert trained.accuracy == pytest.approx(expected)
    assert trained.samples["correct"].double().mean() == pytest.approx(expected)
    low, high = trained.metrics["accuracy"].low, trained.metrics["accuracy"].high
    half = 1.96 * math.sqrt(expected * (1 - expected) / 1000)
    assert (low, high) == pytest.approx((expected - half, expected + half), abs=2e-4)
    ece = trained.metrics["ece"]
    assert 0 <= ece.low <= ece.high <= 1


def test_costs_by_hand() -> None:
    dense = train(replace(TINY, method="dense"))
    n_weights = 784 * 11 + 11 * 11 + 11 * 10
    assert dense.cost["params_total"] == n_weights + 11 + 11 + 10
    assert dense.cost["params_active"] == dense.cost["params_total"]
    steps = 35 * 3
    assert dense.cost["train_flops"] == steps * 100 * 3 * 2 * n_weights

    static = train(replace(TINY, method="static"))
    n_active = count_active(n_weights, 0.8)
    assert static.cost["params_active"] == n_active + 11 + 11 + 10
    assert static.cost["train_flops"] == steps * 100 * 3 * 2 * n_active

    rigl = train(replace(TINY, method="rigl", options={"every": 50, "end": 101}))
    extra = 2 * 100 * 2 * (n_weights - n_active)  # dense weight gradients, two moves
    assert rigl.cost["train_flops"] == static.cost["train_flops"] + extra

    options = {"candidates": 7}
    searched = train(replace(TINY, method="random_search", options=options))
    extra = 7 * 100 * 2 * n_active  # forward passes of ten images a class
    assert searched.cost["train_flops"] == static.cost["train_flops"] + extra


def test_bytes_on_disk_are_those_of_the_file(tmp_path: Path) -> None:
    trained = train(replace(TINY, out=tmp_path / "run"))
    size = (tmp_path / "run" / "model.safetensors").stat().st_size
    assert trained.cost["bytes_on_disk"] == size
    dense = train(replace(TINY, method="dense"))
    assert size < 0.4 * dense.cost["bytes_on_disk"]


def test_the_stored_model_is_exact(tmp_path: Path) -> None:
    trained = train(replace(TINY, method="set", out=tmp_path / "run"))
    loaded = result.load_result(tmp_path / "run")
    assert_equal(trained, loaded)


def test_the_best_epoch_is_chosen_on_validation_at_the_final_sparsity() -> None:
    states = {}

    def watch(epoch, model, sparsifier):
        states[epoch] = {k: v.clone() for k, v in model.state_dict().items()}

    config = replace(TINY, method="gradual", epochs=6, options={"end": "50%"}, lr=0.05)
    trained = train(replace(config, keep="best"), watch)
    final = trained.history[-1]["density"]
    allowed = [row for row in trained.history if row["density"] == final]
    assert 1 < len(allowed) < 6
    best = max(allowed, key=lambda row: row["validation_accuracy"])
    kept = states[int(best["epoch"])]
    assert all(torch.equal(kept[k], v) for k, v in weights(trained).items())


def test_rewinding_restarts_the_learning_rate() -> None:
    rates = []

    def watch(epoch, model, sparsifier):
        if sparsifier is not None:
            rates.append(sparsifier.optimizer.param_groups[0]["lr"])

    train(replace(TINY, method="imp", options={"rounds": 2}), watch)  # 35 steps each
    # the last step of each round has the same, lowest rate
    assert rates[1] == rates[2] == rates[3] < 0.001


def test_keep_dense_leaves_tensors_out() -> None:
    trained = train(replace(TINY, epochs=1, keep_dense=("5.*",)))
    assert set(trained.masks) == {"1.weight", "3.weight"}
    with pytest.raises(ValueError, match=r"'fc\*' matches no parameter.* 1\.weight"):
        train(replace(TINY, keep_dense=("fc*",)))
    model = nn.Linear(2, 2)
    assert options.maskable((), model) is None


def test_every_image_is_used_once_an_epoch() -> None:
    batches = epoch_batches(replace(TINY, batch=7), 24, epoch=0)
    seen = torch.cat(batches).tolist()
    assert [len(b) for b in batches] == [7, 7, 7]
    assert len(set(seen)) == 21
    assert set(seen) <= set(range(24))
    again, later = (epoch_batches(replace(TINY, batch=7), 24, e) for e in (0, 1))
    assert torch.equal(torch.cat(again), torch.cat(batches))
    assert not torch.equal(torch.cat(later), torch.cat(batches))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity .* in \[0, 1\), got 1.0"),
        ({"sparsity": -0.1}, "sparsity"),
        ({"mask_seed": -1}, "mask_seed must be at least 0, got -1"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": math.nan}, "lr must be positive"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"method": "rigle"}, "choose one of dense, .*rigl"),
        ({"options": {"alpha": 1}}, "no option 'alpha'"),
    ],
)
def test_bad_settings_are_refused_before_any_work(changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


def test_a_batch_larger_than_the_data_and_a_diverging_loss_are_named() -> None:
    with pytest.raises(ValueError, match="batch 4000 exceeds the 3500 train images"):
        train(replace(TINY, batch=4000))
    with pytest.raises(ValueError, match=r"loss is (nan|inf).*lower lr|NaN or inf"):
        train(replace(TINY, optimizer="sgd", lr=1e18))


def test_every_model_learns() -> None:
    shapes = {"mlp": (30, 1), "cnn": (3, 2), "lstm": (16, 1)}
    for name, (width, depth) in shapes.items():
        config = replace(TINY, model=name, width=width, depth=depth, method="dense")
        trained = train(config)
        assert trained.accuracy > 0.5, name
        splits = data.load("mnist5k", seed=0)
        untrained = result.evaluate(build_model(config, splits), splits.test)
        assert (untrained.argmax(1) == splits.test.y).float().mean() < 0.35
