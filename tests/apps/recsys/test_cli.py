"""The commands: those of the README as they stand there, and errors with exit 2."""

import json
import tomllib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from apps.common.verbs import ReportConfig
from apps.recsys import cli
from apps.recsys.config import PRESETS, Config, preset
from apps.recsys.result import load_result
from tests.apps.readme import run_readme
from tests.apps.words import runner

SMOKE = ("--config", "lightgcn-ml100k", "--profile", "smoke")


run = runner(cli)


def test_the_readme_runs_as_it_stands(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ran = set(run_readme(cli, "recsys", capsys))
    assert {"data", "train", "evaluate", "compare", "report"} <= ran
    out = capsys.readouterr().out
    assert "942 users, 1,447 items" in out
    assert "ease *" in out  # a baseline that nobody asked for
    assert "lightgcn dsl" in out
    assert "tail items" in out
    assert Path("runs/compare/compare.svg").stat().st_size > 1000


def test_train_writes_a_folder_that_loads(tmp_path: Path, capsys):
    out = tmp_path / "run"
    options = ("--method", "rigl", "--options", "every", "5", "--epochs", "2")
    assert run("train", *SMOKE, "--out", out, *options) == 0
    stored = json.loads((out / "result.json").read_text())
    assert (stored["app"], stored["method"]) == ("recsys", "rigl")
    assert stored["dataset"] == "ml100k"
    assert {"recall@20", "ndcg@20", "coverage@20"} <= set(stored["metrics"])
    assert stored["cost"]["train_flops"] > 0
    config = tomllib.loads((out / "config.toml").read_text())
    assert config["options"] == {"every": 5}
    first = capsys.readouterr().out
    assert run("train", "--out", out, "--resume") == 0  # nothing else is needed
    assert capsys.readouterr().out == first
    result = load_result(out)
    assert run("evaluate", "--run", out) == 0
    shown = capsys.readouterr().out
    assert f"{result.metrics['ndcg@20'].value:.4f}" in shown
    per_user = result.evaluation.values["ndcg@20"]
    assert f"{np.nanmean(per_user):.4f}" in shown
    assert run("train", *SMOKE, "--out", out) == 2
    assert "finished run" in capsys.readouterr().err


def test_a_file_with_other_columns(tmp_path: Path, capsys):
    rng = np.random.default_rng(0)
    lines = [
        f"{u};{i};{rng.integers(1, 6)}"
        for u in range(30) for i in range(25) if rng.random() < 0.5
    ]  # fmt: skip
    path = tmp_path / "clicks.csv"
    path.write_text("\n".join(["visitor;sku;stars", *lines]) + "\n")
    source = ("--dataset", path, "--separator", ";", "--rating", "2")
    columns = ("--columns", "user=visitor", "item=sku", "rating=stars")
    assert run("data", *source, *columns) == 0
    assert "30 users, 25 items" in capsys.readouterr().out
    small = ("--model", "mf", "--dim", 4, "--batch", 50, "--epochs", 2)
    assert run("train", *source, *columns, *small) == 0
    assert run("data", *source) == 2
    assert "['visitor', 'sku', 'stars']: name it with" in capsys.readouterr().err


def test_options_reach_the_methods_that_have_them():
    config = cli.parse(
        cli.CompareConfig,
        [*SMOKE, "--methods", "dsl", "gradual", "--models", "multvae", "als",
         "--options", "gradient_steps=5", "every=10"],
        presets=PRESETS,
    )  # fmt: skip
    found = cli.compared(config)
    assert list(found) == ["lightgcn", "multvae", "lightgcn dsl", "lightgcn gradual"]
    assert found["lightgcn"].options == {}
    assert found["lightgcn dsl"].options == {"gradient_steps": 5, "every": 10}
    assert found["lightgcn gradual"].options == {"every": 10}
    assert found["multvae"].batch == 100  # where its own search begins
    assert found["lightgcn"].lr == preset("lightgcn-ml100k", "smoke").lr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "usage: sparsekit recsys"),
        (("fly",), "no verb 'fly'"),
        (("train", "--config", "lightgcn-ml1m"), "presets: dsl-gowalla"),
        (("train", "--dimm", "3"), "did you mean '--dim'"),
        (("train", "--dim", "-3"), "dim must be at least 1, got -3"),
        (("train", "--method", "riggle"), "method 'riggle' is unknown"),
        (("train", "--dataset", "nowhere.csv"), "nowhere.csv"),
        (("evaluate",), "--run is required"),
        (("evaluate", "--run", "nowhere"), "no finished run"),
        (("report", "--run", "nowhere"), "no comparison"),
        (("compare", "--models", "bert4rec"), "no model 'bert4rec'"),
        (
            ("compare", "--options", "zeta", "1"),
            "has an option 'zeta'",
        ),
        (("compare", "--seeds", "1"), "two or more different seeds"),
    ],
)
def test_errors_name_the_fix(arguments, message, capsys):
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.out + captured.err


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "run"
    assert run("train", *SMOKE, "--out", out) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sparsekit recsys train: error: cannot write {out}")
    assert "is a file, not a folder: choose another" in error


def test_presets_are_valid_in_every_profile():
    for name in ("lightgcn-ml100k", "dsl-ml100k", "lightgcn-gowalla", "dsl-gowalla"):
        for profile in ("smoke", "laptop", "full"):
            assert preset(name, profile).profile == profile


def test_every_flag_is_explained():
    for cls in (Config, cli.CompareConfig, cli.EvaluateConfig, ReportConfig):
        text = " ".join(base.__doc__ or "" for base in cls.__mro__)
        for f in fields(cls):
            assert f"{f.name}:" in text, f.name
