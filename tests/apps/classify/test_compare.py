"""Comparisons: intervals against scipy, baselines, continuing after an interruption."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from apps.classify import figure
from apps.classify.compare import Comparison, compare, load_comparison
from apps.classify.config import Config
from apps.classify.train import train
from tests.apps.drawings import check_drawing

TINY = Config(model="mlp", width=7, depth=1, epochs=1, method="rigl", sparsity=0.8)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare(
        {"rigl": TINY, "er": replace(TINY, options={"allocation": "er"})}, [3, 5, 8]
    )


def test_values_are_those_of_single_trainings(comparison) -> None:
    single = [train(replace(TINY, seed=seed)).accuracy for seed in (3, 5, 8)]
    assert comparison.values["rigl"]["accuracy"] == single
    assert comparison.seeds == (3, 5, 8)


def test_baselines_are_added_and_named(comparison) -> None:
    assert set(comparison.values) == {"rigl", "er", "dense", "static"}
    assert set(comparison.added) == {"dense", "static"}
    assert comparison.configs["static"]["sparsity"] == 0.8
    assert comparison.configs["dense"]["method"] == "dense"
    table = comparison.table()
    assert "static *" in table
    assert "dense *" in table
    assert "baseline, always included" in table


def test_a_given_baseline_is_not_added_twice() -> None:
    static = replace(TINY, method="static")
    result = compare({"mine": static}, range(2), baseline="mine")
    assert set(result.values) == {"mine", "dense"}
    assert (
        compare({"mine": static}, range(2), baseline="mine", add_baselines=False).added
        == ()
    )


def test_paired_interval_equals_scipys_paired_t(comparison) -> None:
    a = np.array(comparison.values["rigl"]["accuracy"])
    b = np.array(comparison.values["dense"]["accuracy"])
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    interval = comparison.difference("rigl", baseline="dense")
    assert interval.value == pytest.approx(np.mean(a - b))
    assert (interval.low, interval.high) == pytest.approx(tuple(expected))


def test_mean_interval_equals_scipys_t(comparison) -> None:
    a = comparison.values["er"]["nll"]
    expected = stats.t.interval(0.95, 2, loc=np.mean(a), scale=stats.sem(a))
    interval = comparison.interval("er", "nll")
    assert (interval.low, interval.high) == pytest.approx(expected)


def test_an_interrupted_comparison_goes_on(tmp_path: Path) -> None:
    configs = {"a b/c": TINY, "static": replace(TINY, method="static")}
    done = []

    def stop(label, result):
        done.append(result.config.out)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(configs, range(2), out=tmp_path, watch=stop)
    finished = [folder / "result.json" for folder in done]
    times = [path.stat().st_mtime_ns for path in finished]
    resumed = compare(configs, range(2), out=tmp_path)
    assert [path.stat().st_mtime_ns for path in finished] == times
    fresh = compare(configs, range(2))
    for label, measured in fresh.values.items():
        assert resumed.values[label]["accuracy"] == measured["accuracy"]
    assert load_comparison(tmp_path) == resumed
    assert (tmp_path / "compare.txt").read_text() == resumed.table()
    # other settings do not meet the old results
    other = compare({"a b/c": replace(TINY, epochs=2)}, range(2), out=tmp_path)
    assert other.values["a b/c"]["accuracy"] != resumed.values["a b/c"]["accuracy"]


def test_the_figure_shows_every_label(comparison, tmp_path: Path) -> None:
    check_drawing(partial(figure.draw, comparison), tmp_path)


@pytest.mark.parametrize(
    ("configs", "seeds", "arguments", "message"),
    [
        ({}, [0, 1], {}, "at least one config"),
        ({"a": TINY}, [0], {}, "two or more different seeds"),
        ({"a": TINY}, [1, 1], {}, "two or more different seeds"),
        ({"a": TINY}, [0, 1], {"baseline": "b"}, "no baseline 'b'; choose one of"),
    ],
)
def test_bad_comparisons_are_named(configs, seeds, arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(configs, seeds, **arguments)


def test_a_damaged_or_missing_comparison_is_named(tmp_path: Path, comparison) -> None:
    with pytest.raises(FileNotFoundError, match="run `compare --out"):
        load_comparison(tmp_path)
    (tmp_path / "compare.json").write_text(json.dumps({"seeds": [1]}))
    with pytest.raises(ValueError, match="damaged"):
        load_comparison(tmp_path)
    with pytest.raises(ValueError, match="no run is labelled 'x'"):
        comparison.interval("x")
    with pytest.raises(ValueError, match="no metric 'speed'"):
        comparison.interval("rigl", "speed")
