"""The scoreboard's page and its summary for the terminal."""

import math
import re
from dataclasses import replace

import pytest
from pybtex.database import parse_file

from book.engine import scoreboard
from book.engine.runs import ROOT, Book
from book.engine.site import SiteError, read_rows

ROW = {
    "id": "a", "paper": 32, "statement": "sparse | wins", "verdict": "holds",
    "metric": "gap", "value": 0.01234, "low": 0.001, "high": 0.02, "seeds": 5,
    "chapter": "to-prune", "profile": "laptop", "rule": "> 0", "why": None,
    "paper_value": "up to 10x", "source": "stored", "commit": "abc",
    "min_profile": "laptop", "min_seeds": 5, "values": [0.01, 0.02], "title": "T",
    "part": "I", "device": "a CPU", "date": "2026-01-02", "would_change": "5 seeds",
    "data": "book/results/full/to-prune.json",
}  # fmt: skip
PLANNED = {
    **ROW, "id": "2", "paper": 2, "verdict": "planned", "value": None, "low": None,
    "high": None, "seeds": 0, "chapter": None, "profile": None, "rule": None,
    "paper_value": None, "source": None,
}  # fmt: skip
PAPERS = {
    2: {"title": "DASS", "part": "I"},
    32: {"title": "To prune", "part": "I"},
}
TEMPLATE = f"# S\n\n{scoreboard.PAPERS}\n\n{scoreboard.FINDINGS}\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01234, "0.0123"), (1.0, "1.00"), (12.345, "12.3"), (123.4, "123"),
        (-0.5, "-0.500"), (0.0, "0.00"), (-1.9e-17, "0.00"), (12345.6, "12,346"),
        (None, "–"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert scoreboard.number(value) == text


def test_a_value_without_an_interval_is_shown_alone():
    assert scoreboard.measured(ROW) == "0.0123 [0.0010, 0.0200]"
    assert scoreboard.measured({**ROW, "low": None}) == "0.0123"
    assert scoreboard.measured({**ROW, "low": math.nan}) == "0.0123"
    assert scoreboard.measured(PLANNED) == "–"


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ((-0.00171, -0.00309, -0.00033), "-0.0017 [-0.0031, -0.0003]"),
        ((0.98, 0.96, 1.0), "0.980 [0.960, 1.000]"),
        ((0.0061, 0.00002, 0.0122), "0.00610 [0.00002, 0.01220]"),
        ((0.637, 0.637, 0.637), "0.6370 [0.6370, 0.6370]"),
        ((12.3, 4.0, 20.6), "12.3 [4.0, 20.6]"),
        ((12345.6, 12000.0, 12691.2), "12,346 [12,000, 12,691]"),
        ((-0.0004, -0.02, 0.02), "0.000 [-0.020, 0.020]"),
        ((0.0, 0.0, 0.0), "0.000 [0.000, 0.000]"),
    ],
)
def test_ends_of_an_interval_have_as_many_decimals_as_its_mean(ends, text):
    row = dict(zip(("value", "low", "high"), ends, strict=True))
    assert scoreboard.measured({**ROW, **row}) == text


def test_text_cannot_break_the_table():
    assert scoreboard.cell("a | b\n`c` *d* $e$") == r"a \| b \`c\` \*d\* \$e\$"


def test_page_has_every_claim_and_links_only_to_pages_of_this_build():
    page = scoreboard.page(TEMPLATE, [PLANNED, ROW], PAPERS, {"to-prune"}, {32: "z"})
    lines = [line for line in page.splitlines() if line.startswith("| [")]
    assert len(lines) == 2
    built, planned = lines  # chapters first, though paper 2 comes before 32
    assert "[holds]{.verdict .holds}" in built
    assert "[to-prune](chapters/to-prune.ipynb)" in built
    assert r"sparse \| wins" in built
    assert "{cite}`z`" in built
    assert "5 seeds, laptop, stored" in built
    assert "Would change it: 5 seeds" in built
    assert "{ref}`rule and data <claim-a>`" in built
    assert "claim-2" not in planned
    assert (
        "**Claims of 1 of the 2 papers are tested so far, 1 in all: 1 holds, 0" in page
    )
    assert "The other 1 has no chapter yet: nothing of it is measured.**" in page
    assert "no chapter yet" in planned
    assert "{.verdict .planned}" in planned
    assert "](chapters" not in planned
    alone = scoreboard.page(TEMPLATE, [ROW], PAPERS, set(), {})
    assert "](chapters" not in alone
    assert "None yet." in alone


def test_findings_are_apart_from_the_papers_and_do_not_count():
    finding = {**ROW, "paper": None, "reference": "Evci, 2020", "id": "f"}
    page = scoreboard.page(TEMPLATE, [PLANNED, finding], PAPERS, set(), {})
    assert "0 in all: 0 hold, 0 do not hold, 0 are inconclusive. The" in page
    assert page.index("Evci, 2020") > page.index("DASS")
    assert "f: 0.0123" in scoreboard.summary([PLANNED, finding])


def test_a_rule_is_not_broken_after_its_sign():
    assert scoreboard.cell("border (>= 0.5)") == "border (\\>=\N{NO-BREAK SPACE}0.5)"
    assert scoreboard.cell("a -> b") == "a -\\>\N{NO-BREAK SPACE}b"


def test_summary_says_every_verdict_and_why():
    unsure = {**ROW, "verdict": "inconclusive", "why": "2 seeds, 5 are needed"}
    text = scoreboard.summary([ROW, unsure, PLANNED])
    assert text.splitlines()[0] == (
        "Scoreboard: 1 holds, 0 do not hold, 1 is inconclusive"
    )
    assert len(text.splitlines()) == 3
    assert "#32 a: 0.0123 [0.0010, 0.0200] (laptop, 5 seeds; rule: > 0)" in text
    assert "2 seeds, 5 are needed" in text


def test_unknown_verdict_and_missing_mark_are_errors():
    with pytest.raises(ValueError, match="unknown verdicts"):
        scoreboard.counts([{**ROW, "verdict": "maybe"}])
    with pytest.raises(ValueError, match=r"scoreboard\.md needs one line"):
        scoreboard.page("# S\n", [ROW], PAPERS, set(), {})


def test_rows_come_from_this_books_claims_and_runs(mini):
    book, _, _ = mini
    rows = {row["id"]: row for row in read_rows(book)}
    assert rows["tiny-mean"]["verdict"] == "holds"
    assert rows["tiny-mean"]["seeds"] == 2
    assert rows["tiny-first"]["paper"] is None
    assert [r["verdict"] for r in rows.values() if r["paper"] == 2] == ["planned"]


def test_a_damaged_measurement_is_named(mini, tmp_path):
    book, _, _ = mini
    bad = tmp_path / "results" / "smoke" / "tiny.json"
    bad.parent.mkdir(parents=True)
    bad.write_text("{")
    with pytest.raises(SiteError, match=r"tiny\.json is damaged"):
        read_rows(replace(book, results=tmp_path / "results"))


def test_scoreboard_lists_all_45_papers():
    rows = read_rows(Book())
    assert {row["paper"] for row in rows} - {None} == set(range(1, 46))


def test_every_citation_of_a_paper_names_one_paper():
    text = (ROOT / "book" / "references.bib").read_text()
    citations = scoreboard.read_citations(ROOT / "book" / "references.bib")
    assert citations[32] == "toprune2017"
    assert len(set(citations.values())) == len(citations) == text.count(" paper ")
    assert set(citations) == set(range(1, 46))


def test_every_source_has_an_author_a_title_and_a_year():
    library = parse_file(ROOT / "book" / "references.bib")  # raises for repeated keys
    assert len(library.entries) > 100
    for key, entry in library.entries.items():
        assert entry.persons.get("author"), key
        names = [str(person) for person in entry.persons["author"]]
        assert "others" not in names, key  # all of them are named
        assert {"title", "year"} <= set(entry.fields), key
        assert 1900 < int(entry.fields["year"]) <= 2026, key
        venue = entry.fields.get("howpublished") or entry.fields.get("journal") or ""
        assert not re.search(r", (19|20)\d\d", venue), key  # one year, not two
        if "eprint" in entry.fields:
            assert re.fullmatch(r"\d{4}\.\d{4,5}", entry.fields["eprint"]), key


def test_no_source_is_cited_that_is_not_there_and_no_arxiv_number_twice():
    library = parse_file(ROOT / "book" / "references.bib")
    numbers = [
        e.fields["eprint"] for e in library.entries.values() if "eprint" in e.fields
    ]
    assert len(numbers) == len(set(numbers))
    pages = [*(ROOT / "book").glob("*.md"), *(ROOT / "book" / "chapters").glob("*.md")]
    for page in pages:
        for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", page.read_text("utf-8")):
            for key in keys.split(","):
                assert key.strip() in library.entries, (page.name, key)
