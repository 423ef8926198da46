"""The book's own chapters: their texts, their runs in smoke, what they recorded."""

import html
import json
import re

import nbformat
import pytest
import yaml

from apps.common.claims import PROFILES, load_book
from book.engine import prose
from book.engine.chapter import read_chapter, read_contents
from book.engine.runs import ROOT
from tests.book.test_engine import chapter_text

CONTENTS = ROOT / "book" / "_toc.yml"
CHAPTERS = sorted((ROOT / "book" / "chapters").glob("*.md"))
LISTED = [path.stem for path in read_contents(CONTENTS)]
CLAIMS = load_book(ROOT / "book" / "claims.toml")


def test_contents_list_every_chapter_once():
    assert sorted(LISTED) == [path.stem for path in CHAPTERS]
    assert yaml.safe_load(CONTENTS.read_text())["root"] == "index"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_text_has_the_anatomy(path):
    assert prose.problems(read_chapter(path)) == []


def test_labels_are_unique_in_the_book():
    assert prose.repeated_labels(map(read_chapter, CHAPTERS)) == {}


@pytest.mark.parametrize("name", LISTED)
def test_chapter_runs_and_records_its_claims(real, name):
    book, _, runs = real
    assert runs[name].facts["profile"] == "smoke"
    # What is measured in `full` alone, on a GPU, a reader's run cannot record.
    asked = {
        claim.metric
        for claim in (*CLAIMS.claims, *CLAIMS.findings)
        if claim.chapter == name
        and PROFILES.index(claim.min_profile) <= PROFILES.index("laptop")
    }
    path = book.results / "smoke" / f"{name}.json"
    metrics = json.loads(path.read_text())["metrics"] if path.is_file() else {}
    assert set(metrics) == asked
    for metric, entry in metrics.items():
        assert len(entry["values"]) >= 2, metric  # two seeds, to have an interval
        if "seeds" in entry:
            assert len(set(entry["seeds"])) == len(entry["values"]), metric


def claims_section(notebook) -> list:
    """The code cells of a notebook's section of claims."""
    cells, inside = [], False
    for cell in notebook.cells:
        if cell.cell_type != "code" and "\n## " in "\n" + cell.source:
            inside = cell.source.split("## ")[-1].startswith("Claims")
        elif inside and cell.cell_type == "code":
            cells.append(cell)
    return cells


@pytest.mark.parametrize("name", LISTED)
def test_chapter_shows_a_verdict_for_each_of_its_claims(real, name):
    _, _, runs = real
    notebook = nbformat.read(runs[name].notebook, as_version=4)
    shown = " ".join(
        output.get("text") or output["data"].get("text/html", "")
        for cell in claims_section(notebook)
        for output in cell.outputs
    )
    page = " ".join(re.sub(r"<[^>]+>", " ", shown).replace("\xa0", " ").split())
    page = html.unescape(page)
    own = [c for c in (*CLAIMS.claims, *CLAIMS.findings) if c.chapter == name]
    verdicts = re.findall(r"\b(?:holds|does not hold|inconclusive)\b", page)
    assert len(verdicts) >= len(own) > 0
    for claim in own:
        assert " ".join(claim.statement.split()) in page, claim.id


@pytest.mark.parametrize("name", LISTED)
def test_chapter_writes_where_it_is_told_to(real, name):
    _, _, runs = real
    text = runs[name].notebook.read_text()
    assert str(ROOT) not in text  # the notebook can be given away


def test_mini_chapter_has_the_anatomy(mini):
    _, (tiny,), _ = mini
    assert prose.problems(tiny) == []
    assert prose.repeated_labels([tiny]) == {}
    assert set(prose.labels(tiny)) == {
        "tiny", "tiny-width", "tiny-figure", "tiny-cost", "tiny-exercise",
        "tiny-exercise-code",
    }  # fmt: skip
    repeated = prose.repeated_labels([tiny, tiny])
    assert repeated["tiny-width"] == ["tiny", "tiny"]


def edited(text, *, remove="", add=""):
    return text.replace(remove, "") + add if remove else text + add


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"remove": "## What it cost\n"}, "`## What it cost` is missing"),
        ({"add": "\n# Another title\n"}, "needs one title"),
        ({"remove": ":class: dropdown\n"}, "'tiny-exercise' has no {solution}"),
        ({"remove": "    name: tiny-figure\n"}, "has no name"),
        ({"remove": "    alt: Three lines that stay near one.\n"}, "no image alt"),
        ({"remove": "{cite}`student1908`"}, "cites nothing"),
        (
            {"add": "\n```{code-cell} ipython3\nplt.show()\n```\n"},
            "without a name and a caption",
        ),
    ],
)
def test_each_missing_part_is_found(mini, tmp_path, change, words):
    _, (tiny,), _ = mini
    path = tmp_path / "tiny.md"
    path.write_text(edited(tiny.text, **change))
    assert any(words in problem for problem in prose.problems(read_chapter(path)))


def test_order_of_the_sections_matters(mini, tmp_path):
    _, (tiny,), _ = mini
    path = tmp_path / "tiny.md"
    text = tiny.text.replace("## Claims", "## X").replace(
        "## What it cost", "## Claims"
    )
    path.write_text(text.replace("## X", "## What it cost"))
    assert any("not in the order" in p for p in prose.problems(read_chapter(path)))


def test_a_bare_chapter_lacks_everything(tmp_path):
    path = tmp_path / "bare.md"
    path.write_text(chapter_text("x = 1"))
    found = prose.problems(read_chapter(path))
    assert len(found) == len(prose.ANATOMY) + 3  # exercise, figure, citation
