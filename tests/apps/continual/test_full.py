"""The GPU run's path, small: processes, goes on, parts merge into the ledger."""

import json
from operator import sub
from pathlib import Path

import numpy as np
import pytest

from apps.continual import full

SHORT = ["--epochs", "1", "--device", "cpu", "--precision", "float32", "--width", "2"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> str:
    """Ten classes of 8x8 colour images, 35 training examples each."""
    generator = np.random.default_rng(3)
    y = np.arange(500) % 10
    pattern = generator.normal(size=(10, 3, 8, 8))
    x = 128 + 40 * (pattern[y] + generator.normal(size=(500, 3, 8, 8)))
    path = tmp_path_factory.mktemp("full") / "images.npz"
    np.savez(path, x=np.clip(x, 0, 255).astype(np.uint8), y=y)
    return str(path)


def run(images: str, out: Path, *more: str) -> int:
    return full.main(["run", *SHORT, "--dataset", images, "--out", str(out), *more])


def test_parts_merge_into_measurements_of_claims(
    images, tmp_path: Path, capsys, monkeypatch
) -> None:
    shorter = {full.SHORT: 1, full.LONG: 4}
    metrics = {m: (*what[:5], shorter[what[5]]) for m, what in full.METRICS.items()}
    monkeypatch.setattr(full, "METRICS", metrics)
    a, b = tmp_path / "a", tmp_path / "b"
    small = [
        "--recipes",
        "derpp",
        "sparcl-0.95",
        "--minutes",
        "2",
        "--commit",
        "c0ffee",
    ]
    assert run(images, a, *small, "--seeds", "0", "--workers", "1") == 0
    more = ["--seeds", "0", "1", "2", "--workers", "2", "--done", str(a)]
    assert run(images, b, *small, *more) == 0
    done = {full.key(row) for row in full.read_rows(a)}
    assert len(done) == 4
    assert not done & {full.key(row) for row in full.read_rows(b)}

    results = tmp_path / "results"
    assert full.main(["merge", str(a), str(b), "--results", str(results)]) == 0
    stored = json.loads((results / "full/sparcl.json").read_text())
    both = {"sparcl-0.95", "derpp"}
    assert set(stored["metrics"]) == {
        metric for metric, what in full.METRICS.items()
        if {*what[2:4]} == both and what[5] == 1
    }  # fmt: skip
    assert stored["provenance"]["commit"] == "c0ffee"
    rows = json.loads((results / "full/sparcl-runs.json").read_text())["rows"]
    assert len(rows) == 3 * 4
    found = {full.key(row): row for row in rows}
    by_hand = [
        sub(*(found[name, 500, seed, 1]["metrics"]["accuracy"] for name in pair))
        for pair in [("sparcl-0.95", "derpp")]
        for seed in range(3)
    ]
    entry = stored["metrics"]["sparcl_minus_dense_accuracy:cifar10_95"]
    assert entry["values"] == by_hand

    # A longer schedule is another run of the same recipe, seed and buffer.
    for row in found.values():
        row["settings"]["epochs"] = 4
        row["metrics"]["accuracy"] += 0.25 * (row["recipe"] == "derpp")
    full.write_runs(tmp_path / "c", {"rows": list(found.values())})
    parts = [str(tmp_path / part) for part in "abc"]
    assert full.main(["merge", *parts, "--results", str(results)]) == 0
    metrics = json.loads((results / "full/sparcl.json").read_text())["metrics"]
    assert metrics["sparcl_minus_dense_accuracy:cifar10_95"]["values"] == by_hand
    gained = metrics["sparcl_gap_gained:cifar10_95"]
    assert gained["seeds"] == [0, 1, 2]
    assert gained["values"] == pytest.approx([-0.25] * 3)
    rows = json.loads((results / "full/sparcl-runs.json").read_text())["rows"]
    assert [row["settings"]["epochs"] for row in rows] == [1] * 12 + [4] * 12


def test_nothing_begins_that_would_not_end(images, tmp_path: Path, capsys):
    flags = ["--recipes", "derpp", "--seeds", "0", "--workers", "1"]
    assert run(images, tmp_path, *flags, "--minutes", "0") == 0
    assert not (tmp_path / "runs.json").exists()


def test_parts_of_other_settings_do_not_merge(images, tmp_path: Path, capsys):
    flags = ["--recipes", "finetune", "--seeds", "0", "--workers", "1"]
    assert run(images, tmp_path / "a", *flags) == 0
    row = full.read_rows(tmp_path / "a")[0]
    row["settings"]["train_size"] = 7
    full.write_runs(tmp_path / "b", {"rows": [row | {"seed": 1}]})
    parts = [str(tmp_path / part) for part in "ab"]
    assert full.main(["merge", *parts, "--results", str(tmp_path)]) == 2
    assert "differ in train_size" in capsys.readouterr().err


def test_a_task_has_five_stages_whatever_its_epochs() -> None:
    for epochs, stage in ((1, 1), (5, 1), (20, 4), (50, 10)):
        config = full.recipe("sparcl-0.9", 500, epochs)
        assert (config.epochs, config.strategy_options["stage"]) == (epochs, stage)
        for name in ("derpp", "rigl-0.95"):
            assert full.recipe(name, 500, epochs).epochs == epochs


@pytest.mark.parametrize(("name", "buffer"), full.ORDER)
def test_recipes_differ_in_what_their_names_say(name: str, buffer: int) -> None:
    config = full.recipe(name, buffer)
    method, _, sparsity = name.partition("-")
    dense = full.recipe("derpp", buffer)
    assert config.lr == dense.lr == 0.03
    assert config.epochs == dense.epochs
    assert config.buffer == max(buffer, 1)
    if sparsity:
        assert config.sparsity == float(sparsity)
        ours = method in ("sparcl", "tdm", "tdm+ddr", "tdm+dgm")
        assert config.method == ("tdm" if ours else method)
        assert config.keep_dense == full.recipe("sparcl-0.9", 500).keep_dense
    else:
        assert config.method == "dense"
        assert config.loss_over == ("current" if name == "derpp" else "all")


def test_a_study_is_paired_by_seed(tmp_path: Path) -> None:
    def row(arm: str, seed: int, accuracy: float, **more: object) -> dict:
        return {"arm": arm, "seed": seed, "accuracy": accuracy, "width": 32} | more

    rows = [
        row("dense", 0, 0.9), row("dense", 1, 0.8), row("sparcl first", 1, 0.7),
        row("sparcl first", 0, 0.1, part="validation"),
        row("sparcl first", 0, 0.2, width=16), row("sparcl first", 0, 0.3, epochs=10),
        row("sparcl first", 2, 0.4),
    ]  # fmt: skip
    path = tmp_path / "study.json"
    path.write_text(json.dumps({"rows": rows}))
    assert full.of_study(path, "sparcl first") == {1: pytest.approx(-0.1)}
