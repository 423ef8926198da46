"""What a chapter's text must have, found without running it."""

import re
from collections.abc import Iterable

from book.engine.chapter import Chapter, code_cells, tags

# Headings of the second level, in this order; more may stand between them. A heading
# may go on after a colon: "## The experiment: width".
ANATOMY = (
    "A plain version",
    "The experiment",
    "What it cost",
    "Claims",
    "What is not shown",
    "Exercises",
)
LABELS = (
    re.compile(r"^\(([^()\s]+)\)=\s*$", re.MULTILINE),  # (label)= before a heading
    re.compile(r"^\$\$\s*\(([^()\s]+)\)\s*$", re.MULTILINE),  # an equation
    re.compile(r"^\s*:(?:label|name):\s*(\S+)\s*$", re.MULTILINE),  # an option
    re.compile(r"^\s+name:\s*(\S+)\s*$", re.MULTILINE),  # a figure of a code cell
)


def labels(chapter: Chapter) -> list[str]:
    """Every label that the chapter defines."""
    return [label for pattern in LABELS for label in pattern.findall(chapter.text)]


def problems(chapter: Chapter) -> list[str]:
    """What is missing or wrong in a chapter's text; empty if nothing is."""
    found = []
    prose = "\n".join(c.source for c in chapter.notebook.cells if c.cell_type != "code")
    # Headings inside fenced blocks are not the chapter's.
    outside = re.sub(r"(?ms)^(`{3,}|:{3,}).*?^\1\s*$", "", prose)
    titles = re.findall(r"(?m)^# (.+)$", outside)
    if len(titles) != 1:
        found.append(f"needs one title (`# ...`), has {len(titles)}")
    headings = re.findall(r"(?m)^## (.+)$", outside)
    parts = [h.split(":")[0].strip() for h in headings]
    missing = [part for part in ANATOMY if part not in parts]
    found += [f"the section `## {part}` is missing" for part in missing]
    if not missing and sorted(ANATOMY, key=parts.index) != list(ANATOMY):
        found.append(f"the sections are not in the order {', '.join(ANATOMY)}")
    found += exercise_problems(chapter.text)
    found += figure_problems(chapter)
    if "{cite" not in chapter.text:
        found.append("cites nothing: add {cite}`key` of references.bib")
    if any(cell.get("outputs") for cell in code_cells(chapter.notebook)):
        found.append("has outputs; the text holds sources only")
    return found


def exercise_problems(text: str) -> Iterable[str]:
    """Exercises without a folded solution."""
    exercises = re.findall(r"(?ms)^`{3,}\{exercise(?:-start)?\}.*?^:label: (\S+)", text)
    if not exercises:
        yield "has no {exercise} with a :label:"
    for label in exercises:
        solution = (
            rf"(?m)^`{{3,}}\{{solution(?:-start)?\}} {re.escape(label)}\n:class: "
        )
        if not re.search(rf"{solution}dropdown", text):
            yield (
                f"exercise {label!r} has no {{solution}} {label} with :class: dropdown"
            )


def figure_problems(chapter: Chapter) -> Iterable[str]:
    """Figures that lack a name, a caption or a text for those who cannot see them."""
    n_figures = 0
    for number, cell in enumerate(code_cells(chapter.notebook), start=1):
        figure = cell.metadata.get("mystnb", {}).get("figure")
        if figure is not None:
            n_figures += 1
            alt = (cell.metadata["mystnb"].get("image") or {}).get("alt")
            given = {"name": figure.get("name"), "caption": figure.get("caption")}
            for key, value in {**given, "image alt": alt}.items():
                if not value:
                    yield f"the figure of code cell {number} has no {key}"
        elif re.search(r"\bplt\.show\(\)", cell.source) and "remove-output" not in tags(
            cell
        ):
            yield (
                f"code cell {number} shows a figure without a name and a caption: "
                "give it `mystnb: figure:` metadata"
            )
    if n_figures == 0:
        yield "has no figure"


def repeated_labels(chapters: Iterable[Chapter]) -> dict[str, list[str]]:
    """Labels defined more than once in the book: {label: chapters}."""
    where: dict[str, list[str]] = {}
    for chapter in chapters:
        for label in labels(chapter):
            where.setdefault(label, []).append(chapter.name)
    return {label: names for label, names in where.items() if len(names) > 1}
