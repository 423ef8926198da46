"""Every verdict leads to its rule, its values and their file."""

import json
import re

import numpy as np
import pytest
from scipy import stats

from book.engine import evidence
from book.engine.runs import ROOT
from book.engine.site import read_rows
from tests.book.test_scoreboard import PLANNED, ROW


def test_a_section_has_rule_values_and_file():
    row = {**ROW, "commit": "0123456789abcdef+"}
    page = evidence.page(f"# E\n\n{evidence.MARK}\n", [row, PLANNED], {"to-prune"})
    assert page.count("(claim-") == 1  # none of a paper without a chapter
    for words in (
        "(claim-a)=\n", "`gap` \\>\N{NO-BREAK SPACE}0, in profile laptop or above, ",
        "with 5 seeds or more",
        "0.0100, 0.0200", "a CPU, 2026-01-02, commit 0123456789ab+",
        "data/stored/laptop/to-prune.json", "[to-prune](chapters/to-prune.ipynb)",
    ):  # fmt: skip
        assert words in page, words
    with pytest.raises(ValueError, match=r"evidence\.md needs one line"):
        evidence.page("# E\n", [row], set())


def test_own_and_stored_values_of_one_chapter_are_two_files():
    own = evidence.address_of({**ROW, "source": "this machine"})
    assert own == "data/this-machine/laptop/to-prune.json"
    assert evidence.address_of(ROW) == "data/stored/laptop/to-prune.json"
    assert evidence.address_of(PLANNED | {"data": None}) is None


def test_the_site_has_the_values_that_the_page_shows(mini, mini_site):
    book, _, _ = mini
    html = (mini_site / "evidence.html").read_text()
    board = (mini_site / "scoreboard.html").read_text()
    rows = {r["id"]: r for r in read_rows(book) if r["verdict"] != "planned"}
    assert set(rows) == {"tiny-mean", "tiny-first"}
    for name, row in rows.items():
        assert f'href="evidence.html#claim-{name}"' in board
        assert f'id="claim-{name}"' in html
        address = evidence.address_of(row)
        assert f'href="{address}"' in html
        stored = json.loads((mini_site / address).read_text())
        assert stored["metrics"][row["metric"]]["values"] == row["values"]
    assert (mini_site / "data/claims.toml").read_bytes() == book.claims.read_bytes()


def test_every_link_into_the_page_of_evidence_arrives(real_site):
    ids = set(
        re.findall(r'id="(claim-[^"]+)"', (real_site / "evidence.html").read_text())
    )
    board = (real_site / "scoreboard.html").read_text()
    wanted = set(re.findall(r'href="evidence\.html#(claim-[^"]+)"', board))
    assert wanted
    assert wanted <= ids


def test_the_example_of_the_page_on_intervals_is_right():
    text = " ".join((ROOT / "book" / "intervals.md").read_text("utf-8").split())
    values = [0.2, 0.3, 0.1, 0.2, 0.3]
    low, high = stats.t.interval(
        0.95, 4, loc=np.mean(values), scale=stats.sem(values)
    )  # an independent way to the same interval
    assert f"0.220 ± {(high - low) / 2:.3f}, from {low:.3f} to {high:.3f}" in text
    assert f"$s$ is {np.std(values, ddof=1):.4f}" in text
    assert f"$t_{{0.975, 4}}$ is {stats.t.ppf(0.975, 4):.3f}" in text
    assert f"With two seeds $t$ would be {stats.t.ppf(0.975, 1):.1f}" in text
