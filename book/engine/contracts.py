"""The page of contracts: what the tests hold every verb and every method to.

Their tables are book/results/contracts/NAME.json, which the tests write and compare
with themselves: {"what": text, "columns": {name: meaning}, "rows": {name: {column:
"yes", "CI" or "– reason"}}}.
"""

import json
import re
from pathlib import Path
from typing import Any

from apps.common.tables import unbroken
from book.engine.scoreboard import cell

TABLES = ("cli", "methods", "processes", "mutation")
RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def page(template: str, folder: Path) -> str:
    """The template with a table in place of each mark, <!-- cli --> and so on."""
    for name in TABLES:
        mark = f"<!-- {name} -->"
        if template.count(mark) != 1:
            raise ValueError(f"contracts.md needs one line {mark!r} for a table")
        content = json.loads((folder / f"{name}.json").read_text("utf-8"))
        template = template.replace(mark, table(content))
    return template


def table(content: dict[str, Any]) -> str:
    """What each column means, the rows, and the reasons as notes below them."""
    columns, notes = content["columns"], []
    lines = [said(content["what"]), ""]
    lines += [f"{said(name)}\n: {said(meaning)}\n" for name, meaning in columns.items()]
    lines.append("| | " + " | ".join(map(said, columns)) + " |")
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, row in content["rows"].items():
        shown = [_cell(row[column], notes) for column in columns]
        lines.append(f"| {said(name)} | " + " | ".join(shown) + " |")
    lines.append("")
    lines += [f"{i}. {said(note)}" for i, note in enumerate(notes, 1)]
    return "\n".join(lines) + "\n"


def said(text: str) -> str:
    """Text for a table in which `code` stays code and intervals hold together."""

    def as_code(found: re.Match[str]) -> str:
        plain = re.sub(r"\\(.)", r"\1", found[1])
        return f"`{plain}`"

    return re.sub(r"\\`(.+?)\\`", as_code, unbroken(cell(text)))


def _cell(text: str, notes: list[str]) -> str:
    """A word, or a dash with the raised number of the note that gives the reason."""
    if not text.startswith("–"):
        return said(text)
    reason = text.removeprefix("–").strip()
    if reason and reason not in notes:
        notes.append(reason)
    number = str(notes.index(reason) + 1) if reason else ""
    return "–" + number.translate(RAISED)
