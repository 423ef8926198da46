"""A comparison is its runs: values, pairing, choice by validation, files."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

from apps.common.runs import RunFolder
from apps.recsys import figure, tuning
from apps.recsys.compare import BASELINES, baseline_names, compare, tune
from apps.recsys.comparison import load_comparison
from apps.recsys.config import Config
from apps.recsys.evaluation import Evaluation, evaluate
from apps.recsys.models.als import ALS
from apps.recsys.models.closed_form import EASE
from apps.recsys.splits import Dataset
from apps.recsys.train import train
from tests.apps.recsys.test_train import toy


def tastes(seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    share = np.kron(np.eye(2), np.full((20, 15), 0.6)) + 0.05
    return toy(rng.random(share.shape) < share)


@pytest.fixture(autouse=True)
def data(monkeypatch) -> Dataset:
    dataset = tastes(0)
    monkeypatch.setattr(Config, "load", lambda config: dataset)
    return dataset


TINY = Config(dim=4, layers=1, batch=20, epochs=4, every=2, lr=0.02)


def test_values_are_those_of_the_runs(data, tmp_path: Path):
    configs = {"gcn": TINY, "mf": replace(TINY, model="mf")}
    seen = []
    found = compare(
        configs, (3, 5), trials=1, out=tmp_path, watch=lambda *run: seen.append(run)
    )
    assert list(found.values) == [*BASELINES, "gcn", "mf"]
    assert found.added == BASELINES
    assert [label for label, _ in seen] == ["gcn", "gcn", "mf", "mf"]
    for label, config in configs.items():
        runs = [train(replace(config, seed=seed)) for seed in (3, 5)]
        for metric in ("ndcg@20", "recall@10", "coverage@20", "novelty@20"):
            values = [run.metrics[metric].value for run in runs]
            assert found.values[label][metric] == values
        per_user = np.mean([run.evaluation.values["ndcg@20"] for run in runs], axis=0)
        np.testing.assert_array_equal(found.users[label]["ndcg@20"], per_user)
    fixed = evaluate(EASE().fit(data.train), data, "test")
    assert found.values["ease"]["ndcg@20"] == [fixed.means["ndcg@20"]] * 2

    a, b = (np.array(found.values[label]["ndcg@20"]) for label in ("gcn", "mf"))
    interval = found.difference("gcn", baseline="mf")
    wanted = stats.ttest_rel(a, b).confidence_interval()
    np.testing.assert_allclose([interval.low, interval.high], wanted)
    a, b = (found.users[label]["ndcg@20"] for label in ("gcn", "mf"))
    kept = ~np.isnan(a)
    interval = found.difference_over_users("gcn", baseline="mf")
    wanted = stats.ttest_rel(a[kept], b[kept]).confidence_interval()
    np.testing.assert_allclose([interval.low, interval.high], wanted)
    assert interval.n == kept.sum()

    loaded = load_comparison(tmp_path)
    assert loaded.values == found.values
    assert loaded.table() == found.table() == (tmp_path / "compare.txt").read_text()
    for label, users in found.users.items():
        for metric, values in users.items():
            np.testing.assert_array_equal(loaded.users[label][metric], values)
    with pytest.raises(ValueError, match="no run is labelled"):
        found.interval("bpr")
    with pytest.raises(ValueError, match="no metric"):
        found.interval("mf", "auc")
    for form in ("png", "svg"):
        figure.draw(loaded, tmp_path / f"compare.{form}")
        assert (tmp_path / f"compare.{form}").stat().st_size > 1000
    with pytest.raises(ValueError, match="a figure ends in"):
        figure.draw(loaded, tmp_path / "compare.txt")


def test_what_is_there_is_not_repeated(tmp_path: Path, monkeypatch):
    configs = {"gcn": TINY}
    first = compare(configs, (0, 1), trials=2, out=tmp_path)
    assert len(list((tmp_path / "trials").iterdir())) == 2
    monkeypatch.setattr("apps.recsys.compare.train", stored)  # which cannot train
    again = compare(configs, (0, 1), trials=2, out=tmp_path)
    assert again.values["gcn"]["ndcg@20"] == first.values["gcn"]["ndcg@20"]
    (path, *_) = (tmp_path / "trials").iterdir()
    path.write_text("{}")
    with pytest.raises(ValueError, match="damaged"):
        compare(configs, (0, 1), trials=2, out=tmp_path)


def stored(config: Config) -> SimpleNamespace:
    """What compare needs of a finished run, from its folder."""
    folder = RunFolder(config.out)
    tensors, _ = folder.read_tensors("users.safetensors")
    ranked = tensors.pop("ranked").numpy()
    values = {name: tensor.numpy() for name, tensor in tensors.items()}
    read = folder.read_result()
    tested = Evaluation("test", ranked, values)
    return SimpleNamespace(metrics=read.metrics, evaluation=tested, cost=read.cost)


def test_trials_are_many_and_alike_for_all():
    found = compare({"mf": replace(TINY, model="mf")}, (0, 1), trials=3)
    counts = {label: len(rows) for label, rows in found.trials.items()}
    assert counts == {"popularity": 0, "item-knn": 3, "ease": 3, "mf": 3}
    for label, rows in found.trials.items():
        if rows:
            best = max(rows, key=lambda row: row["value"])
            assert found.configs[label] == best["settings"]


def test_what_was_asked_for_is_not_marked_as_added():
    found = compare({"gcn": TINY}, (0, 1), trials=1, baselines=["co-occurrence"])
    assert "co-occurrence" in found.values
    assert found.added == BASELINES


def test_the_test_part_chooses_nothing(data, monkeypatch):
    before = tune(TINY, 3, seed=0)
    other = replace(data, test=data.test[::-1])
    monkeypatch.setattr(Config, "load", lambda config: other)
    assert tune(TINY, 3, seed=0) == before
    monkeypatch.setattr(
        Config, "load",
        lambda config: replace(data, test=sp.csr_array(data.shape, dtype=np.float32)),
    )  # fmt: skip
    assert tune(TINY, 3, seed=0) == before


def test_training_on_all_takes_the_number_of_epochs_that_was_best(data):
    config = replace(TINY, epochs=30, every=3, lr=0.1, train_on="all")
    trial = train(replace(config, train_on="train"))
    tuned, rows = tune(config, 1, seed=0)
    assert tuned == replace(config, epochs=trial.epoch)
    assert rows[0]["epoch"] == trial.epoch < 30
    found = compare({"gcn": config}, (0, 1), trials=1)
    fixed = evaluate(EASE().fit(data.final().train), data, "test")
    assert found.values["ease"]["ndcg@20"][0] == fixed.means["ndcg@20"]


@pytest.mark.parametrize("model", ["lightgcn", "mf", "multvae", "neumf"])
def test_candidates(model):
    start = replace(Config(model=model), **tuning.STARTS[model])
    first, *others = tuning.candidates(start, 6, seed=0)
    assert first is start
    assert len(set(map(str, others))) == 5
    assert tuning.candidates(start, 6, seed=0) == [first, *others]
    assert tuning.candidates(start, 6, seed=1) != [first, *others]
    assert tuning.candidates(start, 1, seed=0) == [start]
    for name, values in tuning.NETWORKS[model].items():
        for config in others:
            if isinstance(values, tuning.Between):
                assert values.low <= getattr(config, name) <= values.high
            else:
                assert getattr(config, name) in values.values


def test_baselines():
    for name in tuning.BASELINES:
        start, *others = tuning.baseline_candidates(name, 4, seed=0)
        assert len(others) == (3 if tuning.BASELINES[name][1] else 0)
        assert all(type(other) is type(start) for other in others)
    names, notes = baseline_names(40_981, ["als"])
    assert names == ["popularity", "item-knn", "co-occurrence", "als"]
    assert "6.7 GB" in notes[0]
    assert baseline_names(100) == (list(BASELINES), ())


def test_als():
    """Against the normal equations, to which conjugate gradients come close."""
    pytest.importorskip("implicit")
    known = np.random.default_rng(0).random((30, 20)) < 0.3
    train = sp.csr_array(known, dtype=np.float32)
    model = ALS(dim=4, l2=0.5, alpha=2.0, epochs=50).fit(train)
    same = ALS(dim=4, l2=0.5, alpha=2.0, epochs=50).fit(train * 7)
    np.testing.assert_array_equal(model.users, same.users)
    weight = np.where(known, 3.0, 1.0)
    q = model.items.astype(np.float64)
    for user in range(30):
        left = q.T @ (weight[user][:, None] * q) + 0.5 * np.eye(4)
        expected = np.linalg.solve(left, q.T @ (weight[user] * known[user]))
        np.testing.assert_allclose(model.users[user], expected, atol=0.02)
    with pytest.raises(ValueError, match="dim must be at least 1"):
        ALS(dim=0)
    with pytest.raises(ValueError, match="l2 must be at least 0, got -1"):
        ALS(l2=-1)


def test_als_names_the_missing_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sparsekit\[recsys\]'"):
        ALS().fit(sp.csr_array(np.eye(3, dtype=np.float32)))


def test_refusals(tmp_path: Path):
    for configs, seeds, kwargs, message in (
        ({}, (0, 1), {}, "nothing to compare"),
        ({"a": TINY}, (0,), {}, "two or more different seeds"),
        ({"a": TINY}, (0, 0), {}, "two or more different seeds"),
        ({"a": TINY}, (0, 1), {"trials": 0}, "trials must be"),
        ({"a": TINY}, (0, 1), {"baseline": "b"}, "no baseline 'b'; choose one of"),
        ({"ease": TINY}, (0, 1), {}, "must differ"),
        ({"a": TINY}, (0, 1), {"baselines": ["svd"]}, "no baseline 'svd'"),
        (
            {"a": TINY, "b": replace(TINY, split="global_time")}, (0, 1), {},
            "one data set and split, but split is 'random' and 'global_time'",
        ),
        (
            {"a": TINY, "b": replace(TINY, train_on="all")}, (0, 1), {},
            "but train_on is",
        ),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            compare(configs, seeds, **kwargs)
    with pytest.raises(FileNotFoundError, match="no comparison"):
        load_comparison(tmp_path)
    with pytest.raises(ValueError, match="writes no run"):
        train(replace(TINY, out=tmp_path / "x"), part="valid")
