"""The commands: those of the README as they stand there, and errors with exit 2."""

import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from apps.common import images
from apps.common.toml import read_toml
from apps.data_pruning import cli
from apps.data_pruning.config import PRESETS, Config, from_file, preset
from tests.apps.readme import run_readme
from tests.apps.words import runner

run = runner(cli)


def test_the_readme_runs_as_it_stands(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert set(run_readme(cli, "data-pruning", capsys)) == set(cli.VERBS)
    out = capsys.readouterr().out
    assert "MNIST-5k: images 1x28x28, 10 classes" in out
    assert "wrong labels 350, near copies 0" in out
    assert "1750 of 3500 examples" in out
    assert Path("runs/compare/compare.svg").stat().st_size > 1000
    assert len(Path("runs/mine/subset.csv").read_text().split()) == 1 + 10


def test_score_select_train_keep_ids_together(small, tmp_path: Path) -> None:
    flags = ["--dataset", small.dataset, "--model", "mlp", "--width", 13, "--depth", 1,
             "--epochs", 3, "--batch", 17, "--score-runs", 2, "--seed", 4]  # fmt: skip
    assert run("score", *flags, "--out", tmp_path / "s", "--score", "aum") == 0
    table = pd.read_parquet(tmp_path / "s/scores.parquet")
    with np.load(small.dataset) as arrays:
        np.testing.assert_array_equal(table["label"], arrays["y"][table["id"]])
    train_ids = images.load(small.dataset, 4).train.ids.tolist()
    assert table["id"].tolist() == train_ids
    select = ["select", "--scores", tmp_path / "s/scores.parquet", "--keep", 0.25]
    with pytest.warns(UserWarning, match="'top' keeps 40 of 161"):
        assert run(*select, "--policy", "top", "--out", tmp_path / "h") == 0
    kept = pd.read_csv(tmp_path / "h/subset.csv")["id"]
    hardest = table.nlargest(len(kept), "score")["id"]
    assert set(kept) == set(hardest)
    train = ["train", *flags, "--subset", tmp_path / "h/subset.csv"]
    assert run(*train, "--budget", "epochs", "--out", tmp_path / "t") == 0
    stored = json.loads((tmp_path / "t/result.json").read_text())
    assert stored["app"] == "data_pruning"
    assert stored["dataset"] == "small"
    assert stored["cost"]["examples"] == len(kept) == 40
    assert stored["cost"]["steps"] == round(3 * 40 / 17)
    assert set(stored["metrics"]) == {"accuracy", "worst_class", "ece", "nll"}


def test_a_finished_run_is_read_back_and_never_overwritten(
    small, tmp_path: Path, capsys
) -> None:
    train = ["train", "--dataset", small.dataset, "--epochs", 2, "--batch", 17,
             "--score-epoch", 1, "--out", tmp_path]  # fmt: skip
    assert run(*train) == 0
    first = capsys.readouterr().out
    assert run(*train) == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert run(*train, "--resume") == 0
    assert capsys.readouterr().out == first
    assert run(*train, "--resume", "--lr", 0.5) == 2
    assert "was trained with lr = 0.02, not 0.5" in capsys.readouterr().err
    again = ["train", "--config", tmp_path / "config.toml", "--out", tmp_path / "b"]
    assert run(*again) == 0
    metrics = [json.loads((f / "result.json").read_text())["metrics"]
               for f in (tmp_path, tmp_path / "b")]  # fmt: skip
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "no verb 'fly'"),
        (["train", "--noise", "1.5"], "noise must be in [0, 1), got 1.5"),
        (["train", "--epochs", "0"], "epochs must be at least 1"),
        (["train", "--epocs", "3"], "epocs"),
        (["train", "--subset", "absent.csv"], "no such file: absent.csv"),
        (["train", "--budget", "hours"], "one of 'steps', 'epochs'"),
        (["train", "--dataset", "absent.npz"], "no such file: absent.npz"),
        (["data", "--dataset", "imagenet"], "mnist5k, mnist, cifar10"),
        (["score"], "--out is required"),
        (["score", "--score", "el3n", "--out", "x"], "no score 'el3n'"),
        (["score", "--score", "features", "--out", "x"], "no score of the list"),
        (["select", "--out", "x"], "--scores is required"),
        (["select", "--out", "x", "--scores", "absent.csv"], "no such file"),
        (["compare", "--strategies", "el2n:tip"], "no policy 'tip'"),
        (["compare", "--keeps", "0"], "shares in (0, 1]"),
        (["report", "--run", "absent"], "no comparison in absent"),
    ],
)
def test_usage_errors_exit_2_and_name_the_fix(
    arguments, message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = run(*arguments)
    except SystemExit as stop:  # the parser's own errors
        code = stop.code
    assert code == 2
    text = re.sub(r"[\s│]+", " ", "".join(capsys.readouterr()))
    assert message in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--policy", "tip"], "no policy 'tip'"),
        (["--policy", "top", "--options", "n_strata=3"], "n_strata"),
        (["--keep", "1.5"], "keep is a share in (0, 1]"),
        (["--per-class"], "needs a column 'label'"),
        (["--policy", "window", "--options", "drop_hardest=0.9"], "lower it"),
    ],
)
def test_mistakes_in_a_selection_are_named(tmp_path, capsys, flags, message) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("id,score\n" + "".join(f"{i},{i / 7}\n" for i in range(20)))
    out = tmp_path / "out"
    assert run("select", "--scores", path, "--out", out, *flags) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_usage_lists_verbs_scores_policies_and_presets(capsys) -> None:
    assert run() == 2
    assert run("--help") == 0
    text = capsys.readouterr().out
    for word in (*cli.VERBS, "el2n", "forgetting", "strata", "ccs =", "cnn-mnist5k"):
        assert word in text


@pytest.mark.parametrize("name", sorted(p.stem for p in PRESETS.glob("*.toml")))
@pytest.mark.parametrize("profile", ["smoke", "laptop", "full"])
def test_presets_are_the_same_with_and_without_a_command_line(name, profile) -> None:
    table = read_toml(PRESETS / f"{name}.toml")
    table.pop("profiles")
    assert set(table) <= {f.name for f in fields(Config)}
    assert preset(name, profile) == from_file(PRESETS / f"{name}.toml", profile)
