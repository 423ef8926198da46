"""Comparisons: rows of single runs, pairing, resume, time, tables, merging."""

import json
import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from apps.data_pruning import data as sources
from apps.data_pruning import experiment, figure, metrics, scoring
from apps.data_pruning.comparison import (
    Comparison,
    Row,
    load_comparison,
    merge,
)
from apps.data_pruning.cost import break_even
from apps.data_pruning.experiment import compare
from apps.data_pruning.strategy import choose, parse
from apps.data_pruning.train import predict, train
from tests.apps.drawings import check_drawing


@pytest.fixture(scope="module")
def config(small):
    return replace(small, noise=0.1, duplicates=0.1)


@pytest.fixture(scope="module")
def comparison(config) -> Comparison:
    return compare(config, ["el2n", "ccs"], keeps=(0.3, 0.6, 1.0), seeds=[3, 5, 8])


def measured(row: Row) -> dict:
    """A row without its seconds."""
    return {k: v for k, v in asdict(row).items() if not k.endswith("seconds")}


def test_every_cell_beside_random_and_all_data(comparison) -> None:
    assert set(comparison.labels) == {"full", "random", "stratified", "el2n", "ccs"}
    # one full training, and 4 strategies x 2 shares x 2 budgets, for each of 3 seeds
    assert len(comparison.rows) == 3 * (1 + 4 * 2 * 2)
    assert len({row.key for row in comparison.rows}) == len(comparison.rows)
    assert comparison.seeds == [3, 5, 8]


def test_rows_are_those_of_single_runs(config, comparison) -> None:
    seeded = replace(config, seed=5)
    data = sources.load(seeded)
    found = scoring.measure(seeded, data, ["el2n"])
    kept = choose(parse(seeded, "el2n"), found, data, 0.3, seed=5)
    trained = train(seeded, data, kept, budget="epochs")
    test = data.splits.test
    (row,) = [r for r in comparison.rows if r.key == (5, "el2n", 0.3, "epochs")]
    expected = metrics.measure(predict(seeded, trained.model, test.x), test.y)
    assert {name: getattr(row, name) for name in expected} == expected
    assert row.n == len(kept) == 48
    assert row.steps == round(4 * 48 / 17)
    wrong = data.flipped.nonzero().squeeze(1).tolist()
    share = len(set(wrong) & set(kept.tolist())) / len(wrong)
    assert row.flipped_kept == pytest.approx(share)
    copies = (data.copy_of >= 0).nonzero().squeeze(1).tolist()
    share = len(set(copies) & set(kept.tolist())) / len(copies)
    assert row.copies_kept == pytest.approx(share)
    forward = 2 * (64 * 13 + 13 * 3)
    assert row.train_flops == 3 * forward * 17 * row.steps
    epoch = 3 * forward * 17 * round(4 * 161 / 17) / 4
    assert row.score_flops == pytest.approx(2 * epoch + 2 * 161 * forward)
    assert row.flops == row.train_flops + row.score_flops


def test_random_choices_cost_no_scores(comparison) -> None:
    free = [r for r in comparison.rows if r.label in ("random", "stratified", "full")]
    assert all(row.score_flops == row.score_seconds == 0 for row in free)
    assert all(row.score_flops > 0 for row in comparison.rows if row not in free)


def test_paired_interval_equals_scipys(comparison) -> None:
    where = ("ccs", 0.6, "steps")
    ours = list(comparison.values(*where).values())
    theirs = list(comparison.values("random", 0.6, "steps").values())
    interval = comparison.difference(*where)
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert interval.value == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert (interval.low, interval.high) == pytest.approx(tuple(expected))
    to_full = comparison.differences(*where, baseline="full")
    full = comparison.values("full", 1.0, "epochs")
    assert to_full == {s: a - full[s] for s, a in zip((3, 5, 8), ours, strict=True)}


def test_an_interrupted_comparison_goes_on_to_the_same_rows(
    config, comparison, tmp_path: Path, monkeypatch
) -> None:
    arguments = dict(strategies=["el2n", "ccs"], keeps=(0.3, 0.6), seeds=[3, 5, 8])
    done = []

    def stop(row: Row) -> None:
        done.append(row)
        if len(done) == 22:  # in the middle of the second seed
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(config, **arguments, out=tmp_path, watch=stop)
    assert len(load_comparison(tmp_path).rows) == 22
    scored = []
    original = scoring.measure
    monkeypatch.setattr(
        scoring, "measure", lambda c, *a: scored.append(c.seed) or original(c, *a)
    )
    resumed = compare(config, **arguments, out=tmp_path)
    assert scored == [8]  # the scores of the first two seeds are in the folder
    assert resumed.rows[:22] == done
    assert [measured(r) for r in resumed.rows] == [measured(r) for r in comparison.rows]
    assert load_comparison(tmp_path) == resumed
    assert (tmp_path / "compare.txt").read_text() == resumed.table()
    # more can be asked for later; what is there stays
    more = compare(config, ["aum"], keeps=(0.3,), seeds=[3], out=tmp_path)
    assert more.rows[: len(resumed.rows)] == resumed.rows
    assert len(more.rows) == len(resumed.rows) + 2
    with pytest.raises(ValueError, match=r"was measured with lr = 0\.02, not 0\.5"):
        compare(replace(config, lr=0.5), ["el2n"], seeds=[3], out=tmp_path)


def test_no_training_begins_that_would_end_too_late(
    config, comparison, monkeypatch
) -> None:
    """A clock on which everything takes a minute."""
    seconds = iter(range(0, 60_000, 60))
    monkeypatch.setattr(experiment.time, "monotonic", lambda: next(seconds))
    short = compare(config, ["el2n", "ccs"], (0.3, 0.6), [3, 5, 8], minutes=4.5)
    assert 1 <= len(short.rows) < 17
    expected = comparison.rows[: len(short.rows)]
    assert [measured(r) for r in short.rows] == [measured(r) for r in expected]


def test_the_table_names_every_run(comparison) -> None:
    text = comparison.table()
    lines = text.splitlines()
    assert lines[2].split()[:3] == ["-", "1", "full"]
    assert len([line for line in lines if "ccs" in line]) == 4
    assert len([line for line in lines if "never" in line]) == 4  # scores, equal steps
    assert "noise %" in lines[0]
    assert "copies %" in lines[0]
    assert "3 seeds" in text


def test_figures_show_every_strategy(comparison, tmp_path: Path) -> None:
    check_drawing(partial(figure.draw, comparison), tmp_path)


def test_parts_merge_into_the_whole(comparison) -> None:
    parts = [
        replace(comparison, rows=[r for r in comparison.rows if r.seed == s])
        for s in (3, 5, 8)
    ]
    assert merge(parts).rows == comparison.rows
    with pytest.raises(ValueError, match=r"two parts hold the run \(3, 'full'"):
        merge([comparison, parts[0]])
    other = replace(parts[1], settings=parts[1].settings | {"lr": 9.0})
    with pytest.raises(ValueError, match=r"measured with lr = 9\.0"):
        merge([parts[0], other])
    with pytest.raises(ValueError, match="nothing to merge"):
        merge([])


def test_the_number_of_trainings_that_pay(comparison) -> None:
    """In epochs: table of the specification."""
    assert break_even(200, 200, 0.5) == 2
    assert break_even(30, 200, 0.5) == pytest.approx(0.3)
    assert break_even(400, 200, 0.1) == pytest.approx(2.222, abs=1e-3)
    assert break_even(1, 200, 0.5, "steps") == math.inf
    assert break_even(0, 200, 0.5, "steps") == 0
    # R trainings on the subset and the scores cost as much as R on all data
    r = comparison.break_even("el2n", 0.3)
    score = comparison.interval("el2n", 0.3, "epochs", "score_flops").value
    full = comparison.interval("full", 1.0, "epochs", "train_flops").value
    assert score + r * 0.3 * full == pytest.approx(r * full)
    for bad in ((1, 1, 0), (1, 1, 1), (1, 0, 0.5), (-1, 1, 0.5)):
        with pytest.raises(ValueError, match="break_even needs"):
            break_even(*bad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": []}, "different seeds"),
        ({"seeds": [1, 1]}, "different seeds"),
        ({"keeps": [0.0]}, r"shares in \(0, 1\]"),
        ({"keeps": [50]}, r"shares in \(0, 1\]"),
        ({"budgets": ["hours"]}, "steps, epochs"),
        ({"strategies": ["el3n"]}, "no score 'el3n'"),
    ],
)
def test_bad_comparisons_are_named(config, arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(config, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("rows"), "rows"),
        (lambda c: c.update(settings=3), "tables"),
        (lambda c: c["rows"][0].update(accuracy="high"), "accuracy is 'high'"),
        (lambda c: c["rows"][0].update(seed=1.5), "seed is 1.5"),
        (lambda c: c["rows"][0].update(ece=math.inf), "ece is inf"),
        (lambda c: c["rows"][0].pop("n"), "n"),
    ],
)
def test_damaged_files_are_named(comparison, tmp_path, change, message) -> None:
    content = asdict(comparison)
    change(content)
    (tmp_path / "compare.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"compare.json is damaged.*{message}"):
        load_comparison(tmp_path)


def test_missing_cells_and_files_are_named(comparison, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run of 'aum' that keeps 0\.3"):
        comparison.values("aum", 0.3, "steps")
    with pytest.raises(ValueError, match="'speed' was not measured"):
        comparison.values("el2n", 0.3, "steps", "speed")
    with pytest.raises(FileNotFoundError, match="run `compare --out"):
        load_comparison(tmp_path)
    (tmp_path / "scores-3.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="damaged"):
        compare_into(tmp_path, comparison)


def compare_into(folder: Path, comparison: Comparison) -> None:
    from apps.data_pruning.config import Config

    config = Config(**comparison.settings)
    compare(config, ["el2n"], keeps=(0.3,), seeds=[3], out=folder)
