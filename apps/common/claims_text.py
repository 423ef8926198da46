"""Claims and their verdicts as text: the whole list, or one paper with its values."""

import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from apps.common.verdicts import counted

Row = Mapping[str, Any]
INDENT = 15  # the longest verdict and two spaces


def overview(rows: Sequence[Row]) -> list[str]:
    """Every claim with its verdict and the interval it rests on, by paper."""
    lines: list[str] = []
    for row, is_first in by_paper(rows):
        if is_first:
            lines += wrapped(f"#{row['paper']} {row['title']}")
        name = "" if row["id"] == str(row["paper"]) else f" ({row['id']})"
        lines += wrapped(row["statement"] + name, row["verdict"])
        lines += wrapped(basis(row)) if basis(row) else []
    counts = Counter(row["verdict"] for row in rows).most_common()
    lines += ["", ", ".join(f"{n} {verdict}" for verdict, n in counts)]
    papers = [row["paper"] for row in rows if row["value"] is not None]
    if papers and papers[0] is not None:
        said = f"sparsekit claims {papers[0]}: a paper's rules, values and seeds"
        lines.append(said)
    return lines


def by_paper(rows: Sequence[Row]) -> Iterator[tuple[Row, bool]]:
    """Each row, and whether it is the first of its paper."""
    last = None
    for row in rows:
        is_first = row["paper"] not in (None, last)
        last = row["paper"] if is_first else last
        yield row, is_first


def basis(row: Row) -> str:
    """What the verdict rests on, or why there is none, in a line."""
    if row["value"] is None:
        return row["why"] or ""
    found = f"{row['value']:.4g} {ends(row)}, rule {row['rule']}, "
    found += f"{counted(row['seeds'])}, {row['profile']}, {row['source']}"
    return found if row["why"] is None else f"{found}: {row['why']}"


def ends(row: Row) -> str:
    """The interval of a row."""
    if row["low"] is None:
        return "no interval"
    return f"[{row['low']:.4g}, {row['high']:.4g}]"


def details(rows: Sequence[Row]) -> list[str]:
    """Claims one by one: rule, interval, value of each seed, and their source."""
    lines: list[str] = []
    for row, is_first in by_paper(rows):
        if is_first:
            lines += wrapped(f"#{row['paper']} {row['title']} (part {row['part']})")
        lines += ["", f"{row['verdict']} ({row['id']})", *wrapped(row["statement"])]
        for name, text in facts(row).items():
            if text is not None:
                lines += wrapped(text, name, first=2)
    return lines


def facts(row: Row) -> dict[str, str | None]:
    """What is known of a claim, as text; None where it does not apply."""
    needed = measured = values = data = None
    if row["rule"] is not None:
        least = f"from {counted(row['min_seeds'])}, {row['min_profile']}"
        needed = f"{row['metric']} {row['rule']}, {least}"
    if row["value"] is not None:
        measured = f"{row['value']:.4g} {ends(row)}, mean and 95 % interval"
        values = "  ".join(f"{value:.4g}" for value in row["values"])
        known = (row["source"], row["profile"], row["date"], row["device"])
        about = ", ".join(str(one) for one in (*known, row["commit"]) if one)
        data = f"{row['data']} ({about})"
    return {
        "paper says": row["paper_value"],
        "reference": row.get("reference"),
        "rule": needed,
        "measured": measured,
        "values": values and f"{values}  ({counted(row['seeds'])})",
        "why": row["why"],
        "to change": row["would_change"],
        "chapter": row["chapter"],
        "data": data,
    }


def wrapped(text: str, name: str = "", first: int = 0) -> list[str]:
    """Text at the terminal's width, at most 88, behind a name in a column."""
    width = min(shutil.get_terminal_size((80, 24)).columns, 88)
    if text.startswith("#"):
        return textwrap.wrap(text, width, subsequent_indent=" " * 4)
    start = f"{'':{first}}{name:{INDENT - first}}"
    indent = " " * INDENT
    return textwrap.wrap(
        text, max(width, 40), initial_indent=start, subsequent_indent=indent
    )
