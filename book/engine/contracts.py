"""The page of contracts: what the tests hold every verb and every method to.

Their tables are book/results/contracts/NAME.json, which the tests write and compare
with themselves: {"what": text, "columns": {name: meaning}, "rows": {name: {column:
"yes", "CI" or "– reason"}}}.
"""

import json
from pathlib import Path
from typing import Any

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
    lines = [cell(content["what"]), ""]
    lines += [f"{cell(name)}\n: {cell(meaning)}\n" for name, meaning in columns.items()]
    lines.append("| | " + " | ".join(map(cell, columns)) + " |")
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, row in content["rows"].items():
        shown = [_cell(row[column], notes) for column in columns]
        lines.append(f"| {cell(name)} | " + " | ".join(shown) + " |")
    lines.append("")
    lines += [f"{i}. {cell(note)}" for i, note in enumerate(notes, 1)]
    return "\n".join(lines) + "\n"


def _cell(text: str, notes: list[str]) -> str:
    """A word, or a dash with the raised number of the note that gives the reason."""
    if not text.startswith("–"):
        return cell(text)
    reason = text.removeprefix("–").strip()
    if reason and reason not in notes:
        notes.append(reason)
    number = str(notes.index(reason) + 1) if reason else ""
    return "–" + number.translate(RAISED)
