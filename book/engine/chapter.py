"""A chapter's source: what it declares, and the mistakes that can be seen unrun."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jupytext
import yaml
from nbformat import NotebookNode, ValidationError

PROFILES = ("smoke", "laptop", "full")


class ChapterError(Exception):
    """A mistake in one chapter; the message names the chapter, the cell, the fix."""


@dataclass(frozen=True)
class Options:
    """The mapping under `sparsekit:` in a chapter's front matter.

    threads: threads each kernel may use (OMP_NUM_THREADS and its kin).
    alone: run before the others with nothing beside it, for chapters that time.
    cell_seconds: time limit of one cell, in place of the profile's.
    data: sets of `apps.common.datasets` that it loads, fetched before it runs: a
        download within a cell would count against its time and show no progress.
    """

    threads: int = 1
    alone: bool = False
    cell_seconds: int | None = None
    data: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chapter:
    """One chapter: its name (the file's), its text, its notebook and options."""

    name: str
    path: Path
    text: str
    notebook: NotebookNode
    options: Options


def read_options(name: str, metadata: Mapping[str, Any]) -> Options:
    """Options from front matter; unknown keys and wrong types are errors."""
    declared = metadata.get("sparsekit") or {}
    valid = [field.name for field in fields(Options)]
    if not isinstance(declared, Mapping):
        raise ChapterError(
            f"{name}: `sparsekit:` in the front matter must be a mapping of {valid}"
        )
    for key, value in declared.items():
        if key not in KINDS:
            raise ChapterError(
                f"{name}: unknown option {key!r} under `sparsekit:` in the front "
                f"matter; valid: {', '.join(valid)}"
            )
        kind, accepts = KINDS[key]
        if not accepts(value):
            raise ChapterError(f"{name}: option {key!r} must be {kind}, got {value!r}")
    return Options(**{**declared, "data": tuple(declared.get("data", ()))})


def positive(value: object) -> bool:
    """Whether a value is an integer of at least 1; True is none."""
    return type(value) is int and value >= 1


KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "threads": ("an integer of at least 1", positive),
    "alone": ("true or false", lambda value: type(value) is bool),
    "cell_seconds": ("an integer of at least 1", positive),
    "data": (
        "a list of names",
        lambda value: type(value) is list and all(type(v) is str for v in value),
    ),
}


def read_chapter(path: Path) -> Chapter:
    """Read a MyST chapter.

    Raises ChapterError for a missing file, an unusable front matter, a missing or
    repeated `parameters` cell, one that does not set `profile`, and the
    `raises-exception` tag (the renderer would honour it, papermill does not).
    """
    name = path.stem
    if not path.is_file():
        raise ChapterError(f"{name}: no such file: {path}")
    text = path.read_text(encoding="utf-8")
    try:
        notebook = jupytext.reads(text, fmt="md:myst")
    except (ValueError, yaml.YAMLError, ValidationError) as error:
        raise ChapterError(
            f"{name}: cannot be read as MyST; the front matter needs no more than "
            f"`sparsekit:` (the engine names the kernel): {error}"
        ) from error
    options = read_options(name, notebook.metadata)
    tagged = [c for c in notebook.cells if "parameters" in tags(c)]
    if len(tagged) != 1 or tagged[0].cell_type != "code":
        raise ChapterError(
            f"{name}: needs exactly one code cell tagged `parameters`, found "
            f"{len(tagged)}; begin the chapter's code with\n"
            '```{code-cell} ipython3\n:tags: [parameters]\nprofile = "smoke"\n```'
        )
    if not re.search(r"(?m)^profile\s*=", tagged[0].source):
        raise ChapterError(
            f"{name}: the cell tagged `parameters` must set `profile`, it has\n"
            f"{tagged[0].source}"
        )
    for number, cell in enumerate(code_cells(notebook), start=1):
        if "raises-exception" in tags(cell):
            raise ChapterError(
                f"{name}, code cell {number}: the tag `raises-exception` is not "
                "supported; show an expected error with try/except"
            )
    return Chapter(name, path, text, notebook, options)


def tags(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return list(cell.metadata.get("tags", []))


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells that have code; nbclient skips the empty ones."""
    return [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]


def read_contents(toc: Path) -> list[Path]:
    """The chapter files that `_toc.yml` lists, in its order.

    Pages outside `chapters/` are not chapters. Raises ChapterError for a listed file
    that does not exist, and for one listed twice.
    """
    table = yaml.safe_load(toc.read_text(encoding="utf-8"))
    listed: list[str] = []
    groups = table.get("parts") or [table]
    for group in groups:
        listed += [entry["file"] for entry in group.get("chapters") or []]
    paths: list[Path] = []
    for file in listed:
        path = toc.parent / f"{file.removesuffix('.md')}.md"
        if not file.startswith("chapters/"):
            continue
        if not path.is_file():
            raise ChapterError(
                f"{toc.name} lists {file}, but there is no {path}; write it or "
                "remove the line"
            )
        if path in paths:
            raise ChapterError(f"{toc.name} lists {file} twice")
        paths.append(path)
    return paths
