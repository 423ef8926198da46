"""Experiments: exact resume, pruners, provenance, files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from apps.common.config import to_toml
from apps.unlearning import data, train
from apps.unlearning.compare import compare, load_comparison
from apps.unlearning.evaluation import ladder
from apps.unlearning.fitting import Recipe, batches, fit
from apps.unlearning.pruning import Pruner, prunable, train_original
from apps.unlearning.result import load_result
from apps.unlearning.shadows import train_groups, train_shadows
from apps.unlearning.stages import Stage, Stages
from apps.unlearning.train import builder
from sparsekit import fixed
from tests.apps.unlearning.states import assert_equal, state


class Cut(Exception):
    pass


def test_the_flops_of_pruning_and_training(small):
    """Convolutions of 3x3 on 8x8 and 4x4 pixels, 3 and 6 filters, a linear layer."""
    convolutions, linear = [2 * 9 * 3 * 64, 2 * 27 * 6 * 16], 2 * 24 * 3
    config = replace(small, prunable="conv", pruner="omp", epochs=4, rewind=1)
    result = train.train(config)
    records = len(result.samples["original"]["retain"]["loss"])
    records += len(result.samples["original"]["forget"]["loss"])
    records -= records % config.batch
    dense = sum(convolutions) + linear
    densities = [float(mask.double().mean()) for mask in result.masks.values()]
    sparse = linear + sum(d * f for d, f in zip(densities, convolutions, strict=True))
    # One epoch to rewind to, three to prune after, three more with the mask.
    assert result.cost["train_flops"] == pytest.approx(
        3 * records * (4 * dense + 3 * sparse), rel=1e-3
    )
    plain = train.train(replace(config, pruner="dense"))
    assert plain.cost["train_flops"] == 3 * records * 4 * dense


@pytest.mark.parametrize(
    ("pruner", "method"),
    [("dense", "l1_sparse"), ("omp", "salun"), ("imp", "scrub"), ("synflow", "sisa")],
)
def test_a_run_that_is_cut_after_any_epoch_ends_the_same(
    small, tmp_path, monkeypatch, pruner, method
):
    options = {} if method == "sisa" else {"epochs": 2}
    if method == "sisa":
        options = {"shards": 2, "slices": 2}
    config = replace(small, pruner=pruner, rounds=2, method=method, options=options)
    whole = train.train(config)
    original, n_saves = Stages.save, 0

    def save(self):
        nonlocal n_saves
        original(self)
        n_saves += 1
        if n_saves % 2 == 0:
            raise Cut

    monkeypatch.setattr(Stages, "save", save)
    config = replace(config, out=tmp_path / "run")
    for _ in range(60):
        try:
            resumed = train.train(config)
            break
        except Cut:
            config = replace(config, resume=True)
    assert config.resume
    assert_equal(state(resumed.model), state(whole.model))
    assert {k: v.value for k, v in resumed.metrics.items() if k != "run time"} == {
        k: v.value for k, v in whole.metrics.items() if k != "run time"
    }
    assert resumed.history == whole.history
    loaded = load_result(tmp_path / "run")
    assert_equal(state(loaded.model), state(whole.model))
    torch.testing.assert_close(
        loaded.samples["unlearned"]["forget"], whole.samples["unlearned"]["forget"]
    )
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["provenance"]["exact"] is (method == "sisa")


def test_other_settings_and_finished_folders_are_refused(small, tmp_path):
    config = replace(small, out=tmp_path / "run")
    train.train(config)
    with pytest.raises(ValueError, match="finished run"):
        train.train(config)
    with pytest.raises(ValueError, match="was trained with lr"):
        train.train(replace(config, lr=0.5, resume=True))
    assert "lr" in to_toml(config)


def original(small, pruner, **changes):
    loaded = data.load(small.dataset, "class:1", 0)
    only = changes.pop("mask_data", None)
    return loaded, train_original(
        replace(pruner, **changes),
        loaded.train,
        builder(small, loaded),
        small.recipe,
        seed=0,
        mask_data=loaded.retained if only else None,
    )


@pytest.mark.parametrize("name", ["omp", "imp", "synflow", "random"])
def test_counts_are_exact_and_absent_weights_zero(small, name):
    _, found = original(small, Pruner(name, 0.7, rounds=2))
    total = sum(mask.numel() for mask in found.masks.values())
    alive = sum(int(mask.sum()) for mask in found.masks.values())
    assert alive == round(0.3 * total)
    for weight, mask in found.masks.items():
        assert not found.model.get_parameter(weight)[~mask].any()
    free = name in ("synflow", "random")
    assert found.provenance == ("data-free" if free else "with-forget-data")


def test_sparsity_0_is_dense(small):
    _, dense = original(small, Pruner("dense"))
    for name in ("omp", "synflow", "random"):
        _, full = original(small, Pruner(name, 0.0, rewind=0))
        for key, tensor in state(dense.model).items():
            torch.testing.assert_close(
                tensor, state(full.model)[key], rtol=0, atol=1e-6
            )


def test_omp_removes_the_smallest_weights_and_rewinds(small):
    """Against the procedure written out."""
    loaded = data.load(small.dataset, "class:1", 0)
    _, found = original(small, Pruner("omp", 0.6, rewind=1))
    model = builder(small, loaded)(0)
    fit(model, loaded.train, small.recipe, seed=0, end=1)
    early = state(model)
    fit(model, loaded.train, small.recipe, seed=0, begin=1)
    weights = {n: model.get_parameter(n).detach().abs() for n in found.masks}
    flat = torch.cat([w.flatten() for w in weights.values()])
    bar = flat.sort(descending=True).values[round(0.4 * len(flat)) - 1]
    for name, weight in weights.items():
        assert torch.equal(found.masks[name], weight >= bar)
    model.load_state_dict(early)
    fixed.apply(model, found.masks)
    fit(model, loaded.train, small.recipe, seed=0, begin=1, masks=found.masks)
    assert_equal(state(model), state(found.model))


def test_a_retain_only_mask_owes_nothing_to_the_forget_set(small):
    """Other forget records with the same retain set: the same masks."""
    loaded, found = original(small, Pruner("omp", 0.6), mask_data=True)
    assert found.provenance == "retain-only"
    _, with_all = original(small, Pruner("omp", 0.6))
    changed = replace(loaded.train, x=loaded.train.x.clone())
    changed.x[loaded.forget.positions] += 3.0
    again = train_original(
        Pruner("omp", 0.6), changed, builder(small, loaded), small.recipe,
        seed=0, mask_data=loaded.retained,
    )  # fmt: skip
    assert_equal(found.masks, again.masks)
    assert any(not torch.equal(found.masks[n], with_all.masks[n]) for n in found.masks)


def test_conv_only_pruning_leaves_the_rest_dense(small):
    _, found = original(small, Pruner("omp", 0.6, prunable="conv"))
    assert list(found.masks) == ["0.weight", "4.weight"]
    with pytest.raises(ValueError, match="no convolution"):
        prunable(torch.nn.Linear(2, 2), "conv")


@pytest.mark.parametrize("reference", ["same-mask", "retain-mask", "dense"])
def test_references(small, reference):
    config = replace(small, pruner="omp", reference=reference)
    prepared = train.prepare(config)
    zeros = {
        name: prepared.reference.get_parameter(name) == 0
        for name in prepared.original.masks
    }
    same = all(
        bool(zeros[n][~mask].all()) for n, mask in prepared.original.masks.items()
    )
    sparse = sum(int(z.sum()) for z in zeros.values()) > 0
    assert same is (reference == "same-mask")
    assert sparse is (reference != "dense")


def test_the_reference_never_saw_the_forget_set(small):
    """It is bit-equal to training where these records do not exist."""
    loaded = data.load(small.dataset, small.forget, small.seed)
    prepared = train.prepare(small)
    damaged = loaded.train.x.clone()
    damaged[loaded.forget.positions] = torch.nan
    hurt = replace(loaded, train=replace(loaded.train, x=damaged))
    again, _ = train.retrain(small, hurt, prepared.original)
    assert_equal(state(again), state(prepared.reference))


def test_wrong_labels_are_learned_by_the_original_only(small):
    config = replace(
        small, forget="confusion:0,1,12", epochs=60, width=8, weight_decay=0.0
    )
    result = train.train(replace(config, method="retrain", options={}))
    assert result.value("original UA") < 0.4
    assert result.value("reference UA") > 0.8
    assert result.value("UA") > 0.8
    assert result.value("UA gap") == result.value("UA") - result.value("reference UA")


def test_batches_are_a_permutation_decided_by_seed_and_epoch(small):
    retain = data.load(small.dataset, "class:1", 0).retained
    ids = torch.cat([y for _, y in batches(retain, 17, 0, 1, drop_last=False)])
    assert torch.equal(ids.sort().values, retain.y.sort().values)
    first = [x for x, _ in batches(retain, 17, 0, 1)]
    assert torch.equal(first[0], next(batches(retain, 17, 0, 1))[0])
    assert not torch.equal(first[0], next(batches(retain, 17, 0, 2))[0])
    assert all(len(x) == 17 for x in first)


def test_a_batch_larger_than_the_data_and_a_bad_loss_are_named(small):
    loaded = data.load(small.dataset, "class:1", 0)
    model = builder(small, loaded)(0)
    with pytest.raises(ValueError, match="batch 999 exceeds"):
        fit(model, loaded.train, Recipe(batch=999), seed=0)
    nan = replace(loaded.train, x=loaded.train.x * torch.nan)
    with pytest.raises(ValueError, match="the loss is nan"):
        fit(model, nan, Recipe(epochs=1, batch=17), seed=0)


def test_augmentation_moves_and_mirrors_what_is_there(small):
    loaded = data.load(small.dataset, "class:1", 0)
    x = torch.arange(64.0).view(1, 1, 8, 8).expand(50, -1, -1, -1)
    split = replace(loaded.train, x=x, y=torch.zeros(50, dtype=torch.int64))
    ((found, _),) = batches(split, 50, 0, 0, augment=True)
    assert found.shape == x.shape
    assert len(found.unique(dim=0)) > 20
    padded = torch.nn.functional.pad(x[:1], (4,) * 4)[0, 0]
    windows = {
        tuple(w.flatten().tolist())
        for top in range(9)
        for left in range(9)
        for w in [padded[top : top + 8, left : left + 8]]
        for w in (w, w.flip(1))
    }
    assert all(tuple(image.flatten().tolist()) in windows for image in found)


def test_stages_are_skipped_once_they_are_done():
    stages = Stages()
    stage = stages.begin("a")
    assert isinstance(stage, Stage)
    assert stage.result is None
    stage.finish(value=3)
    again = stages.begin("a")
    assert again.finish(value=4) == {"value": 3}
    assert stages.seconds("a") == again.seconds


def test_other_forget_sets_share_the_original(small):
    first = train.prepare(replace(small, pruner="omp"))
    config = replace(small, pruner="omp", forget="class:1")
    shared = train.prepare(config, before=first)
    alone = train.prepare(config)
    assert_equal(state(shared.original.model), state(alone.original.model))
    assert_equal(state(shared.reference), state(alone.reference))
    assert train.shares_original(config)
    assert not train.shares_original(replace(config, forget="backdoor:0.1"))
    assert not train.shares_original(replace(config, mask_from="retain"))


def test_compare_is_what_single_runs_give(small, tmp_path):
    configs = {
        "ft": small,
        "l1": replace(small, method="l1_sparse"),
        "class": replace(small, forget="class:1"),
    }
    found = compare(configs, seeds=(0, 1), out=tmp_path)
    for label, config in configs.items():
        alone = [train.train(replace(config, seed=seed)) for seed in (0, 1)]
        assert found.of(label) == [run.value("gap") for run in alone]
    difference = found.difference("l1", baseline="ft")
    expected = sum(found.of("l1")) / 2 - sum(found.of("ft")) / 2
    assert difference.value == pytest.approx(expected)
    again = compare(configs, seeds=(0, 1), out=tmp_path)  # from the folders
    assert again.values == load_comparison(tmp_path).values == found.values
    assert load_result(next((tmp_path / "runs").glob("l1-*"))).config.out
    with pytest.raises(ValueError, match="two or more"):
        compare(configs, seeds=(0,))


def test_the_ladder_sees_a_backdoor(small, tmp_path):
    config = replace(
        small, forget="backdoor:0.2", epochs=40, width=8, lr=0.01,
        method="retrain", options={}, out=tmp_path,
    )  # fmt: skip
    train.train(config)
    found = ladder(tmp_path, references=1)
    assert found.backdoor["original"] > 0.8
    assert found.backdoor["reference"] < 0.5
    assert found.confusion is None
    assert found.rmia["original"].auc.value > found.rmia["reference"].auc.value
    assert found.below >= 0.1
    # The original knows its records, to its own loss; a retrained model learns them.
    assert found.relearn["original"] == 0
    assert found.relearn["reference"] is None or found.relearn["reference"] > 0
    with pytest.raises(ValueError, match="at least one reference"):
        ladder(tmp_path, references=0)


def test_shadow_models_tell_a_method_that_does_nothing_from_retraining(small):
    """On wrong labels, which only a model that saw them knows."""
    config = replace(
        small, forget="confusion:0,1,12", epochs=20, model="mlp", width=60, depth=1,
        weight_decay=0.0,
    )  # fmt: skip
    nothing = replace(config, options={"epochs": 0})
    found = train_shadows(nothing, 8)
    assert found.unlearned.shape == found.retrained.shape == (8, 24)
    assert found.ulira().auc.low > 0.9
    assert not found.null_ulira().leaks
    assert found.forgetting_score() < found.null_score()
    with pytest.raises(ValueError, match="at least 8"):
        train_shadows(nothing, 7)


def test_methods_share_their_shadow_models_and_records_may_be_chosen(small):
    config = replace(small, model="mlp", width=8, depth=1)
    methods = {
        "nothing": replace(config, options={"epochs": 0}),
        "l1": replace(config, method="l1_sparse", options={"epochs": 1}),
    }
    seen = train_groups(methods, 8, records=lambda loaded: loaded.train)
    alone = train_shadows(methods["l1"], 8)
    chosen = data.load(config.dataset, config.forget, config.seed).forget.positions
    found = seen["l1"].of_records(chosen)
    for group in ("unlearned", "retrained", "others"):
        assert np.array_equal(getattr(found, group), getattr(alone, group)), group
    assert np.array_equal(seen["nothing"].retrained, seen["l1"].retrained)
    assert not np.array_equal(seen["nothing"].unlearned, seen["l1"].unlearned)
    with pytest.raises(ValueError, match="all other settings are equal"):
        train_groups(methods | {"wide": replace(config, width=9)}, 8)
    with pytest.raises(ValueError, match="at least one method"):
        train_groups({}, 8)
