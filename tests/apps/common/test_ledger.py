"""Verdicts follow from rule and interval; measurements are found, judged, validated."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from apps.common import ledger
from apps.common.claims import CLAIMS as CLAIMS_FILE
from apps.common.claims import Claim, parse_rule
from apps.common.ledger import Ledger, verdict
from apps.common.scoreboard import findings, scoreboard

RULES = ["> 0", ">= 0.5", "< 0.01", "<= -2", "in [0.9, 1.1]", "in [0, 0]"]
CLAIMS = """
[[paper]]
index = 9
title = "Random"
claim = "Random is enough."
part = "I"

[[paper]]
index = 2
title = "Search"
claim = "Search is better."
part = "II"

[[claim]]
id = "9"
paper = 9
statement = "Random gains."
metric = "gain"
rule = "> 0"
chapter = "random"

[[claim]]
id = "9-full"
paper = 9
statement = "Random gains at scale."
metric = "gain-at-scale"
rule = "> 0"
chapter = "random"
min_profile = "full"
min_seeds = 2

[[finding]]
id = "other"
statement = "Another chapter."
metric = "other"
rule = "< 1"
chapter = "other"
reference = "Somebody, 2020"
"""


@pytest.fixture
def book(tmp_path: Path, monkeypatch) -> Path:
    """A book's folder with claims and one chapter; results go beside it."""
    folder = tmp_path / "book"
    (folder / "chapters").mkdir(parents=True)
    (folder / "chapters" / "random.md").touch()
    (folder / "claims.toml").write_text(CLAIMS)
    monkeypatch.setenv("SPARSEKIT_CLAIMS", str(folder / "claims.toml"))
    monkeypatch.setenv("SPARSEKIT_RESULTS", str(tmp_path / "results"))
    return folder


def store(folder: Path, profile: str, values, metric="gain", **provenance) -> Path:
    """A file of measurements, written by hand."""
    path = folder / profile / "random.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"metrics": {metric: {"values": values}}, "provenance": provenance}
    path.write_text(json.dumps(content))
    return path


def row(id: str = "9") -> dict:
    return next(row for row in scoreboard() if row["id"] == id)


def claim(rule: str, **change) -> Claim:
    return Claim("c", 1, "s", "m", rule, "chapter", **change)


@given(
    st.sampled_from(RULES),
    st.lists(st.integers(-3000, 3000).map(lambda n: n / 1000), min_size=5, max_size=9),
)
def test_a_verdict_is_rule_and_t_interval(rule: str, values: list[float]) -> None:
    found = verdict(claim(rule), values, "laptop")
    mean, error = np.mean(values), stats.sem(values)
    low = high = values[0]
    if len(set(values)) > 1:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error)
    inside = np.linspace(low, high, 101)
    parsed = parse_rule(rule)
    allowed = (inside > parsed.low) & (inside < parsed.high)
    if not parsed.open:
        allowed = (inside >= parsed.low) & (inside <= parsed.high)
    if found.verdict == "holds":
        assert allowed.all()
    elif found.verdict == "does not hold":
        assert not allowed.any()
    else:
        assert found.verdict == "inconclusive"
        # The border is within, or so near that rounding hides it.
        border = [b for b in (parsed.low, parsed.high) if math.isfinite(b)]
        assert any(low - 1e-9 <= b <= high + 1e-9 for b in border)
        assert "reaches across the rule's border" in found.why
    assert (found.why is None) == (found.verdict != "inconclusive")
    assert found.interval.value == pytest.approx(mean)
    assert found.interval.n == len(values)


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        ("> 0", 0.0, "does not hold"), (">= 0", 0.0, "holds"),
        ("< 0", 0.0, "does not hold"), ("<= 0", 0.0, "holds"),
        ("in [1, 2]", 1.0, "holds"), ("in [1, 2]", 2.0, "holds"),
        ("in [1, 2]", math.nextafter(2, 3), "does not hold"),
        ("> 0", 5e-324, "holds"), ("< 0.01", math.nextafter(0.01, 0), "holds"),
    ],
)  # fmt: skip
def test_at_the_border_equal_values_decide(rule, value, expected) -> None:
    assert verdict(claim(rule), [value] * 5, "laptop").verdict == expected


def test_too_few_seeds_or_too_small_a_profile_decide_nothing() -> None:
    values = [1.0, 1.1, 1.2, 1.1]
    few = verdict(claim("> 0"), values, "full")
    assert (few.verdict, few.why) == ("inconclusive", "4 seeds, 5 are needed")
    assert few.interval is not None
    assert verdict(claim("> 0", min_seeds=4), values, "full").verdict == "holds"
    low = verdict(claim("> 0", min_seeds=4), values, "smoke")
    assert low.why == "measured in profile smoke, laptop is needed"
    full = claim("> 0", min_seeds=4, min_profile="full")
    assert verdict(full, values, "laptop").verdict == "inconclusive"
    smoke = claim("> 0", min_seeds=4, min_profile="smoke")
    assert verdict(smoke, values, "smoke").verdict == "holds"
    one = verdict(claim("> 0", min_seeds=1), [1.0], "laptop")
    assert (one.verdict, one.why) == ("inconclusive", "one value has no interval")
    assert verdict(claim("> 0"), [1.0]).why == "1 seed, 5 are needed"
    none = verdict(claim("> 0"), [])
    assert (none.verdict, none.interval) == ("inconclusive", None)
    with pytest.raises(ValueError, match="NaN or infinity"):
        verdict(claim("> 0"), [1.0, math.nan])


def test_what_is_recorded_decides(book: Path) -> None:
    assert row()["why"] == "no measurement yet: make book"
    written = Ledger("random", "laptop")
    written.record("gain", [0.2, 0.3, 0.1, 0.2, 0.3], seeds=range(5), width=64)
    written.note("seconds", 3.5)
    found = row()
    low, high = stats.t.interval(
        0.95, 4, loc=0.22, scale=stats.sem([2, 3, 1, 2, 3]) / 10
    )
    assert found["verdict"] == "holds"
    assert found["value"] == pytest.approx(0.22)
    assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))
    assert (found["seeds"], found["profile"], found["source"]) == (
        5, "laptop", "this machine",
    )  # fmt: skip
    assert row("9-full")["value"] is None
    content = json.loads(written.path.read_text())
    assert content["metrics"]["gain"]["seeds"] == [0, 1, 2, 3, 4]
    assert content["metrics"]["gain"]["context"] == {"width": 64}
    assert content["notes"] == {"seconds": {"values": [3.5]}}
    assert content["provenance"]["profile"] == "laptop"
    assert "command" not in content["provenance"]  # it may hold paths of this machine
    written.record("gain", [-0.2, -0.3, -0.1, -0.2, -0.3])
    assert row()["verdict"] == "does not hold"
    # A new run starts anew: nothing of the earlier one remains.
    Ledger("random", "laptop").note("seconds", [1, 2])
    assert row()["why"] == "no measurement yet: make book"


def test_planned_papers_and_findings(book: Path) -> None:
    rows = scoreboard()
    assert [r["id"] for r in rows] == ["2", "9", "9-full"]
    planned = rows[0]
    assert (planned["verdict"], planned["statement"]) == (
        "planned",
        "Search is better.",
    )
    assert (planned["metric"], planned["chapter"], planned["seeds"]) == (None, None, 0)
    (other,) = findings()
    assert (other["paper"], other["reference"]) == (None, "Somebody, 2020")
    assert other["why"] == "the chapter other is not written yet"
    (book / "chapters" / "random.md").unlink()
    assert [(r["id"], r["verdict"]) for r in scoreboard()] == [
        ("2", "planned"), ("9", "planned"),
    ]  # fmt: skip


def test_own_before_stored_high_before_low(book: Path, tmp_path: Path) -> None:
    own, stored = tmp_path / "results", book / "results"
    found = []
    for folder, profile, values in (
        (stored, "smoke", [1.0] * 5),
        (own, "smoke", [2.0] * 5),
        (stored, "laptop", [3.0] * 5),
        (stored, "full", [4.0] * 5),
        (own, "laptop", [5.0] * 5),
        (own, "full", [6.0] * 5),
    ):
        store(folder, profile, values, commit="abc", dirty=folder == own)
        now = row()
        found.append((now["value"], now["profile"], now["source"], now["commit"]))
    assert found == [
        (1.0, "smoke", "stored", "abc"),
        (2.0, "smoke", "this machine", "abc+"),
        (3.0, "laptop", "stored", "abc"),
        (4.0, "full", "stored", "abc"),
        (5.0, "laptop", "this machine", "abc+"),
        (6.0, "full", "this machine", "abc+"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "[" * 100_000, "\ud800", "{}", '{"metrics": {}}',
        '{"metrics": [], "provenance": {}}',
        '{"metrics": {"gain": 3}, "provenance": {}}',
        '{"metrics": {"gain": {}}, "provenance": {}}',
        '{"metrics": {"gain": {"values": []}}, "provenance": {}}',
        '{"metrics": {"gain": {"values": "12345"}}, "provenance": {}}',
        '{"metrics": {"gain": {"values": [1, NaN]}}, "provenance": {}}',
        '{"metrics": {"gain": {"values": [true]}}, "provenance": {}}',
        '{"metrics": {"gain": {"values": [1%s]}}, "provenance": {}}' % ("0" * 400),
        '{"metrics": {"gain": {"values": [1]}}, "provenance": null}',
    ],
    ids=range(16),
)  # fmt: skip
def test_a_damaged_file_is_named_with_the_fix(book: Path, tmp_path: Path, text) -> None:
    path = store(tmp_path / "results", "laptop", [1.0] * 5)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    fix = r"delete it and run `make book PROFILE=laptop CHAPTER=random` again"
    with pytest.raises(
        ValueError, match=rf"random\.json is damaged \(.*{fix}"
    ) as caught:
        scoreboard()
    assert str(path) in str(caught.value)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="is damaged"):
        scoreboard()


@pytest.mark.parametrize(
    ("metric", "values", "words"),
    [
        ("gian", [1.0] * 5, r"no claim of chapter 'random' .* 'gian'; it has: gain,"),
        ("other", [1.0] * 5, r"has the metric 'other'.*use ledger\.note\('other'"),
        ("gain", [1.0] * 4, "gain: 4 values, but its claim needs 5 seeds"),
        ("gain", [], "gain: no values"),
        ("gain", [1.0, math.nan], "gain: value 1 is nan, not a finite number"),
        ("gain", [10**400], "value 0 is 1000.*, not a finite number"),
        ("gain", ["1"], "value 0 is '1'"),
        ("gain", [[1.0]], r"value 0 is \[1\.0\]"),
        ("gain", 1.0, "values must be a list of numbers, got 1.0"),
        ("gain", "12345", "values must be a list"),
        ("gain", {0: 1.0}, "values must be a list"),
    ],
)  # fmt: skip
def test_a_wrong_record_is_refused_and_the_file_kept(
    book, metric, values, words
) -> None:
    written = Ledger("random", "laptop")
    written.record("gain", [1.0] * 5)
    before = written.path.read_bytes()
    with pytest.raises(ValueError, match=words):
        written.record(metric, values)
    with pytest.raises(ValueError, match="5 values for 3 seeds"):
        written.record("gain", [2.0] * 5, seeds=range(3))
    with pytest.raises(ValueError, match="gain: the context must be finite numbers"):
        written.record("gain", [2.0] * 5, path=Path("x"))
    assert written.path.read_bytes() == before
    written.note("more", [1.0])  # nothing of the refused ones comes back
    assert (
        json.loads(written.path.read_text())["metrics"]["gain"]["values"] == [1.0] * 5
    )


def test_a_wrong_ledger_is_refused(book: Path) -> None:
    for chapter in ("../random", "random.md", "", "-x", "a/b"):
        with pytest.raises(ValueError, match="must be a file name of letters"):
            Ledger(chapter, "laptop")
    with pytest.raises(
        ValueError, match="profile 'tiny' is unknown; choose one of smoke, laptop"
    ):
        Ledger("random", "tiny")
    with pytest.raises(
        ValueError, match=r"it has: none\. For a number that decides no"
    ):
        Ledger("unclaimed", "smoke").record("gain", [1.0])


def test_fewer_seeds_are_enough_below_the_claims_profile(book: Path) -> None:
    Ledger("random", "smoke").record("gain", [1.0, 1.1])
    assert row()["why"] == "measured in profile smoke, laptop is needed"
    Ledger("random", "laptop").record("gain-at-scale", [1.0])
    with pytest.raises(ValueError, match="needs 2 seeds in profile full"):
        Ledger("random", "full").record("gain-at-scale", [1.0])


@pytest.mark.parametrize(
    "values",
    [
        np.full(5, 0.5, np.float32), torch.full((5,), 0.5), [torch.tensor(0.5)] * 5,
        (np.float64(0.5) for _ in range(5)), [1, 0, 1, 0, 0.5],
    ],
    ids=["numpy", "torch", "list of tensors", "generator", "mixed"],
)  # fmt: skip
def test_numbers_of_any_library_are_recorded(book: Path, values) -> None:
    Ledger("random", "laptop").record("gain", values)
    assert row()["value"] == pytest.approx(0.5)


def test_chapters_may_record_side_by_side(book: Path, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from apps.common.ledger import Ledger\n"
        "ledger = Ledger(sys.argv[1], 'laptop')\n"
        "for i in range(20):\n"
        "    ledger.note(f'n{i}', [float(i)])\n"
        "ledger.record(sys.argv[2], [0.5, 0.6, 0.5, 0.6, 0.5])\n"
    )
    (book / "chapters" / "other.md").touch()
    pairs = [("random", "gain"), ("other", "other")]
    running = [subprocess.Popen([sys.executable, "-c", script, *p]) for p in pairs]
    assert [process.wait() for process in running] == [0, 0]
    assert row()["verdict"] == findings()[0]["verdict"] == "holds"
    for chapter, _ in pairs:
        content = json.loads((tmp_path / f"results/laptop/{chapter}.json").read_text())
        assert content["chapter"] == chapter
        assert len(content["notes"]) == 20
    left = [path.name for path in (tmp_path / "results" / "laptop").iterdir()]
    assert sorted(left) == ["other.json", "random.json"]


def test_an_empty_switch_counts_as_not_set(monkeypatch) -> None:
    monkeypatch.setenv("SPARSEKIT_RESULTS", "")
    assert ledger.results_folder() == ledger.ROOT / "build" / "results"
    monkeypatch.setenv("SPARSEKIT_RESULTS", "x")
    assert ledger.results_folder() == Path("x")
    assert ledger.results_folder("y") == Path("y")


def test_measurements_of_another_machine_keep_their_provenance(book, tmp_path) -> None:
    elsewhere = {"commit": "c0ffee", "dirty": False, "device": "a GPU", "command": "x"}
    there = Ledger("random", "full", folder=tmp_path / "r", provenance=elsewhere)
    there.record("gain-at-scale", [0.1, 0.2], seeds=[0, 1])
    stored = json.loads((tmp_path / "r/full/random.json").read_text())
    expected = {k: v for k, v in elsewhere.items() if k != "command"}
    assert stored["provenance"] == expected
    row = next(r for r in scoreboard(results=tmp_path / "r") if r["id"] == "9-full")
    assert row["commit"] == "c0ffee"


def test_every_row_says_all_that_is_known(monkeypatch, tmp_path) -> None:
    """Rows of the real claims: 45 papers, one set of keys, strict JSON, a way on."""
    monkeypatch.delenv("SPARSEKIT_CLAIMS", raising=False)
    rows = scoreboard(results=tmp_path)
    assert {row["paper"] for row in rows} == set(range(1, 46))
    keys = {
        "id", "paper", "title", "part", "statement", "paper_value", "chapter", "metric",
        "rule", "min_profile", "min_seeds", "verdict", "why", "would_change", "value",
        "low", "high", "seeds", "values", "profile", "source", "device", "date",
        "commit", "data",
    }  # fmt: skip
    for row in rows + findings(results=tmp_path):
        assert set(row) - {"reference"} == keys, row["id"]
        assert row["would_change"]
        assert (row["why"] is None) == (row["verdict"] != "inconclusive")
        assert (row["values"] is None) == (row["value"] is None) == (not row["data"])
        if row["values"] is not None:
            assert row["value"] == pytest.approx(np.mean(row["values"]))
            assert row["seeds"] == len(row["values"])
            assert (CLAIMS_FILE.parents[1] / row["data"]).is_file()
    json.dumps(rows, allow_nan=False)
