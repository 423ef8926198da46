"""The scoreboard: every claim of `book/claims.toml`, judged by its rule.

A verdict is never typed: it follows from the rule and the 95 % interval over seeds of
what the ledgers hold.
"""

from pathlib import Path
from typing import Any

from apps.common.claims import Book, Claim, load_book
from apps.common.ledger import Measurement, measurement, results_folder
from apps.common.provenance import ROOT
from apps.common.verdicts import (
    INCONCLUSIVE,
    PLANNED,
    Verdict,
    verdict,
    would_change,
)


def scoreboard(
    claims: str | Path | None = None, results: str | Path | None = None
) -> list[dict[str, Any]]:
    """One row for each claim of a paper with a chapter, one for each other paper.

    Keys: id, paper, title, part, statement, paper_value, chapter, metric, rule,
    min_profile, min_seeds; verdict, why (the reason of "inconclusive"), would_change;
    value, low, high, seeds (how many), values, profile, source, device, date, commit,
    data (the file they are in). What does not apply is None. A paper of which no
    chapter exists is "planned". Sorted by paper, then as in claims.toml.

    Raises ValueError for a damaged file of claims or measurements.
    """
    book = load_book(claims)
    rows = []
    for paper in book.papers:
        about = {"title": paper.title, "part": paper.part}
        own = [claim for claim in book.claims if claim.paper == paper.index]
        if any(book.has_chapter(claim.chapter) for claim in own):
            rows += [_row(claim, book, results) | about for claim in own]
        else:
            planned = Claim(str(paper.index), paper.index, paper.claim, "", "", "")
            unknown = {"min_profile": None, "min_seeds": None}
            needed = {"would_change": "a chapter that measures it"}
            fields = _fields(planned) | unknown | about
            rows.append(fields | _judged(Verdict(PLANNED, None, None)) | needed)
    return rows


def findings(
    claims: str | Path | None = None, results: str | Path | None = None
) -> list[dict[str, Any]]:
    """Rows like `scoreboard`'s for what chapters show about methods of no paper here.

    `paper`, `title` and `part` are None; `reference` says where the statement is from.
    """
    book = load_book(claims)
    about = {"title": None, "part": None}
    return [
        _row(claim, book, results) | about | {"reference": claim.reference}
        for claim in book.findings
    ]


def _fields(claim: Claim) -> dict[str, Any]:
    return {
        "id": claim.id,
        "paper": claim.paper,
        "statement": claim.statement,
        "paper_value": claim.paper_value,
        "chapter": claim.chapter or None,
        "metric": claim.metric or None,
        "rule": claim.rule or None,
        "min_profile": claim.min_profile,
        "min_seeds": claim.min_seeds,
    }


def _judged(found: Verdict, values: Measurement | None = None) -> dict[str, Any]:
    """The verdict, and the measurements it rests on."""
    ends = {"value": None, "low": None, "high": None}
    if found.interval is not None:
        ends = {k: v for k, v in found.interval.plain().items() if k != "n"}
    return {
        "verdict": found.verdict,
        "why": found.why,
        **ends,
        "seeds": found.interval.n if found.interval is not None else 0,
        "values": None if values is None else list(values.values),
        "profile": None if values is None else values.profile,
        "source": None if values is None else values.source,
        "device": None if values is None else values.device,
        "date": None if values is None else values.date,
        "commit": None if values is None else values.commit,
        "data": None if values is None else shown(values.path),
    }


def _row(claim: Claim, book: Book, results: str | Path | None) -> dict[str, Any]:
    if not book.has_chapter(claim.chapter):
        why = f"the chapter {claim.chapter} is not written yet"
        judged, found = Verdict(INCONCLUSIVE, None, why), None
        change = f"the chapter {claim.chapter}"
    else:
        own, stored = results_folder(results), book.path.parent / "results"
        found = measurement(claim, own, stored)
        values, profile = (found.values, found.profile) if found else ((), None)
        judged = verdict(claim, values, profile)
        change = would_change(claim, values, profile)
    return _fields(claim) | _judged(judged, found) | {"would_change": change}


def shown(path: Path) -> str:
    """A file of measurements, from the root of the checkout if it lies there."""
    return (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix()
