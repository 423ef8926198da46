"""The commands: those of the README as they stand there, and errors with exit 2."""

import json
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.classify import cli
from apps.classify.config import Config
from apps.classify.result import load_result
from tests.apps.readme import blocks, run_readme
from tests.apps.words import runner

run = runner(cli)


def test_the_readme_runs_as_it_stands(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert set(run_readme(cli, "classify", capsys)) == set(cli.VERBS)
    out = capsys.readouterr().out
    assert "LargestAtStart keeps the contract" in out

    assert "static *" in out
    assert Path("runs/compare/compare.svg").stat().st_size > 1000


def test_a_check_without_assertions_is_refused() -> None:
    command = [sys.executable, "-O", "-m", "apps.classify", "check", "--method", "set"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: python -O leaves out what the check is made of" in done.stderr


def test_train_writes_a_folder_that_loads(tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    smoke = ("--config", "mlp-mnist5k", "--profile", "smoke", "--out", out)
    assert run("train", *smoke, "--method", "rigl", "--options", "every", "20") == 0
    stored = json.loads((out / "result.json").read_text())
    assert stored["app"] == "classify"
    assert stored["method"] == "rigl"
    assert set(stored["cost"]) >= {
        "train_seconds",
        "train_flops",
        "peak_rss_mb",
        "params_total",
        "params_active",
        "bytes_on_disk",
    }
    assert len((out / "log.jsonl").read_text().splitlines()) == 2
    loaded = load_result(out)
    assert loaded.config.width == 30
    printed = re.search(r"accuracy +([0-9.]+)", capsys.readouterr().out)
    assert float(printed[1]) == pytest.approx(loaded.accuracy, abs=1e-4)
    # resume needs nothing but the folder
    assert run("train", "--resume", "--out", out) == 0
    capsys.readouterr()
    # Not a training of the defaults, because a folder's name was misspelt.
    assert run("train", "--resume", "--out", tmp_path / "nowhere") == 2
    assert "nothing to resume in" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()
    # a second training does not overwrite the first
    assert run("train", *smoke) == 2
    assert "holds a finished run" in capsys.readouterr().err
    # nor does resume with other settings pass for it
    assert run("train", "--resume", *smoke, "--method", "set") == 2
    assert "was trained with method = 'rigl', not 'set'" in capsys.readouterr().err


def test_presets_hold_the_readme_choices_and_valid_keys() -> None:
    names = {field.name for field in fields(Config)}
    chosen = {"mlp": (20, 0.01), "cnn": (10, 0.04), "lstm": (20, 0.02)}
    for model, (epochs, lr) in chosen.items():
        preset = tomllib.loads((cli.PRESETS / f"{model}-mnist5k.toml").read_text())
        profiles = preset.pop("profiles")
        assert set(preset) <= names
        assert {"smoke", "full"} <= set(profiles)
        assert (preset["model"], preset["epochs"], preset["lr"]) == (model, epochs, lr)


def test_options_reach_the_methods_that_have_them(tmp_path: Path, capsys) -> None:
    smoke = ("--config", "mlp-mnist5k", "--profile", "smoke", "--epochs", "1")
    arguments = ("--methods", "set", "oneshot", "--seeds", "2", "--out", tmp_path)
    assert run("compare", *smoke, *arguments, "--options", "every", "10") == 0
    configs = json.loads((tmp_path / "compare.json").read_text())["configs"]
    assert configs["set"]["options"] in ({"every": 10}, {"every": "10"})
    assert configs["oneshot"]["options"] == {}
    assert run("compare", *smoke, *arguments, "--options", "zeta", "10") == 2
    assert "has an option 'zeta'" in capsys.readouterr().err


def nan_file(folder: Path) -> Path:
    path = folder / "nan.npz"
    np.savez(path, x=np.full((60, 8, 8), np.nan), y=np.arange(60) % 2)
    return path


def empty_file(folder: Path) -> Path:
    path = folder / "empty.npz"
    path.touch()
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "no verb 'fly'"),
        (["train", "--method", "rigle"], "rigl"),
        (["train", "--sparsity", "1.0"], "sparsity"),
        (["train", "--epochs", "0"], "epochs"),
        (["train", "--epochs", "many"], "epochs"),
        (["train", "--epocs", "3"], "epocs"),
        (["train", "--dataset", "absent.npz"], "no such file: absent.npz"),
        (["train", "--dataset", nan_file], "NaN"),
        (["train", "--dataset", empty_file], "not an .npz file"),
        (["data", "--dataset", "imagenet"], "mnist5k, mnist, cifar10"),
        (["evaluate"], "--run is required"),
        (["evaluate", "--run", "absent"], "no finished run in absent"),
        (["report", "--run", "absent"], "no comparison in absent"),
        (["compare", "--seeds", "1"], "two or more different seeds"),
        (["compare", "--methods", "rigle"], "choose one of dense"),
        (["check", "--method", "dense"], "nothing to check"),
    ],
)
def test_usage_errors_exit_2_and_name_the_fix(
    arguments, message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [a(tmp_path) if callable(a) else a for a in arguments]
    before = set(tmp_path.iterdir())
    try:
        code = run(*given)
    except SystemExit as stop:  # the parser's own errors
        code = stop.code
    assert code == 2
    text = re.sub(r"[\s│]+", " ", "".join(capsys.readouterr()))
    assert message in text
    assert set(tmp_path.iterdir()) == before


def test_a_method_that_breaks_the_contract_is_told_why(tmp_path: Path, capsys) -> None:
    text = next(text for _, text in blocks(cli) if text.startswith("# my_method.py"))
    file = tmp_path / "one_too_many.py"
    file.write_text(text.replace("counts[name])", "counts[name] + 1)"))
    assert run("check", "--method", file) == 2
    assert "LargestAtStart breaks the contract: " in (err := capsys.readouterr().err)
    assert "wrong count, 188 of 618 weights are alive" in err


def test_usage_lists_verbs_methods_and_presets(capsys) -> None:
    assert run() == 2
    assert run("--help") == 0
    text = capsys.readouterr().out
    for word in (*cli.VERBS, "rigl", "random_search", "cnn-mnist5k"):
        assert word in text


def test_corruptions_are_the_same_at_every_evaluation(tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    run("train", "--config", "mlp-mnist5k", "--profile", "smoke", "--out", out)
    capsys.readouterr()
    tables = []
    for _ in range(2):
        torch.rand(3)
        assert run("evaluate", "--run", out, "--severities", "2") == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    assert "occlusion" in tables[0]
