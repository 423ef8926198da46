"""README and the book's first page from the same sources.

    python -m benchmarks.front.page            # write picture and blocks
    python -m benchmarks.front.page --check    # status 1 if they are not up to date

A block stands between `<!-- NAME -->` and `<!-- /NAME -->`. Words come from
book/front.toml, the table from `benchmarks.front.headlines`, the picture from
`benchmarks.front.picture`, the tables of book/scale.md from `benchmarks.scale`, all
from results that are kept.
"""

import argparse
import json
import re
import sys
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apps.common.scoreboard import scoreboard
from benchmarks import scale
from benchmarks.front import headlines
from benchmarks.front import picture as drawing
from benchmarks.front.keep import KEPT
from benchmarks.reports import ROOT
from sparsekit import atomic

README, INDEX = ROOT / "README.md", ROOT / "book" / "index.md"
SCALE = ROOT / "book" / "scale.md"
PICTURE = ROOT / "book" / "_static" / "density.svg"
FRONT = ROOT / "book" / "front.toml"


def blocks(page: Path) -> dict[str, str]:
    """{name: text} of every block of a page."""
    if page == SCALE:
        report = json.loads((KEPT / "scale.json").read_text("utf-8"))["report"]
        return {"scale": scale.markdown(report), "beyond": scale.beyond(report)}
    front = tomllib.loads(FRONT.read_text("utf-8"))
    return {
        "about": front["about"].strip().format(**counts()),
        "picture": picture(page, front["alt"].strip()),
        "headlines": as_cards(page) + headlines.table(result_link(page)),
        "want": as_cards(page) + wants(front["want"], page),
        "planned": front["planned"].strip().format(**counts()),
    }


def as_cards(page: Path) -> str:
    """What makes a row of the book's table a card where there is little room."""
    return "{.cards}\n" if page == INDEX else ""


def counts() -> dict[str, int]:
    """Papers with and without a chapter; of these, those whose part has one."""
    rows = scoreboard(ROOT / "book" / "claims.toml")
    planned = {r["paper"]: r["part"] for r in rows if r["verdict"] == "planned"}
    tested = {r["paper"]: r["part"] for r in rows if r["verdict"] != "planned"}
    begun = sum(part in tested.values() for part in planned.values())
    return {
        "planned": len(planned),
        "tested": len(tested),
        "begun": begun,
        "later": len(planned) - begun,
    }


def picture(page: Path, alt: str) -> str:
    caption = "\n".join(textwrap.wrap(drawing.caption(), 88))
    if page == README:
        return f"![{alt}](book/_static/{PICTURE.name})\n\n*{caption}*"
    # As HTML: a {figure} would take number 1 from the chapters' figures.
    return (
        f'<figure>\n<img src="_static/{PICTURE.name}" alt="{alt}">\n'
        f"<figcaption>\n{caption}\n</figcaption>\n</figure>"
    )


def wants(rows: list[dict[str, Any]], page: Path) -> str:
    lines = ["| I want to ... | do | read |", "|---|---|---|"]
    lines += [f"| {r['want']} | `{r['do']}` | {link(r['page'], page)} |" for r in rows]
    return "\n".join(lines)


def title(path: Path) -> str:
    """The first heading of a page; what follows a colon is left out."""
    found = re.search(r"(?m)^# (.+)$", path.read_text("utf-8"))
    return found[1].split(":")[0] if found else path.stem


def link(target: str, page: Path) -> str:
    """A link to a page of the repository, as this page must write it."""
    name = title(ROOT / target)
    if page == README:
        return f"[{name}]({target})"
    if not target.startswith("book/"):
        return f"`{target}`"  # not a page of the book
    inside = target.removeprefix("book/")
    if inside.startswith("chapters/"):
        inside = inside.replace(".md", ".ipynb")
    return f"[{name}]({inside})"


def result_link(page: Path) -> Callable[[Path], str]:
    """How a page links to a file of results; the site has its own copy."""
    if page == README:
        return lambda path: f"([JSON]({path.relative_to(ROOT).as_posix()}))"
    return lambda path: f'(<a href="data/headlines/{path.name}">JSON</a>)'


def renewed(page: Path) -> str:
    """A page's text with its blocks anew. ValueError unless each is there once."""
    text = page.read_text("utf-8")
    for name, content in blocks(page).items():
        pattern = re.compile(rf"<!-- {name} -->\n.*?<!-- /{name} -->", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(
                f"{page.name} needs one block <!-- {name} --> ... <!-- /{name} -->"
            )
        text = pattern.sub(
            lambda _, name=name, content=content: (  # type: ignore[misc]
                f"<!-- {name} -->\n\n{content}\n\n<!-- /{name} -->"
            ),
            text,
        )
    return text


def stale() -> list[Path]:
    """What does not say what the sources say."""
    pages = [README, INDEX, *([SCALE] if (KEPT / "scale.json").is_file() else [])]
    pages = [p for p in pages if renewed(p) != p.read_text("utf-8")]
    return pages + ([PICTURE] if drawing.is_stale(PICTURE) else [])


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.front.page", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    found = stale()
    names = ", ".join(path.relative_to(ROOT).as_posix() for path in found)
    if args.check:
        if found:
            print(f"not up to date: {names}; run python -m benchmarks.front.page")
        return 1 if found else 0
    for path in found:
        if path == PICTURE:
            drawing.draw(path)
        else:
            atomic.write_text(path, renewed(path))
    print(f"written: {names}" if found else "all up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
