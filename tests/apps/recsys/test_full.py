"""The GPU run's script, on a small data set and a CPU."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.recsys import full
from apps.recsys.train import train
from sparsekit.masks import unpack

COMMON = ["--dataset", "ml100k", "--epochs", "1", "--device", "cpu"]


def test_run_goes_on_and_merge_sorts(tmp_path, capsys):
    parts = [tmp_path / "a", tmp_path / "b"]
    first = ["run", "--out", str(parts[0]), "--seeds", "0", "1", *COMMON]
    assert full.main([*first, "--recipes", "dim-8"]) == 0
    second = ["run", "--out", str(parts[1]), "--seeds", "0", *COMMON]
    assert full.main([*second, "--recipes", "dsl-0.1"]) == 0
    capsys.readouterr()
    assert full.main([*first, "--recipes", "dim-8"]) == 0
    assert capsys.readouterr().out == ""  # nothing is trained twice

    assert full.main(["merge", *map(str, parts), "--results", str(tmp_path)]) == 0
    stored = json.loads((tmp_path / "full" / f"{full.NAME}.json").read_text())
    rows = [(row["recipe"], row["seed"]) for row in stored["rows"]]
    assert rows == [("dsl-0.1", 0), ("dim-8", 0), ("dim-8", 1)]
    assert "command" not in stored["provenance"]
    sizes = stored["rows"][0]["row_sizes"]
    assert sizes["quantiles"] == [6, 6, 6, 7, 7]
    assert stored["rows"][1]["density"] == 1

    table = np.load(parts[1] / "dsl-0.1.npz")
    mask = unpack(torch.from_numpy(table["mask"]), table["shape"].tolist())
    assert int(mask.sum()) == len(table["values"]) == round(0.1 * mask.numel())
    ndcg = stored["rows"][0]["metrics"]["ndcg@20"]["value"]
    assert np.nanmean(table["ndcg@20"]) == pytest.approx(ndcg, rel=1e-5)


def test_merge_records_what_claims_ask_for(tmp_path, capsys):
    run = ["run", "--out", str(tmp_path / "a"), "--seeds", "0", "1", "2", *COMMON]
    assert full.main([*run, "--recipes", "dsl-0.2", "dim-16"]) == 0
    capsys.readouterr()
    merge = ["merge", str(tmp_path / "a"), "--results", str(tmp_path)]
    assert full.main(merge) == 0
    paths = capsys.readouterr().out.split()
    runs, ledger = (json.loads(Path(path).read_text()) for path in paths)
    found = {(r["recipe"], r["seed"]): r["metrics"]["ndcg@20"] for r in runs["rows"]}
    (metric,) = ledger["metrics"]  # the other one lacks its trainings
    assert metric == "repaired_minus_small_dense_ndcg20:gowalla"
    for seed, value in enumerate(ledger["metrics"][metric]["values"]):
        sparse, small = found["dsl-0.2", seed], found["dim-16", seed]
        assert value == sparse["value"] - small["value"]


def test_tables_in_few_bits_take_the_bytes_that_they_say(tmp_path, capsys):
    run = ["run", "--out", str(tmp_path / "a"), "--seeds", "0", *COMMON]
    assert full.main([*run, "--recipes", "dim-8", "gradual-0.1"]) == 0
    pack = ["bytes", str(tmp_path / "a"), "--results", str(tmp_path)]
    assert full.main([*pack, "--dataset", "ml100k"]) == 0
    stored = json.loads((tmp_path / "full" / f"{full.BYTES}.json").read_text())["rows"]
    found = {(row["recipe"], row["kind"]): row for row in stored}
    assert len(found) == len(full.DENSE_KINDS) + len(full.SPARSE_KINDS)
    n = 942 + 1447
    assert found["dim-8", "float16"]["bytes"] == 2 * 8 * n
    assert found["dim-8", "int2"]["bytes"] == (2 + 2) * n  # codes and a scale a row
    rows = full.read_rows(tmp_path / "a")
    trained = {r["recipe"]: r["metrics"]["ndcg@20"]["value"] for r in rows}
    for recipe, ndcg in trained.items():
        assert found[recipe, "float16"]["ndcg@20"] == pytest.approx(ndcg, abs=2e-3)


def test_recipes_for_fewer_bytes_on_published_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(full, "FINISHED", ("fewer bits", "svd int4"))
    run = ["run", "--out", str(tmp_path / "a"), "--seeds", "0", *COMMON]
    assert full.main([*run, "--recipes", "published"]) == 0
    assert full.main(["merge", str(tmp_path / "a"), "--results", str(tmp_path)]) == 0
    table = str(tmp_path / "a" / "published.npz")
    args = ["budget", *[table] * 5, "--results", str(tmp_path), "--dataset", "ml100k"]
    capsys.readouterr()
    assert full.main(args) == 0
    paths = capsys.readouterr().out.split()[-2:]
    stored, ledger = (json.loads(Path(path).read_text()) for path in paths)
    (row,) = full.read_rows(tmp_path / "a")
    trained = row["metrics"]["ndcg@20"]["value"]
    assert stored["fixed"]["dense"]["ndcg@20"] == pytest.approx([trained] * 5, abs=2e-3)
    assert stored["eighth"] == 4 * 64 * (942 + 1447) // 8
    assert stored["provenance"].keys().isdisjoint({"command"})
    (eighth,) = (b for b in stored["budgets"] if b["bytes"] == stored["eighth"])
    best = eighth["recipes"][eighth["best"]]
    found = ledger["metrics"][full.EIGHTH]
    ratio = best["ndcg@20"][0] / stored["fixed"]["dense"]["ndcg@20"][0]
    assert found["values"] == pytest.approx([ratio] * 5)
    assert found["context"] == {"recipe": eighth["best"]}
    assert max(best["nbytes"]) <= stored["eighth"]
    few = [arg for i, arg in enumerate(args) if i not in (2, 3)]
    assert full.main(few) == 2  # the claim asks for five trainings
    assert "needs 5 seeds" in capsys.readouterr().err


def test_no_training_begins_that_would_end_too_late(tmp_path, capsys, monkeypatch):
    def slow(config):
        time.sleep(0.8)  # of 1.2 s: whatever the machine, a second one is too late
        return train(config)

    monkeypatch.setattr(full, "train", slow)
    run = ["run", "--out", str(tmp_path), "--minutes", "0.02", "--seeds", "0"]
    assert full.main([*run, *COMMON, "--recipes", "dim-8", "dim-16"]) == 0
    assert len(full.read_rows(tmp_path)) == 1  # the first has no estimate yet


def test_usage_errors(tmp_path, capsys):
    run = ["run", "--out", str(tmp_path), "--dataset", "nowhere.csv"]
    assert full.main([*run, "--device", "cpu"]) == 2
    assert "nowhere.csv" in capsys.readouterr().err
