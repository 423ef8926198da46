"""The scoreboard: a page and a summary, made from the ledger and nothing else."""

import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

VERDICTS = ("holds", "does not hold", "inconclusive", "planned")
PAPERS, FINDINGS = "<!-- papers -->", "<!-- findings -->"
TINY = 1e-12  # what rounding leaves of a difference of equal numbers
Row = Mapping[str, Any]


def read_papers(claims: Path) -> dict[int, dict[str, Any]]:
    """The `[[paper]]` rows of claims.toml by index: title, claim, part."""
    table = tomllib.loads(claims.read_text("utf-8"))
    return {row["index"]: row for row in table.get("paper", [])}


def read_citations(bibliography: Path) -> dict[int, str]:
    """Citation keys by paper, from the field `paper` of references.bib."""
    text = bibliography.read_text("utf-8")
    entry = re.compile(r"^@\w+\{([^,\s]+),(.*?)^\}", re.MULTILINE | re.DOTALL)
    number = re.compile(r"^\s*paper\s*=\s*\{(\d+)\}", re.MULTILINE)
    found = ((key, number.search(body)) for key, body in entry.findall(text))
    return {int(paper[1]): key for key, paper in found if paper}


def number(value: float | None) -> str:
    """Three significant digits: 0.0123, 1.23, 123; an en dash for no value."""
    if value is None:
        return "–"
    if abs(value) < TINY:
        value = 0.0
    return f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"


def measured(row: Row) -> str:
    """`value [low, high]` with as many decimals each, or an en dash.

    Half of the interval has two digits, no number more than four, and an end that is
    not 0 is not shown as 0.
    """
    value, low, high = (finite(row.get(key)) for key in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return number(value)
    largest = max(abs(value), abs(low), abs(high))
    half = (high - low) / 2
    finest = 1 - exponent(half) if half else math.inf
    decimals = int(max(0, min(finest, 3 - exponent(largest))))
    while decimals < 9 and any(end and not round(end, decimals) for end in (low, high)):
        decimals += 1  # 0 is the border of most rules
    # Adding 0 after rounding leaves no "-0.0".
    ends = (f"{round(v, decimals) + 0.0:,.{decimals}f}" for v in (value, low, high))
    return "{} [{}, {}]".format(*ends)


def exponent(value: float) -> int:
    """The power of ten of a number's first digit; 0 for 0."""
    return math.floor(math.log10(value)) if value > 0 else 0


def finite(value: float | None) -> float | None:
    """The number, or None for none, nan and infinity: one seed has no interval."""
    return value if value is not None and math.isfinite(value) else None


def cell(text: object) -> str:
    """Text for a Markdown table's cell: plain, on one line; `> 0` does not break."""
    plain = " ".join(str(text).split())
    plain = re.sub(r"([<>]=?) (?=\S)", "\\1\N{NO-BREAK SPACE}", plain)
    for mark in "\\`*_[]|<>$":
        plain = plain.replace(mark, f"\\{mark}")
    return plain


def counts(rows: Iterable[Row]) -> str:
    """`3 hold, 1 does not hold, 2 are inconclusive`."""
    count = Counter(row["verdict"] for row in rows)
    unknown = set(count) - set(VERDICTS)
    if unknown:
        raise ValueError(f"unknown verdicts {sorted(unknown)}; known: {VERDICTS}")
    holds, fails, unsure = (count[verdict] for verdict in VERDICTS[:3])
    return (
        f"{holds} {'holds' if holds == 1 else 'hold'}, "
        f"{fails} {'does' if fails == 1 else 'do'} not hold, "
        f"{unsure} {'is' if unsure == 1 else 'are'} inconclusive"
    )


def told(rows: Sequence[Row]) -> str:
    """How many claims of how many papers are tested, and the verdicts on them."""
    tested = [row for row in rows if row["verdict"] != "planned"]
    n_papers = len({row["paper"] for row in rows})
    n_tested = len({row["paper"] for row in tested})
    left = n_papers - n_tested
    return (
        f"Claims of {n_tested} of the {n_papers} papers are tested so far, "
        f"{len(tested)} in all: {counts(tested)}. The other {left} "
        f"{'has' if left == 1 else 'have'} no chapter yet: nothing of "
        f"{'it' if left == 1 else 'theirs'} is measured."
    )


def table(
    rows: Sequence[Row],
    papers: Mapping[int, Row],
    pages: set[str],
    citations: Mapping[int, str],
) -> str:
    """A table of claims, those with a chapter first, then by paper.

    A row links to its chapter if that page is in this build, and to its evidence.
    """
    lines = [
        "{.scoreboard}",
        "| verdict | paper | claim | ours, with 95 % interval | chapter |",
        "|---|---|---|---|---|",
    ]
    order = sorted(rows, key=lambda r: (r["verdict"] == "planned", r["paper"] or 0))
    for row in order:
        cells = [badge(row), source(row, papers, citations), claim(row), origin(row)]
        lines.append(f"| {' | '.join([*cells, links(row, pages)])} |")
    return "\n".join(lines)


def links(row: Row, pages: set[str]) -> str:
    """To the chapter, and to the rule, the values and their file."""
    found = []
    if row.get("chapter") in pages:
        found.append(f"[{cell(row['chapter'])}](chapters/{row['chapter']}.ipynb)")
    if row["verdict"] != "planned":
        found.append(f"{{ref}}`rule and data <{evidence_label(row)}>`")
    return "<br>".join(found) or "–"


def evidence_label(row: Row) -> str:
    """The label of a claim's section on the page of evidence."""
    return f"claim-{row['id']}"


def badge(row: Row) -> str:
    """The verdict as a word in its colour, and why it is no other."""
    verdict = row["verdict"]
    word = f"[{verdict}]{{.verdict .{verdict.replace(' ', '-')}}}"
    return f"{word}<br>{cell(row['why'])}" if row.get("why") else word


def source(row: Row, papers: Mapping[int, Row], citations: Mapping[int, str]) -> str:
    """Number, title, citation and part of the paper; a finding's reference."""
    if row["paper"] is None:
        return cell(row.get("reference") or "a question of this book")
    paper = papers[row["paper"]]
    text = f"{row['paper']}. {cell(paper['title'])}"
    if row["paper"] in citations:
        text += f" {{cite}}`{citations[row['paper']]}`"
    return f"{text}<br>part {cell(paper['part'])}"


def claim(row: Row) -> str:
    """The statement, the paper's own number, and the rule."""
    text = cell(row["statement"])
    if row.get("paper_value"):
        text += f"<br>In the paper: {cell(row['paper_value'])}"
    if row.get("rule"):
        text += f"<br>Rule: {cell(row['metric'])} {cell(row['rule'])}"
    return text


def origin(row: Row) -> str:
    """The measurement, where it comes from, and what would change the verdict."""
    facts = [
        f"{row['seeds']} seeds" if row.get("seeds") else "",
        row.get("profile") if row.get("value") is not None else "",
        row.get("source"),
    ]
    if row["verdict"] == "planned":
        return "no chapter yet, so nothing is measured"
    told = ", ".join(cell(fact) for fact in facts if fact)
    lines = [measured(row), told]
    if row.get("would_change"):
        lines.append(f"Would change it: {cell(row['would_change'])}")
    return "<br>".join(line for line in lines if line)


def page(
    template: str,
    rows: Sequence[Row],
    papers: Mapping[int, Row],
    pages: set[str],
    citations: Mapping[int, str],
) -> str:
    """The scoreboard page: the template with the tables in place of its marks."""
    for mark in (PAPERS, FINDINGS):
        if template.count(mark) != 1:
            raise ValueError(f"scoreboard.md needs one line {mark!r} for a table")
    of_papers = [row for row in rows if row["paper"] is not None]
    others = [row for row in rows if row["paper"] is None]
    listed = table(of_papers, papers, pages, citations)
    text = f"**{told(of_papers)}**\n\n{listed}\n"
    found = table(others, papers, pages, citations) if others else "None yet.\n"
    return template.replace(PAPERS, text).replace(FINDINGS, found)


def summary(rows: Sequence[Row]) -> str:
    """For the terminal: the counts, then one line for each claim with a chapter."""
    of_papers = [row for row in rows if row["paper"] is not None]
    lines = [f"Scoreboard: {counts(of_papers)}"]
    for row in rows:
        if row["verdict"] == "planned":
            continue
        seeds = f", {row['seeds']} seeds" if row.get("seeds") else ""
        facts = f"{row['profile']}{seeds}; " if row.get("profile") else ""
        paper = f"#{row['paper']}" if row["paper"] else "–"
        why = f"; {row['why']}" if row.get("why") else ""
        lines.append(
            f"  {row['verdict']:<14}{paper:<4}{row['id']}: {measured(row)} "
            f"({facts}rule: {row['rule']}{why})"
        )
    return "\n".join(lines)
