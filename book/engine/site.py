"""Render executed chapters with Jupyter Book, strictly and without a network."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import yaml
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from apps.common import scoreboard as claims
from book.engine import contracts, evidence, scoreboard
from book.engine.cache import Run
from book.engine.chapter import Chapter, read_contents
from book.engine.runs import ROOT, Book

SHARED = ROOT / "book"  # pages, configuration and style of any book built here
VERDICTS = "<!-- verdicts -->"  # on the first page: how many claims hold
WARNING = re.compile(r"(?:WARNING|ERROR|CRITICAL|SEVERE)\b:?")


class SiteError(Exception):
    """Sphinx warned, and warnings are errors; the message has every one of them."""


def provenance(facts: Mapping[str, Any]) -> str:
    """The line under a chapter that says how its numbers were made."""
    commit = f", commit {facts['commit']}" if facts.get("commit") else ""
    return (
        "```{div} how-made\n"
        f"What is not called stored or published was computed by this page: profile "
        f"`{facts['profile']}`, {facts['seconds']:.0f} s on {facts['machine']}, "
        f"{facts['date']}{commit}.\n```"
    )


def staged(chapter: Chapter, run: Run | None) -> NotebookNode:
    """The notebook that is rendered: executed, or as written with a note."""
    if run is not None:
        notebook = nbformat.read(run.notebook, as_version=4)
        notebook.cells.append(new_markdown_cell(provenance(run.facts)))
    else:
        notebook = jupytext.reads(chapter.text, fmt="md:myst")
        note = "```{warning}\nThis chapter was not run in this build.\n```"
        notebook.cells.insert(1, new_markdown_cell(note))
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"  # not another one in each build
        figure = cell.metadata.get("mystnb", {}).get("figure", {})
        if "caption" in figure:
            figure["caption"] = held_together(figure["caption"])
        if cell.cell_type == "markdown":
            cell.source = held_together(cell.source)
    return notebook


def held_together(text: str) -> str:
    """Prose in which no line begins with a percent sign."""
    return re.sub(r"(?<=[\d`]) %", "\N{NO-BREAK SPACE}%", text)


def listed_pages(toc: Mapping[str, Any]) -> list[str]:
    """The pages of `_toc.yml` that are not chapters, without suffix; root first."""
    groups = toc.get("parts") or [toc]
    files = [e["file"] for group in groups for e in group.get("chapters") or []]
    return [toc["root"], *(f for f in files if not f.startswith("chapters/"))]


def stage(
    book: Book,
    chapters: Sequence[Chapter],
    runs: Mapping[str, Run],
    rows: Sequence[scoreboard.Row],
    folder: Path,
) -> None:
    """Write the sources that Jupyter Book renders into an empty folder.

    Chapters that `_toc.yml` does not list come last, as drafts.
    """
    (folder / "chapters").mkdir(parents=True)
    toc = yaml.safe_load((book.folder / "_toc.yml").read_text("utf-8"))
    pages = [f"{page}.md" for page in listed_pages(toc)]
    for source in (SHARED, book.folder):
        for name in ("_config.yml", "references.bib", *pages):
            if name.endswith(".md") and (source / name).is_file():
                text = (source / name).read_text("utf-8")
                (folder / name).write_text(held_together(text), encoding="utf-8")
            elif (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        for name in ("_static", "vendor"):
            if (source / name).is_dir():
                shutil.copytree(source / name, folder / name, dirs_exist_ok=True)
    listed = {path.stem for path in read_contents(book.folder / "_toc.yml")}
    drafts = [c.name for c in chapters if c.name not in listed]
    if drafts:
        files = [{"file": f"chapters/{name}"} for name in drafts]
        toc["parts"].append({"caption": "Draft", "chapters": files})
    (folder / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False))
    for chapter in chapters:
        notebook = staged(chapter, runs.get(chapter.name))
        nbformat.write(notebook, folder / "chapters" / f"{chapter.name}.ipynb")
    names = {chapter.name for chapter in chapters}
    of_papers = [row for row in rows if row["paper"] is not None]
    first = folder / f"{toc['root']}.md"
    text = first.read_text("utf-8").replace(VERDICTS, scoreboard.told(of_papers))
    first.write_text(text, encoding="utf-8")
    template = folder / "scoreboard.md"
    if template.is_file():
        text = scoreboard.page(
            template.read_text("utf-8"),
            rows,
            scoreboard.read_papers(book.claims),
            names,
            scoreboard.read_citations(folder / "references.bib"),
        )
        template.write_text(text, encoding="utf-8")
    template = folder / "evidence.md"
    if template.is_file():
        text = evidence.page(template.read_text("utf-8"), rows, names)
        template.write_text(text, encoding="utf-8")
        evidence.copy_data(rows, book.claims, folder / "vendor")
    template = folder / "contracts.md"
    if template.is_file():
        text = contracts.page(
            template.read_text("utf-8"), book.folder / "results" / "contracts"
        )
        template.write_text(text, encoding="utf-8")
    copy_headlines(folder / "vendor" / evidence.DATA / "headlines")
    for path in (ROOT / "apps" / "common").glob("*.schema.json"):
        shutil.copyfile(path, folder / "vendor" / evidence.DATA / path.name)


def copy_headlines(folder: Path) -> None:
    """The results that the first page's table links to."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = [*(ROOT / "benchmarks" / "results").glob("*.json")]
    for path in [*kept, *(SHARED / "results" / "full").glob("*-recipes.json")]:
        shutil.copyfile(path, folder / path.name)


def render(sources: Path, work: Path, *, strict: bool = True) -> tuple[Path, list[str]]:
    """Run Jupyter Book in a fresh folder: (html folder, warnings).

    Raises SiteError if it fails, and when strict if it warns at all. An incremental
    build would hide the warnings of pages that it does not read again.
    """
    start = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", start, "build", str(sources)]
    command += ["--path-output", str(work), "-n", "--keep-going"]
    command += ["-W"] if strict else []
    env = dict(os.environ, PYTHONWARNINGS="ignore", NO_COLOR="1")
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        cwd=work,
    )
    # Colour codes and the folder's name are noise in a message.
    log = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).replace(f"{sources}/", "")
    warnings = [line for line in log.splitlines() if WARNING.search(line)]
    html = work / "_build" / "html"
    if done.returncode or (strict and warnings) or not (html / "index.html").is_file():
        text = "\n".join(dict.fromkeys(warnings)) or log[-4000:]
        raise SiteError(f"the site did not build cleanly:\n{text}")
    return html, warnings


def build_site(
    book: Book,
    chapters: Sequence[Chapter],
    runs: Mapping[str, Run],
    rows: Sequence[scoreboard.Row],
    out: Path,
    *,
    strict: bool = True,
) -> list[str]:
    """Render the book into `out`, which is replaced only by a clean build."""
    work = out.parent / f".{out.name}-work"
    shutil.rmtree(work, ignore_errors=True)
    try:
        stage(book, chapters, runs, rows, work / "sources")
        html, warnings = render(work / "sources", work, strict=strict)
        extras = [html / "objects.inv", html / ".buildinfo", *html.rglob("*.map")]
        for extra in extras:  # for tools; nothing that a reader's browser asks for
            extra.unlink(missing_ok=True)
        shutil.rmtree(html / "reports", ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
        html.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return warnings


def read_rows(book: Book) -> list[dict[str, Any]]:
    """Rows of the scoreboard: the papers' claims, then the findings (no paper)."""
    if not book.claims.is_file():
        return []
    try:
        return [
            *claims.scoreboard(book.claims, book.results),
            *claims.findings(book.claims, book.results),
        ]
    except ValueError as error:
        raise SiteError(f"the scoreboard cannot be made: {error}") from error
