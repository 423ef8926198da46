"""The renderer: strict about every mistake, and complete."""

import json
import re

import nbformat
import pytest

from book.engine.runs import ROOT
from book.engine.site import SiteError, build_site, held_together
from tests.book.test_engine import PARAMETERS, make_book


@pytest.mark.parametrize(
    ("prose", "words"),
    [
        ("(same)=\n## One\n\n(same)=\n## Two\n", "same"),
        ("See {ref}`nowhere`.\n", "nowhere"),
        ("See {numref}`no-figure`.\n", "no-figure"),
        ("As in {cite}`nobody1900`.\n", "nobody1900"),
        ("It is {glue:text}`unmeasured`.\n", "unmeasured"),
        ("![A picture](missing.png)\n", "missing.png"),
        ("```{nodirective}\n```\n", "nodirective"),
    ],
    ids=["label", "ref", "numref", "cite", "glue", "image", "directive"],
)
def test_a_mistake_in_prose_fails_the_build(tmp_path, prose, words):
    text = f"# A chapter\n\n{prose}\n{PARAMETERS}"
    book = make_book(tmp_path / "book", {"one": text})
    (book.folder / "references.bib").write_text("")
    out = tmp_path / "site"
    out.mkdir()
    (out / "index.html").write_text("the last good build")
    with pytest.raises(SiteError, match=words) as caught:
        build_site(book, book.chapters(), {}, [], out)
    assert str(tmp_path) not in str(caught.value)
    assert (out / "index.html").read_text() == "the last good build"
    assert not list(tmp_path.glob(".site*"))


def test_no_line_begins_with_a_percent_sign():
    assert held_together("at 95 %, `x` % of 3 x") == (
        "at 95\N{NO-BREAK SPACE}%, `x`\N{NO-BREAK SPACE}% of 3 x"
    )


def test_page_has_its_parts(mini_site):
    html = (mini_site / "chapters" / "tiny.html").read_text()
    assert "Fig. 1" in html
    assert re.search(r'<img alt="Three lines that stay near one\."', html)
    assert "Table 1" in html
    assert re.search(r"Over\s+<span[^>]*>(<strong>)?2\b", html.replace("<strong>", ""))
    assert 'class="solution dropdown admonition"' in html
    assert "profile" in html
    assert "injected" not in html
    references = (mini_site / "references.html").read_text()
    assert "The probable error of a mean" in references


def test_printed_number_is_the_recorded_number(mini, mini_site):
    book, _, runs = mini
    recorded = json.loads(runs["tiny"].results.read_text())
    html = (mini_site / "chapters" / "tiny.html").read_text()
    printed = float(re.search(r"mean (\d\.\d{3})", html)[1])
    values = find_values(recorded)
    assert len(values) == 2  # seeds in smoke
    assert printed == pytest.approx(sum(values) / 2, abs=5e-4)
    assert (book.results / "smoke" / "tiny.json").is_file()


def find_values(node):
    """The first list of numbers in a JSON tree."""
    if isinstance(node, list) and node and all(isinstance(v, float) for v in node):
        return node
    children = node.values() if isinstance(node, dict) else node
    if isinstance(node, (dict, list)):
        return next(filter(None, map(find_values, children)), None)
    return None


def test_notebook_can_be_downloaded_with_its_outputs(mini_site):
    html = (mini_site / "chapters" / "tiny.html").read_text()
    link = re.search(r'href="\.\./(_sources/chapters/tiny\.ipynb)"', html)[1]
    notebook = nbformat.read(mini_site / link, as_version=4)
    nbformat.validate(notebook)
    assert any(c.get("outputs") for c in notebook.cells)
    text = (mini_site / link).read_text()
    assert str(ROOT) not in text
    assert "injected-parameters" not in text


def test_no_page_names_another_host(mini_site):
    # Links to read are fine; scripts, styles, fonts and pictures are not.
    loads = re.compile(r'<(?:script|img|iframe)[^>]*src="(?:https?:)?//[^"]*"')
    sheets = re.compile(r'<link[^>]*rel="stylesheet"[^>]*href="(?:https?:)?//[^"]*"')
    pages = list(mini_site.rglob("*.html"))
    assert len(pages) >= 4
    for page in pages:
        text = page.read_text()
        assert not loads.search(text), page
        assert not sheets.search(text), page


def test_site_has_no_path_of_this_machine(mini_site):
    for page in mini_site.rglob("*.html"):
        assert str(ROOT) not in page.read_text(), page


def test_mathjax_is_the_pinned_file():
    import hashlib

    folder = ROOT / "book" / "vendor" / "mathjax"
    digest = hashlib.sha256((folder / "tex-svg.js").read_bytes()).hexdigest()
    assert digest in (folder / "README.md").read_text()
    assert "Apache License" in (folder / "LICENSE").read_text()
