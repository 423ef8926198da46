"""The scoreboard: a page and a summary, made from the ledger and nothing else."""

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

VERDICTS = ("holds", "does not hold", "inconclusive", "planned")
MARK = "<!-- scoreboard -->"
Row = Mapping[str, Any]


def read_papers(claims: Path) -> dict[int, dict[str, Any]]:
    """The `[[paper]]` rows of claims.toml by index: title, claim, part."""
    table = tomllib.loads(claims.read_text("utf-8"))
    return {row["index"]: row for row in table.get("paper", [])}


def number(value: float | None) -> str:
    """Three significant digits: 0.0123, 1.23, 123; an en dash for no value."""
    if value is None:
        return "–"
    return f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"


def measured(row: Row) -> str:
    """`value [low, high]`, or an en dash."""
    if row.get("value") is None:
        return "–"
    if row.get("low") is None or row.get("high") is None:
        return number(row["value"])
    interval = f"[{number(row['low'])}, {number(row['high'])}]"
    return f"{number(row['value'])} {interval}"


def cell(text: object) -> str:
    """Text for a Markdown table's cell: plain, on one line."""
    plain = " ".join(str(text).split())
    for mark in "\\`*_[]|<>$":
        plain = plain.replace(mark, f"\\{mark}")
    return plain


def counts(rows: Iterable[Row]) -> str:
    """`3 hold, 1 does not hold, 2 inconclusive, 41 planned`."""
    count = Counter(row["verdict"] for row in rows)
    unknown = set(count) - set(VERDICTS)
    if unknown:
        raise ValueError(f"unknown verdicts {sorted(unknown)}; known: {VERDICTS}")
    return ", ".join(f"{count[v]} {v}" for v in VERDICTS)


def table(rows: Sequence[Row], papers: Mapping[int, Row], pages: set[str]) -> str:
    """The table of all papers, claims with a chapter first.

    A row links to its chapter if that page is in this build.
    """
    lines = [
        "| paper | claim | ours, 95 % interval | seeds | profile | source | verdict "
        "| chapter |",
        "|---|---|---|---|---|---|---|---|",
    ]
    order = sorted(rows, key=lambda r: (r["verdict"] == "planned", r["paper"]))
    for row in order:
        paper = papers.get(row["paper"], {})
        verdict = row["verdict"]
        css = verdict.replace(" ", "-")
        name = row.get("chapter")
        link = f"[{cell(name)}](chapters/{name}.ipynb)" if name in pages else "–"
        why = f"<br>{cell(row['why'])}" if row.get("why") else ""
        title = f"{row['paper']}. {cell(paper.get('title', ''))}"
        part = f" (part {cell(paper['part'])})" if paper.get("part") else ""
        theirs = (
            f"<br>paper: {cell(row['paper_value'])}" if row.get("paper_value") else ""
        )
        lines.append(
            f"| {title}{part} | {cell(row['statement'])}{theirs} | {measured(row)} "
            f"| {row.get('seeds') or '–'} | {row.get('profile') or '–'} "
            f"| {row.get('source') or '–'} | [{verdict}]{{.verdict .{css}}}"
            f"{why if verdict != 'planned' else ''} | {link} |"
        )
    return "\n".join(lines)


def page(template: str, rows: Sequence[Row], papers: Mapping, pages: set[str]) -> str:
    """The scoreboard page: the template with the table in place of its mark."""
    if template.count(MARK) != 1:
        raise ValueError(f"scoreboard.md needs one line {MARK!r} for the table")
    return template.replace(
        MARK, f"**{counts(rows)}**\n\n{table(rows, papers, pages)}\n"
    )


def summary(rows: Sequence[Row]) -> str:
    """For the terminal: the counts, then one line for each built claim."""
    lines = [f"Scoreboard: {counts(rows)}"]
    for row in rows:
        if row["verdict"] == "planned":
            continue
        seeds = f", {row['seeds']} seeds" if row.get("seeds") else ""
        where = f" ({row['profile']}{seeds})" if row.get("profile") else ""
        rule = f", rule: {row['rule']}" if row.get("rule") else ""
        lines.append(
            f"  {row['verdict']:<14} #{row['paper']} {row['id']}: "
            f"{measured(row)}{where}{rule}"
        )
    return "\n".join(lines)
