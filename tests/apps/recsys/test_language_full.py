"""The full run's script, on two splits and a CPU."""

import json

import numpy as np
import pytest

from apps.common.claims import load_book
from apps.recsys import ablation, language_full
from apps.recsys.ablation import VARIANTS
from apps.recsys.config import Source, preset
from apps.recsys.data import load
from apps.recsys.ingredients import Ingredients
from apps.recsys.preparation import make
from apps.recsys.train import train

NAMES = ["lightgcn", "edges base", "noisy, easy kept", "noisy, hard kept"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    make(folder, Source(), [3, 4], texts=False, store=folder / "r.db", say=lambda _: 0)
    return folder


def running(made, out, names, splits=(3, 5)):
    return [
        "run", "--made", str(made), "--out", str(out), "--device", "cpu", "--epochs",
        "1", "--splits", *map(str, splits), "--names", *names,
    ]  # fmt: skip


def rows_in(folder):
    found = [json.loads(path.read_text())["row"] for path in folder.glob("rows-*.json")]
    return {(row["split"], row["name"]): row for row in found}


def test_processes_share_the_jobs_go_on_and_merge(made, tmp_path, capsys):
    run = running(made, tmp_path, NAMES[:2])
    busy = tmp_path / "rows-3-lightgcn.lock"
    with language_full.alone(busy) as first, language_full.alone(busy) as second:
        assert first
        assert not second
        assert language_full.main(run) == 0  # leaves this one to us
    assert set(rows_in(tmp_path)) == {(3, "edges base"), (4, "lightgcn"),
                                      (4, "edges base")}  # fmt: skip
    assert capsys.readouterr().out.count("valid") == 3
    assert language_full.main(run) == 0
    assert capsys.readouterr().out.count("valid") == 1
    assert language_full.main(run) == 0
    assert capsys.readouterr().out == ""  # nothing is trained twice
    assert set(rows_in(tmp_path)) == {(s, n) for s in (3, 4) for n in NAMES[:2]}

    book = tmp_path / "results"
    merge = ["merge", str(tmp_path), "--made", str(made), "--results", str(book)]
    capsys.readouterr()
    assert language_full.main(merge) == 0
    shown = capsys.readouterr().out
    assert "base_edges_minus_lightgcn_ndcg20: on 2 splits, too few" in shown
    assert not (book / "full" / f"{language_full.CHAPTER}.json").exists()
    stored = json.loads((book / "full" / f"{language_full.TABLE}.json").read_text())
    keys = [(row["name"], row["split"]) for row in stored["rows"]]
    assert keys == [(n, s) for n in NAMES[:2] for s in (3, 4)]
    assert "command" not in stored["provenance"]
    by_hand = load("ml100k", seed=4)
    right, wrong = (
        np.mean([by_hand.valid[[u], [i]][0] for u, i in enumerate(chosen)])
        for chosen in Ingredients.load(made, 4).edges["base"]
    )
    (row,) = (
        r
        for r in stored["choices"]
        if (r["split"], r["chooser"], r["who"]) == (4, "base", "all")
    )
    assert (row["right"], row["wrong"]) == pytest.approx((right, wrong))
    assert right > wrong > 0
    assert row["users"] == 942


def test_a_row_is_what_training_gives(made, tmp_path):
    assert language_full.main(running(made, tmp_path, ["edges base"], (3, 4))) == 0
    row = rows_in(tmp_path)[3, "edges base"]
    mixed = Ingredients.load(made, 3)
    changes = {"epochs": 1, "every": 1}
    trials = language_full.configs("edges base", 3, mixed, tmp_path / "x", changes)
    result = train(trials[row["trial"]])
    assert row["metrics"]["ndcg@20"] == result.metrics["ndcg@20"].value
    assert row["valid"][row["trial"]] == max(row["valid"])
    tail = ablation.sliced(result.evaluation, result.data, mixed.cold)["tail"]
    assert row["metrics"]["tail"] == tail


def test_recommenders_in_equal_bytes(made, tmp_path):
    """Packed tables rank as the network does, where nothing was rounded."""
    names = language_full.BUDGET[:2]
    assert language_full.main(running(made, tmp_path, names, (3, 4))) == 0
    found = rows_in(tmp_path)
    assert {name for _, name in found} == set(names)
    for row in found.values():
        assert row["bytes"] == 4 * 16 * (942 + 1447)
        assert row["metrics"]["ndcg@20"] == pytest.approx(row["unpacked"], abs=1e-6)


def test_every_claim_has_variants_that_the_run_trains(made):
    book = load_book()
    asked = {
        claim.metric
        for claim in (*book.claims, *book.findings)
        if claim.chapter == language_full.CHAPTER
    }
    assert set(language_full.METRICS) == asked
    known = {"lightgcn", *VARIANTS, *language_full.BUDGET}
    assert known >= language_full.FIRST
    # Without a file of the language model's, nothing that needs it is begun.
    found = language_full.jobs(made, [3, 4])
    assert len(set(found)) == len(found)
    assert {n for _, n in found} == {n for n in known if not ablation.needs_lm(n)}
    assert [s for s, n in found if n == "edges genres"] == [3, 4]
    first = [name in language_full.FIRST for _, name in found]
    assert first == sorted(first, reverse=True)


def test_the_plain_settings_are_the_preset():
    changes = {"seed": 0, "split_seed": 0, "out": None}
    assert preset("lightgcn-ml100k", **changes) == language_full.PLAIN


def test_differences_are_of_the_same_split():
    rows = [
        {"name": name, "split": split, "metrics": {"ndcg@20": value}}
        for name, split, value in (
            ("a", 1, 0.5), ("a", 2, 0.7), ("a", 3, 0.9), ("b", 2, 0.4), ("b", 1, 0.1),
        )
    ]  # fmt: skip
    found = language_full.differences(rows, "a", "b", "ndcg@20")
    assert found == {1: pytest.approx(0.4), 2: pytest.approx(0.3)}


def test_usage_errors(made, tmp_path, capsys):
    assert language_full.main(running(tmp_path / "no", tmp_path, NAMES)) == 2
    assert "make the ingredients" in capsys.readouterr().err
    made = ["--made", str(made), "--results", str(tmp_path)]
    merge = ["merge", str(tmp_path / "empty"), *made]
    assert language_full.main(merge) == 2
    assert "no rows" in capsys.readouterr().err
