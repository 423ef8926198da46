"""Benchmarks run and write what they measured; how fast is not a test's business."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.recsys.evaluation import evaluate
from apps.recsys.interactions import Interactions
from apps.recsys.splits import random_ratio
from benchmarks import reports, scale, unlearning_settings
from tests.examples import assert_examples_hold, modules_with_examples

ROOT = Path(__file__).parents[1]
FILES = ("density", "gpu_sparse", "inference", "mlp_training", "per_sample_norms")


def made(
    folder: Path, name: str, *arguments: str, report: str = "", **environment: str
) -> tuple[Any, str]:
    """What a benchmark writes: its numbers, and the page for people."""
    path = folder / f"{report or name}.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    command += ["--out", str(path if name in FILES else folder)]
    env = {**os.environ, **environment}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=env)
    return json.loads(path.read_text()), path.with_suffix(".md").read_text()


@pytest.mark.parametrize("name", modules_with_examples("benchmarks"))
def test_examples(name):
    assert_examples_hold(name)


def test_streamed_scores(tmp_path):
    rows, page = made(tmp_path, "streamed_scores", "--sizes", "2000", "5000")
    assert [row["examples"] for row in rows] == [2000, 5000]
    assert "| 5,000 |" in page


def test_density(tmp_path):
    """A training an arm; the same masks give the same accuracy on either engine."""
    report, page = made(tmp_path, "density", "--quick")
    weights = {row["arm"]: row["weights"] for row in report["trainings"]}
    assert set(weights) == {"dense", "bfloat16", "rigl", "static", "masked", "narrow"}
    assert weights["dense"] == weights["bfloat16"]
    assert weights["rigl"] == weights["static"] == weights["masked"]
    assert weights["narrow"] <= weights["rigl"] < 1.05 * weights["narrow"]
    accuracy = {row["arm"]: row["accuracy"]["value"] for row in report["rows"]}
    assert abs(accuracy["rigl"] - accuracy["masked"]) < 0.02  # the same up to rounding
    assert abs(accuracy["bfloat16"] - accuracy["dense"]) < 0.1
    assert "| rigl | 10% | 1 |" in page


def test_per_sample_norms(tmp_path):
    """Methods agree with a loop in float64, and numba and pandas are not needed."""
    (tmp_path / "numba.py").write_text("raise ImportError('not on this machine')\n")
    (tmp_path / "pandas.py").write_text("raise ImportError('not on this machine')\n")
    report, page = made(
        tmp_path / "a", "per_sample_norms", "--batch", "3", "--rounds", "1",
        "--network", "vit-w96-d4", PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    rows = report["networks"]["vit-w96-d4"]
    assert {"plain", "ours", "vmap", "loop"} <= set(rows)
    assert max(row["error"] for row in rows.values()) < 1e-4
    assert report["provenance"]["device"]
    assert "| ours |" in page


def test_structured(tmp_path):
    report, page = made(tmp_path, "structured", "--quick")
    cases = report["cases"]
    kinds = [case["case"].split()[0] for case in cases]
    assert kinds == ["layer"] * 2 + ["network"] * 2
    for case in cases:
        for form in case["forms"].values():
            assert form["error"] < 1e-5
            assert form["speedup"] > 0
    assert cases[2]["forms"]["25% of the units"]["density"] == 0.25
    assert "| 2:4 shared | 50.0% |" in page


def test_gpu_sparse_without_a_gpu(tmp_path):
    report, page = made(tmp_path, "gpu_sparse", "--device", "cpu", "--quick")
    cases = report["cases"]
    assert len(cases) == 4
    assert "NVIDIA GPUs only" in cases[0]["failures"]["2:4 cuSPARSELt"]
    for form in cases[1]["forms"].values():  # float32
        assert form["error"] < 1e-5
    assert "| blocks 128, 30% |" in page


def test_conv_layers(tmp_path):
    report, page = made(tmp_path, "conv_layers", "--quick")
    (row,) = report["rows"]
    assert row["error"] < 1e-5
    for product in ("forward", "input gradient", "weight gradient"):
        assert row[product]["speedup"] > 0
    assert "| 16→16, 8x8, 3x3 /1 |" in page


def test_continual_training(tmp_path):
    report, page = made(tmp_path, "continual_training", "--quick")
    row = report["widths"]["4"]["sparse"]["0.9"]
    assert row["speedup"] > 0
    whole, later = row["peak_bytes"]
    assert 0 < later <= whole
    assert sum(row["parts"].values()) == pytest.approx(row["seconds"], rel=0.5)
    assert "## Width 4" in page


def test_resnet_training(tmp_path):
    report, page = made(tmp_path, "resnet_training", "--quick")
    row = report["widths"]["4"]["sparse"]["0.1"]
    assert row["speedup"] > 0
    assert sum(row["parts"].values()) == pytest.approx(1)
    assert all(rate > 0 for rate in row["gflops"].values())
    assert row["errors"]["sparse"] < 2 * row["errors"]["dense"] + 1e-5
    assert "## Width 4" in page


def test_mlp_training(tmp_path):
    report, page = made(tmp_path, "mlp_training", "--quick")
    (row,) = report["steps"]
    assert row["error"] < 1e-5
    assert 0.2 < row["state"] < 0.21  # 24 bytes a value, of 12 a dense weight, at 90 %
    assert {"masked", "mkl", "ours"} == set(row["speedup"])
    assert {"dense", "mkl", "ours"} <= set(report["products"][1]["forward"])
    assert "| 256 | 90% |" in page


def test_recsys_load(tmp_path):
    rows, _ = made(tmp_path, "recsys_load", "--rows", "3000")
    assert [row["file"] for row in rows] == ["csv", "parquet"]
    assert rows[0]["rows"] == rows[1]["rows"] == 3000
    assert rows[0]["pairs"] == rows[1]["pairs"] < 3000


def test_recsys_ranking(tmp_path):
    """All methods give the same lists, up to rounding."""
    report, _ = made(tmp_path, "recsys_ranking", "--quick")
    rows = report["sizes"]["small"]
    assert {"ours", "argpartition", "torch.topk"} <= {row["method"] for row in rows}
    assert min(row["same lists"] for row in rows) > 0.95


def test_a_peer_finds_the_same_metrics(tmp_path):
    """implicit's own evaluation of the same vectors, in a process of its own."""
    pytest.importorskip("implicit")
    from benchmarks.recsys_peers import K, equalities, write

    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(97), 30).astype(np.int32)
    items = np.concatenate([rng.permutation(211)[:30] for _ in range(97)])
    ids = [np.arange(n).astype(str).astype(object) for n in (97, 211)]
    log = Interactions("made up", users, items.astype(np.int32), *ids)
    case = write(random_ratio(log, seed=0), 8, tmp_path)
    command = [sys.executable, "-m", "benchmarks.peers.implicit", str(tmp_path)]
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    answer = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, env=env,
        input=json.dumps(["evaluate", K]) + "\n",
    )  # fmt: skip
    theirs = json.loads(answer.stdout)["result"]
    ours = evaluate(case.model, case.data, "test", [K])
    for row in equalities(case, {"ours": ours, "implicit": theirs}):
        assert row["theirs"] == pytest.approx(row["ours"], abs=1e-6), row["metric"]


def test_inference(tmp_path):
    """Ours and the dense engines run, and agree."""
    report, page = made(tmp_path, "inference", "--quick")
    (result,) = report["networks"].values()
    assert {"torch", "onnxruntime"} <= set(result["dense_ms"])
    assert set(result["sparse"]) == {"0.75", "0.9", "0.95", "0.98"}
    for row in result["sparse"].values():
        assert row["error"] < 1e-5
        assert row["megabytes"] < row["dense_megabytes"] / 2
    assert "| 98% |" in page


def test_recsys_service(tmp_path):
    """A real service answers a real client, without an error."""
    report, page = made(tmp_path, "recsys_service", "--quick")
    rows = report["rows"]
    assert {row["table"] for row in rows} == {"float32", "int8"}
    assert {row["question"] for row in rows} >= {"known user", "new user"}
    assert all(row["failed"] == 0 < row["p50"] <= row["p99"] for row in rows)
    assert "| int8 | known user |" in page


def test_recsys_fold_in(tmp_path):
    """Users and items that are added are far better than chance and popularity."""
    pytest.importorskip("implicit")
    report, page = made(
        tmp_path, "recsys_fold_in", "--quick", "--models", "als",
        report="recsys_fold_in_ml100k",
    )  # fmt: skip
    value = {
        (row["model"], row["way"]): row["ndcg@20"]["value"]
        for row in report["new users"] + report["new items"]
    }
    folded = value["als", "folded"]
    assert folded > 1.5 * value["popularity", "folded"] > 5 * value["random", "folded"]
    updated = value["als", "updated, all items"]
    assert updated > 1.5 * value["popularity", "trained, all items"]
    assert "| als | folded |" in page


def test_recsys_budget(tmp_path):
    """Every recipe fits its budgets, files are measured, the target is judged."""
    report, page = made(tmp_path, "recsys_budget", "--quick", OMP_NUM_THREADS="1")
    (curve,), (target,) = report["curves"], report["target"]
    assert len(curve["budgets"]) == 2
    for entry in curve["budgets"]:
        assert entry["best"] in entry["recipes"]
        for point in entry["recipes"].values():
            assert max(point["nbytes"]) <= entry["bytes"]
            assert point["file"] > point["nbytes"][0]
            assert point["milliseconds"] > 0
    assert target["bytes"] == round(curve["bytes_dense"] / 8)
    assert target["low"] <= target["value"] <= target["high"]
    assert "% of dense" in page


def test_recsys_sparse_training(tmp_path):
    """Masked and values mode make the same masks; values mode keeps less."""
    report, _ = made(tmp_path, "recsys_sparse_training", "--quick")
    state = {(r["model"], r["engine"]): r["state MB"] for r in report["rows"]}
    assert state["lightgcn", "values"] < state["lightgcn", "dense"] / 3
    assert state["lightgcn", "values"] < state["lightgcn", "masked"] / 5


def test_scale():
    point = reports.fresh("scale", "--one", "ranking", 20_000)
    assert point["bytes"] == 20_000 * scale.DIM * 4
    assert point["seconds"] > 0
    points = [{"x": x, "seconds": 3e-6 * x**2, "bytes": 70} for x in (10, 40, 90)]
    assert scale.growth(points, "seconds") == pytest.approx(2)
    assert scale.growth(points, "bytes") == pytest.approx(0, abs=1e-9)
    report = {name: points for name in scale.SERIES}
    assert "| ranking | items | 90 | one user's best 20 | 24 ms | 2.00 | 70 B |" in (
        scale.markdown(report)
    )
    lines = scale.beyond(report).splitlines()
    assert "| vectors of 64 numbers, float32 | 28 GB |  |" in lines  # 1.1e8 x 64 x 4


@pytest.mark.parametrize("name", ["replay", "joint training"])
def test_what_a_stream_keeps_is_counted(name):
    seconds, kept = scale.SERIES[name][3](2)
    assert seconds > 0
    examples = 1797 * 0.7  # of a task to train on
    assert kept == pytest.approx(
        200 * (64 + 8) if name == "replay" else 2 * examples * 64, rel=0.01
    )


def test_unlearning_settings_by_both_rules():
    """The smallest gap; and the smallest where no seed loses more than RA allows."""
    grid = unlearning_settings.GRIDS["finetune"][1]
    gaps = [0.5, 0.4, 0.3, 0.2, 0.1, 0.6, 0.7, 0.8]
    lost = [[0, 0], [0, 0], [0.04, 0.05], [0, 0.06], [0.3, 0.3], *[[0.5, 0.5]] * 3]

    class Runs:
        def of(self, key, metric):
            i = grid.index(key[3])
            values = {"gap": [gaps[i]] * 2, "original RA": [1.0, 1.0]}
            return values.get(metric, [1.0 - x for x in lost[i]])

    chosen = unlearning_settings.choose(Runs(), ("class", "dense", "finetune"))
    assert chosen["smallest"]["value"] == grid[4]
    assert chosen["usable"]["value"] == grid[2]
    assert not chosen["usable"]["at_the_end"]
