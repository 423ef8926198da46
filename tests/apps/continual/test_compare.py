"""Comparisons, figures, and the commands of the README as they stand there."""

import shlex
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from apps.common.statistics import mean_interval, paired_interval
from apps.continual import cli, figure
from apps.continual.compare import compare, load_comparison
from apps.continual.config import PRESETS, Config, preset
from apps.continual.train import train
from tests.apps.readme import run_readme


def test_compare(small, tmp_path):
    configs = {"replay": replace(small, strategy="er")}
    found = compare(configs, range(2), out=tmp_path)
    assert list(found.values) == ["finetune", "joint", "replay"]
    assert found.added == ("joint", "finetune")
    one = train(replace(small, strategy="er", seed=1))
    assert found.of("replay", "accuracy")[1] == one.accuracy
    assert found.matrices["replay"][1] == one.matrix.tolist()
    accuracies = found.of("replay", "accuracy"), found.of("finetune", "accuracy")
    assert found.interval("replay") == mean_interval(accuracies[0])
    assert found.difference("replay") == paired_interval(*accuracies)
    assert load_comparison(tmp_path) == found
    table = found.table()
    assert "finetune *" in table
    assert (tmp_path / "compare.txt").read_text() == table
    ran = []
    compare(configs, range(2), out=tmp_path, watch=lambda *a: ran.append(a[1].cost))
    times = [cost["train_seconds"] for cost in ran]
    assert times == [t for values in found.values.values() for t in values["train_seconds"]]  # fmt: skip # noqa: E501


def test_figure(small, tmp_path):
    found = compare({"er": replace(small, strategy="er")}, range(2))
    for suffix in (".png", ".svg"):
        figure.draw(found, tmp_path / f"f{suffix}")
        assert (tmp_path / f"f{suffix}").stat().st_size > 5000
    with pytest.raises(ValueError, match=r"\.png or \.svg, got f\.gif"):
        figure.draw(found, tmp_path / "f.gif")


def test_a_matrix_shows_its_numbers():
    axes = matplotlib.figure.Figure().subplots()
    a = np.arange(9).reshape(3, 3) / 10
    figure.matrix(a, axes)
    shown = [text.get_text() for text in axes.texts]
    assert shown == [str(10 * i) for i in range(9)]


def test_errors(small, tmp_path):
    with pytest.raises(ValueError, match="two or more different seeds"):
        compare({"er": small}, [3])
    with pytest.raises(ValueError, match="give at least one config"):
        compare({})
    with pytest.raises(ValueError, match="no baseline 'x'; choose one of"):
        compare({"er": small}, range(2), baseline="x")
    with pytest.raises(FileNotFoundError, match="run `compare --out"):
        load_comparison(tmp_path)
    (tmp_path / "compare.json").write_text("{}")
    with pytest.raises(ValueError, match="is damaged"):
        load_comparison(tmp_path)


def run(line: str) -> int:
    return cli.main(shlex.split(line))


def test_the_readme_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert set(run_readme(cli, "continual", capsys)) == set(cli.VERBS)
    assert Path("runs/compare/compare.svg").stat().st_size > 5000


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("forget", "no verb 'forget'"),
        ("train --strategy er --nonsense 3", "unknown argument"),
        ("train --strategy icarl", "strategy 'icarl' is unknown"),
        ("train --order 0 1 1", "order names class 1 twice"),
        ("train --online --epochs 2", "epochs must be 1"),
        ("train --online --replay-from second", "are not told of tasks"),
        ("train --online --policy herding", "which online is not told"),
        ("train --blurry 0.1 --loss-over current", "use scenario class"),
        ("train --buffer-bytes 9 --strategy er", "one example needs 792"),
        ("compare --strategies er --strategy-options alpha=1", "has an option 'alpha'"),
        ("compare --strategies ere", "strategy 'ere' is unknown"),
        ("report", "--run is required"),
        ("evaluate --run nowhere", "no finished run in nowhere"),
        ("flops --method adam", "method 'adam' is unknown; choose one of ewc"),
    ],
)
def test_usage_errors(line, words, capsys):
    assert run(line) == 2
    assert words in capsys.readouterr().err


def test_presets():
    for path in PRESETS.glob("*.toml"):
        for profile in ("smoke", "laptop", "full"):
            assert isinstance(preset(path.stem, profile), Config)
