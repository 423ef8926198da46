"""The book's claims: `book/claims.toml`, checked, and the rules that judge them.

[[paper]]                      every paper of the list, once
index, title, claim, part

[[claim]]                      a paper's claim, and what decides it here
id, paper, statement, metric, rule, chapter
paper_value, min_profile (laptop), min_seeds (5)      optional

[[finding]]                    the same about a method of no paper in the list
id, statement, metric, rule, chapter, reference
"""

import math
import os
import re
import tomllib
from collections import Counter
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from apps.common.provenance import ROOT
from sparsekit.spelling import choice

CLAIMS = ROOT / "book" / "claims.toml"
PROFILES = ("smoke", "laptop", "full")
N_PAPERS = 45
RULE_FORMS = '"> 0", ">= 0.5", "< 0.01", "<= 2" or "in [0.9, 1.1]"'
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class Rule:
    """An interval of allowed values; `open` excludes its finite end."""

    low: float
    high: float
    open: bool

    def satisfied(self, low: float, high: float) -> bool:
        """Whether every value from low to high is allowed; False for nan."""
        if self.open:
            return self.low < low and high < self.high
        return self.low <= low and high <= self.high

    def violated(self, low: float, high: float) -> bool:
        """Whether no value from low to high is allowed; False for nan."""
        if self.open:
            return high <= self.low or low >= self.high
        return high < self.low or low > self.high


def parse_rule(text: str) -> Rule:
    """A rule from its text.

    Raises ValueError that lists the valid forms.

    >>> parse_rule("< 0.01").violated(0.01, 0.02), parse_rule("in [1, 2]").low
    (True, 1.0)
    """
    one = re.fullmatch(rf"\s*(>=|<=|>|<)\s*({_NUMBER})\s*", text)
    if one and math.isfinite(float(one[2])):
        bound, strict = float(one[2]), "=" not in one[1]
        if one[1].startswith(">"):
            return Rule(bound, math.inf, strict)
        return Rule(-math.inf, bound, strict)
    two = re.fullmatch(rf"\s*in\s*\[\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\]\s*", text)
    if two and -math.inf < float(two[1]) <= float(two[2]) < math.inf:
        return Rule(float(two[1]), float(two[2]), open=False)
    raise ValueError(f"rule {text!r} is not understood; write {RULE_FORMS}")


@dataclass(frozen=True)
class Paper:
    """A row of the list of papers. part: of the book, in Roman numerals."""

    index: int
    title: str
    claim: str
    part: str


@dataclass(frozen=True)
class Claim:
    """A statement, and the measurement and rule that decide it.

    paper: 1 to 45, None for a finding. metric: what the chapter records. rule: text,
    applied to the interval over seeds. paper_value: what the paper reports, as text.
    """

    id: str
    paper: int | None
    statement: str
    metric: str
    rule: str
    chapter: str
    paper_value: str | None = None
    min_profile: str = "laptop"
    min_seeds: int = 5
    reference: str | None = None

    @property
    def parsed_rule(self) -> Rule:
        return parse_rule(self.rule)


@dataclass(frozen=True)
class Book:
    """What claims.toml says; `path` is the file."""

    path: Path
    papers: tuple[Paper, ...]
    claims: tuple[Claim, ...]
    findings: tuple[Claim, ...]

    def has_chapter(self, name: str) -> bool:
        """Whether the chapter is written."""
        return (self.path.parent / "chapters" / f"{name}.md").is_file()


def load_claims(path: str | Path | None = None) -> tuple[Claim, ...]:
    """The claims of papers; `path` as for `load_book`."""
    return load_book(path).claims


def load_book(path: str | Path | None = None) -> Book:
    """Papers, claims and findings of a claims.toml, papers sorted by index.

    path: default $SPARSEKIT_CLAIMS, or book/claims.toml of the checkout. Raises
    FileNotFoundError, and ValueError that names the file, the entry and the fix.
    """
    path = Path(path or os.environ.get("SPARSEKIT_CLAIMS") or CLAIMS)
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no claims at {path}: the book is not part of the installed package; work "
            "in a checkout, or set SPARSEKIT_CLAIMS to a claims.toml"
        ) from None
    except (ValueError, RecursionError) as error:  # bytes, syntax, deep nesting
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    try:
        return _book(path, table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _book(path: Path, table: dict[str, Any]) -> Book:
    unknown = sorted(set(table) - {"paper", "claim", "finding"})
    if unknown:
        raise ValueError(
            f"unknown table {unknown[0]!r}; write [[paper]], [[claim]] or [[finding]]"
        )
    papers = [_entry(Paper, row, "paper") for row in _rows(table, "paper")]
    claims = [_claim(row, "claim") for row in _rows(table, "claim")]
    found = [_claim(row, "finding") for row in _rows(table, "finding")]
    _refuse_repeated("paper", [str(paper.index) for paper in papers])
    _refuse_repeated("id", [claim.id for claim in (*claims, *found)])
    known = {paper.index for paper in papers}
    for paper in papers:
        _check_index("paper", paper.index)
    for claim in claims:
        _check_index(f"claim {claim.id!r}: paper", claim.paper)
        if claim.paper not in known:
            raise ValueError(
                f"claim {claim.id!r} is of paper {claim.paper}, which has no [[paper]]"
            )
    papers.sort(key=lambda paper: paper.index)
    return Book(path, tuple(papers), tuple(claims), tuple(found))


def _claim(row: Any, kind: str) -> Claim:
    fixed = {"paper": None} if kind == "finding" else {}
    if isinstance(row, dict) and set(row) & set(fixed):
        raise ValueError(
            f"finding {row.get('id')!r} is of no paper: make it a [[claim]]"
        )
    allowed = {"paper_value", "min_profile", "min_seeds"}
    allowed |= {"reference"} if kind == "finding" else {"paper"}
    claim = _entry(Claim, row, kind, fixed, allowed)
    try:
        claim.parsed_rule  # noqa: B018  (raises)
    except ValueError as error:
        raise ValueError(f"{kind} {claim.id!r}: {error}") from None
    if claim.min_profile not in PROFILES:
        refused = f"{kind} {claim.id!r}: min_profile {claim.min_profile!r} is unknown"
        raise ValueError(choice(refused, claim.min_profile, PROFILES))
    if claim.min_seeds < 1:
        raise ValueError(f"{kind} {claim.id!r}: min_seeds must be at least 1")
    return claim


def _entry(
    cls: type, row: Any, kind: str, fixed: dict[str, Any] | None = None,
    optional: set[str] | None = None,
) -> Any:  # fmt: skip
    """A dataclass from a TOML table: every key known, none missing, types right."""
    fixed = fixed or {}
    if not isinstance(row, dict):
        raise ValueError(f"{kind} must be a table, [[{kind}]], got {row!r}")
    name = f"{kind} {row.get('id', row.get('index', '?'))!r}"
    required = {f.name for f in fields(cls) if f.default is MISSING} - set(fixed)
    known = required | (optional or set())
    for key in row:
        if key not in known:
            refused = f"{name}: unknown key {key!r}"
            raise ValueError(choice(refused, key, sorted(known), "valid:"))
    for key in sorted(required - set(row)):
        raise ValueError(f"{name}: {key} is missing")
    for key, value in row.items():
        kind_of = int if key in ("index", "paper", "min_seeds") else str
        if not isinstance(value, kind_of) or isinstance(value, bool):
            raise ValueError(f"{name}: {key} must be {kind_of.__name__}, got {value!r}")
        if value == "":
            raise ValueError(f"{name}: {key} is empty")
    return cls(**fixed, **row)


def _rows(table: dict[str, Any], kind: str) -> list[Any]:
    rows = table.get(kind, [])
    if not isinstance(rows, list):
        raise ValueError(f"write [[{kind}]] with two brackets on either side")
    return rows


def _check_index(name: str, index: int | None) -> None:
    if index is None or not 1 <= index <= N_PAPERS:
        raise ValueError(f"{name} must be 1 to {N_PAPERS}, got {index}")


def _refuse_repeated(name: str, values: list[str]) -> None:
    repeated = [value for value, n in Counter(values).items() if n > 1]
    if repeated:
        raise ValueError(f"{name} {repeated[0]!r} occurs twice")
