"""The file of claims: every rule, every mistake, and the book's own."""

import math
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.common.claims import (
    N_PAPERS,
    PROFILES,
    Claim,
    Paper,
    load_book,
    load_claims,
    parse_rule,
)
from tests.apps.common.writing import written

numbers = st.floats(-1e9, 1e9)

PAPER = """
[[paper]]
index = 9
title = "Random"
claim = "Random is enough."
part = "I"
"""
CLAIM = """
[[claim]]
id = "9"
paper = 9
statement = "It is."
metric = "gap"
rule = "< 0.01"
chapter = "random"
"""


@pytest.fixture
def write(tmp_path: Path):
    return partial(written, tmp_path / "claims.toml")


def allows(rule: str, value: float) -> bool:
    """Whether a rule allows one value, by Python's own comparison."""
    if rule.startswith("in"):
        low, high = eval(rule.removeprefix("in "))
        return low <= value <= high
    return eval(f"{value!r} {rule}")


rules = st.one_of(
    st.tuples(st.sampled_from([">", ">=", "<", "<="]), numbers).map(
        lambda pair: f"{pair[0]} {pair[1]!r}"
    ),
    st.lists(numbers, min_size=2, max_size=2).map(lambda ends: f"in {sorted(ends)}"),
)


def bounds(rule: str) -> list[float]:
    parsed = parse_rule(rule)
    return [b for b in (parsed.low, parsed.high) if math.isfinite(b)]


@given(rules, st.data())
def test_a_rule_is_satisfied_iff_it_allows_the_whole_interval(rule, data) -> None:
    # Ends on, beside and far from the border.
    near = [math.nextafter(b, s * math.inf) for b in bounds(rule) for s in (-1, 1)]
    ends = st.sampled_from([*bounds(rule), *near]) | numbers
    low, high = sorted(data.draw(st.tuples(ends, ends)))
    # What decides lies at the ends, at the bounds, or between two bounds.
    inside = {*bounds(rule), *near, sum(bounds(rule)) / len(bounds(rule))}
    points = [low, high, *(p for p in inside if low <= p <= high)]
    allowed = [allows(rule, point) for point in points]
    parsed = parse_rule(rule)
    assert parsed.satisfied(low, high) == all(allowed)
    assert parsed.violated(low, high) == (not any(allowed))


@pytest.mark.parametrize("rule", ["> 0", ">= 0", "< 0", "<= 0", "in [0, 1]"])
def test_nan_neither_satisfies_nor_violates(rule: str) -> None:
    for ends in ((math.nan, math.nan), (math.nan, 0.5), (0.5, math.nan)):
        assert not parse_rule(rule).satisfied(*ends)
        assert not (parse_rule(rule).violated(*ends) and math.isnan(ends[0]))


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        (">0", 0, math.inf),
        (" >= -.5 ", -0.5, math.inf),
        ("< 1e-3", -math.inf, 0.001),
        ("<= +2.", -math.inf, 2),
        ("in [-1, 1.5E2]", -1, 150),
        ("in[2,2]", 2, 2),
    ],
)
def test_spellings(text: str, low: float, high: float) -> None:
    rule = parse_rule(text)
    assert (rule.low, rule.high) == (low, high)
    assert rule.open == (text.strip()[0] in "<>" and "=" not in text)


@pytest.mark.parametrize(
    "text",
    ["", "0", "= 0", "== 0", "> x", "> nan", "> inf", "> 1e999", "in [2, 1]",
     "in (0, 1)", "in [0, 1", "in [0, 1e999]", "in [-1e999, 0]",
     "> 0 or < 1", ">> 0", "> 1,000"],
)  # fmt: skip
def test_anything_else_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"is not understood; write \"> 0\", \">= 0\.5\""
    ):
        parse_rule(text)


def test_a_file_reads_as_it_is_written(write, monkeypatch) -> None:
    finding = CLAIM.replace("claim", "finding").replace('"9"', '"f"')
    finding = finding.replace("paper = 9", 'reference = "Somebody, 2020"')
    text = PAPER + CLAIM + 'paper_value = "best"\nmin_profile = "full"\nmin_seeds = 3\n'
    path = write(text + finding)
    book = load_book(path)
    assert book.papers == (Paper(9, "Random", "Random is enough.", "I"),)
    assert book.claims == (
        Claim("9", 9, "It is.", "gap", "< 0.01", "random", "best", "full", 3),
    )
    (found,) = book.findings
    assert (found.id, found.paper, found.reference) == ("f", None, "Somebody, 2020")
    assert (found.min_profile, found.min_seeds) == ("laptop", 5)
    assert not book.has_chapter("random")
    (path.parent / "chapters").mkdir()
    (path.parent / "chapters" / "random.md").touch()
    assert book.has_chapter("random")
    monkeypatch.setenv("SPARSEKIT_CLAIMS", str(path))
    assert load_claims() == book.claims


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("claim", "is not valid TOML"),
        (b"\xff", "is not valid TOML"),
        ("a = " + "[" * 100_000, "is not valid TOML"),
        ("[claims]", r"unknown table 'claims'; write \[\[paper\]\]"),
        ("[claim]\nid = '1'", r"write \[\[claim\]\] with two brackets"),
        ("claim = [1]", r"claim must be a table, \[\[claim\]\], got 1"),
        (CLAIM, r"claim '9' is of paper 9, which has no \[\[paper\]\]"),
        (PAPER + PAPER, "paper '9' occurs twice"),
        (PAPER + CLAIM + CLAIM, "id '9' occurs twice"),
        (PAPER.replace("9", "46"), "paper must be 1 to 45, got 46"),
        (PAPER.replace("9", "0"), "paper must be 1 to 45, got 0"),
        (PAPER.replace("9", "true"), "index must be int, got True"),
        (PAPER + CLAIM.replace("paper = 9", "paper = '9'"), "paper must be int"),
        (PAPER + CLAIM.replace('"gap"', '""'), "claim '9': metric is empty"),
        (PAPER + CLAIM.replace('metric = "gap"', ""), "claim '9': metric is missing"),
        (PAPER + CLAIM + "verdict = 'holds'", "claim '9': unknown key 'verdict'"),
        (PAPER + CLAIM + "reference = 'x'", "claim '9': unknown key 'reference'"),
        (PAPER + CLAIM.replace("< 0.01", "good"), "claim '9': rule 'good' is not"),
        (PAPER + CLAIM + "min_profile = 'tiny'", "choose one of smoke, laptop, full"),
        (PAPER + CLAIM + "min_seeds = 0", "min_seeds must be at least 1"),
        (CLAIM.replace("claim", "finding"), "finding '9' is of no paper: make"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[-30:],
)  # fmt: skip
def test_a_mistake_is_named(write, text, words) -> None:
    path = write(text)
    with pytest.raises(ValueError, match=words) as caught:
        load_book(path)
    assert str(caught.value).startswith(f"{path}")


def test_a_missing_file_says_where_claims_come_from(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"work in a checkout, or set SPARSEKIT_"
    ):
        load_book(tmp_path / "absent.toml")


def test_the_books_own_claims() -> None:
    book = load_book()
    assert [paper.index for paper in book.papers] == list(range(1, N_PAPERS + 1))
    assert {1, 9, 32} <= {claim.paper for claim in book.claims}
    assert all(set(paper.part) <= set("IVX") for paper in book.papers)
    per_chapter = Counter((c.chapter, c.metric) for c in (*book.claims, *book.findings))
    assert set(per_chapter.values()) == {1}  # else one measurement would decide two
    for claim in (*book.claims, *book.findings):
        parse_rule(claim.rule)
        assert claim.min_profile in PROFILES
        # Five, or three where a seed takes a GPU.
        assert claim.min_seeds >= (3 if claim.min_profile == "full" else 5)
        assert claim.statement.endswith(".")
