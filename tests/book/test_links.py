"""Every link of the site arrives, its anchor too."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

OUTSIDE = re.compile(r"(https?|mailto|data|javascript):")


class Page(HTMLParser):
    """The anchors of a page, and the addresses that it names."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors, self.addresses = set(), set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        own = {"a": "href", "link": "href", "img": "src", "script": "src"}.get(tag)
        if own and given.get(own):
            self.addresses.add(given[own])


def read(site: Path) -> dict[Path, Page]:
    pages = (p for p in site.rglob("*.html") if "_static" not in p.parts)
    return {path.resolve(): Page(path) for path in pages}


def broken(site: Path) -> list[tuple[str, str]]:
    """(page, address) of the links inside the site that lead nowhere."""
    pages, found = read(site), []
    for path, page in pages.items():
        for address in sorted(page.addresses):
            if OUTSIDE.match(address):
                continue
            place, anchor = urldefrag(address)
            name = unquote(urlsplit(place).path)
            target = (path.parent / name).resolve() if name else path
            there = target.exists()
            if there and anchor and target in pages:
                there = unquote(anchor) in pages[target].anchors
            if not there:
                found.append((path.name, address))
    return found


@pytest.mark.parametrize("site", ["mini_site", "real_site"])
def test_every_link_arrives(request, site):
    assert broken(request.getfixturevalue(site)) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there">1</a><a href="b.html#gone">2</a><a href="c.html">3</a>'
        '<a href="https://example.org">4</a><a href="#top">5</a><img src="x.png?v=1">'
    )
    (tmp_path / "b.html").write_text('<p id="there">')
    (tmp_path / "x.png").write_text("")
    assert broken(tmp_path) == [
        ("a.html", "#top"), ("a.html", "b.html#gone"), ("a.html", "c.html"),
    ]  # fmt: skip
