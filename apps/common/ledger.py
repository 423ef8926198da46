"""Claims, the measurements that decide them, and the verdicts.

A chapter records what it measured, one value a seed:

    ledger = Ledger(chapter="random-pruning", profile=profile)
    ledger.record("dense_minus_random_accuracy_at_widest", gaps, seeds=seeds)

`scoreboard()` then judges every claim of `book/claims.toml` by its rule. A verdict is
never typed: it follows from the rule and the 95 % interval over seeds.
"""

import json
import math
import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.common.claims import CLAIMS, PROFILES, Book, Claim, load_book
from apps.common.provenance import ROOT, provenance
from apps.common.statistics import Interval, mean_interval
from sparsekit import atomic

HOLDS, FAILS = "holds", "does not hold"
INCONCLUSIVE, PLANNED = "inconclusive", "planned"
OWN, STORED = "this machine", "stored"


@dataclass(frozen=True)
class Verdict:
    """What the measurements say about a claim.

    verdict: "holds", "does not hold" or "inconclusive"; interval: None without
    measurements; why: the reason of "inconclusive", None otherwise.
    """

    verdict: str
    interval: Interval | None
    why: str | None


@dataclass(frozen=True)
class Measurement:
    """Values of one metric, one a seed, and where they come from."""

    values: tuple[float, ...]
    profile: str
    source: str
    commit: str | None


def verdict(
    claim: Claim, values: Sequence[float], profile: str | None = None
) -> Verdict:
    """Judges a claim by its rule and the 95 % interval (Student t) of the values.

    "holds" if the whole interval satisfies the rule, "does not hold" if all of it
    violates the rule, else "inconclusive"; so too for fewer values than the claim's
    `min_seeds`, and for a profile below its `min_profile`.

    values: one a seed, finite. Raises ValueError for NaN or infinity.

    >>> claim = Claim("c", 1, "a gain", "gain", "> 0", "chapter")
    >>> verdict(claim, [0.2, 0.3, 0.1, 0.2, 0.3]).verdict
    'holds'
    >>> verdict(claim, [0.2, 0.3]).why
    '2 seeds, 5 are needed'
    """
    if len(values) == 0:
        return Verdict(INCONCLUSIVE, None, "no measurement yet: make book")
    interval = mean_interval(values)
    rule = claim.parsed_rule
    if profile is not None and _rank(profile) < _rank(claim.min_profile):
        why = f"measured in profile {profile}, {claim.min_profile} is needed"
    elif interval.n < claim.min_seeds:
        seeds = "1 seed" if interval.n == 1 else f"{interval.n} seeds"
        why = f"{seeds}, {claim.min_seeds} are needed"
    elif interval.n == 1:
        why = "one value has no interval"
    elif rule.satisfied(interval.low, interval.high):
        return Verdict(HOLDS, interval, None)
    elif rule.violated(interval.low, interval.high):
        return Verdict(FAILS, interval, None)
    else:
        why = f"the interval reaches across the rule's border ({claim.rule})"
    return Verdict(INCONCLUSIVE, interval, why)


class Ledger:
    """The measurements of one run of a chapter.

    Each call writes the whole file `<folder>/<profile>/<chapter>.json` anew, in one
    step, so nothing of an earlier run remains. Chapters may run side by side.

    Args:
        chapter: its file name in book/chapters, without ".md".
        profile: smoke, laptop or full.
        folder: default $SPARSEKIT_RESULTS, or build/results of the checkout.
        claims: default book/claims.toml.
        provenance: of measurements that were made elsewhere; default: here and now.
    """

    def __init__(
        self,
        chapter: str,
        profile: str,
        folder: str | Path | None = None,
        claims: str | Path | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", chapter):
            raise ValueError(
                f"chapter {chapter!r} must be a file name of letters, digits and "
                "dashes, without folder or ending"
            )
        _rank(profile)
        book = load_book(claims)
        judged = [c for c in (*book.claims, *book.findings) if c.chapter == chapter]
        self._claims = {claim.metric: claim for claim in judged}
        self.path = results_folder(folder) / profile / f"{chapter}.json"
        self.profile = profile
        self._content: dict[str, Any] = {
            "chapter": chapter,
            "profile": profile,
            "provenance": _machine(profile, provenance),
            "metrics": {},
            "notes": {},
        }

    def record(
        self,
        metric: str,
        values_per_seed: Sequence[float],
        *,
        seeds: Sequence[int] | None = None,
        **context: Any,
    ) -> None:
        """Stores the values that decide a claim; a second call replaces the first.

        values_per_seed: finite numbers, one a seed; in the claim's `min_profile` and
        above at least its `min_seeds`. seeds: which they were. context: settings to
        keep beside the values.

        Raises ValueError for a metric that no claim of this chapter has.
        """
        if metric not in self._claims:
            known = ", ".join(self._claims) or "none"
            raise ValueError(
                f"no claim of chapter {self._content['chapter']!r} in claims.toml has "
                f"the metric {metric!r}; it has: {known}. For a number that decides no "
                f"claim, use ledger.note({metric!r}, values)"
            )
        values = _finite(metric, values_per_seed)
        claim = self._claims[metric]
        enough = len(values) >= claim.min_seeds
        if not enough and _rank(self.profile) >= _rank(claim.min_profile):
            raise ValueError(
                f"{metric}: {len(values)} values, but its claim needs "
                f"{claim.min_seeds} seeds in profile {self.profile}"
            )
        self._store("metrics", metric, values, seeds, context)

    def note(
        self,
        name: str,
        values: float | Sequence[float],
        *,
        seeds: Sequence[int] | None = None,
        **context: Any,
    ) -> None:
        """Stores a number, or one a seed, that decides no claim."""
        listed = [values] if np.ndim(values) == 0 else values
        self._store("notes", name, _finite(name, listed), seeds, context)

    def _store(
        self,
        kind: str,
        name: str,
        values: list[float],
        seeds: Sequence[int] | None,
        context: Mapping[str, Any],
    ) -> None:
        entry: dict[str, Any] = {"values": values}
        if seeds is not None:
            entry["seeds"] = [int(seed) for seed in seeds]
            if len(entry["seeds"]) != len(values):
                raise ValueError(
                    f"{name}: {len(values)} values for {len(entry['seeds'])} seeds"
                )
        if context:
            entry["context"] = dict(context)
        entries = {**self._content[kind], name: entry}
        content = {**self._content, kind: entries}
        try:
            text = json.dumps(content, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name}: the context must be finite numbers, text, lists and tables "
                f"({error})"
            ) from None
        atomic.write_text(self.path, text + "\n")
        self._content = content  # only once it is on disk


def scoreboard(
    claims: str | Path | None = None, results: str | Path | None = None
) -> list[dict[str, Any]]:
    """One row for each claim of a paper with a chapter, one for each other paper.

    Keys: id, paper, statement, verdict, metric, value, low, high, seeds, chapter,
    profile; and rule, paper_value, why, source, commit. A paper of which no chapter
    exists is "planned". Sorted by paper, then as in claims.toml.

    Raises ValueError for a damaged file of claims or measurements.
    """
    book = load_book(claims)
    rows = []
    for paper in book.papers:
        own = [claim for claim in book.claims if claim.paper == paper.index]
        if any(book.has_chapter(claim.chapter) for claim in own):
            rows += [_row(claim, book, results) for claim in own]
        else:
            planned = Claim(str(paper.index), paper.index, paper.claim, "", "", "")
            rows.append(_fields(planned, PLANNED) | _NOTHING)
    return rows


def findings(
    claims: str | Path | None = None, results: str | Path | None = None
) -> list[dict[str, Any]]:
    """Rows like `scoreboard`'s for what chapters show about methods of no paper here.

    `paper` is None; `reference` says where the statement is from.
    """
    book = load_book(claims)
    return [
        _row(claim, book, results) | {"reference": claim.reference}
        for claim in book.findings
    ]


_NOTHING: dict[str, Any] = {
    "value": None, "low": None, "high": None, "seeds": 0,
    "profile": None, "why": None, "source": None, "commit": None,
}  # fmt: skip


def _fields(claim: Claim, verdict: str) -> dict[str, Any]:
    return {
        "id": claim.id,
        "paper": claim.paper,
        "statement": claim.statement,
        "verdict": verdict,
        "metric": claim.metric or None,
        "chapter": claim.chapter or None,
        "rule": claim.rule or None,
        "paper_value": claim.paper_value,
    }


def _row(claim: Claim, book: Book, results: str | Path | None) -> dict[str, Any]:
    if not book.has_chapter(claim.chapter):
        why = f"the chapter {claim.chapter} is not written yet"
        return _fields(claim, INCONCLUSIVE) | _NOTHING | {"why": why}
    found = measurement(claim, results_folder(results), book.path.parent / "results")
    if found is None:
        judged = verdict(claim, [])
        return _fields(claim, judged.verdict) | _NOTHING | {"why": judged.why}
    judged = verdict(claim, found.values, found.profile)
    interval = judged.interval
    assert interval is not None  # there are values
    return _fields(claim, judged.verdict) | {
        "value": interval.value,
        "low": None if math.isnan(interval.low) else interval.low,
        "high": None if math.isnan(interval.high) else interval.high,
        "seeds": interval.n,
        "profile": found.profile,
        "why": judged.why,
        "source": found.source,
        "commit": found.commit,
    }


def measurement(claim: Claim, own: Path, stored: Path) -> Measurement | None:
    """The values that decide a claim; None if nobody measured it.

    This machine's of the claim's profile or above; else stored ones of such a profile;
    else this machine's of a lower profile; else stored ones of a lower profile. Of
    several profiles the highest.
    """
    least = _rank(claim.min_profile)
    high = [p for p in reversed(PROFILES) if _rank(p) >= least]
    low = [p for p in reversed(PROFILES) if _rank(p) < least]
    for profiles in (high, low):
        for folder, source in ((own, OWN), (stored, STORED)):
            for profile in profiles:
                path = folder / profile / f"{claim.chapter}.json"
                found = read_values(path, claim.metric)
                if found is not None:
                    return Measurement(found[0], profile, source, found[1])
    return None


def read_values(path: Path, metric: str) -> tuple[tuple[float, ...], str | None] | None:
    """Values of a metric and the commit they are of; None if the file has none.

    Raises ValueError for a damaged file.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error
    try:
        content = json.loads(text)
        entry = content["metrics"].get(metric)
        commit = content["provenance"].get("commit")
        if commit is not None and content["provenance"].get("dirty"):
            commit = f"{commit}+"  # files differed from the commit
        if entry is None:
            return None
        return tuple(_finite(metric, entry["values"])), commit
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise _damaged(path, reason) from error


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} is damaged ({reason}): delete it and run "
        f"`make book PROFILE={path.parent.name} CHAPTER={path.stem}` again"
    )


def results_folder(folder: str | Path | None = None) -> Path:
    """Where this machine's measurements are: argument, environment, or build/results.

    An empty SPARSEKIT_RESULTS counts as not set.
    """
    chosen = folder or os.environ.get("SPARSEKIT_RESULTS") or ROOT / "build" / "results"
    return Path(chosen)


def _machine(profile: str, known: Mapping[str, Any] | None) -> dict[str, Any]:
    """Provenance without the command: its paths have no place in stored results."""
    full = provenance(profile) if known is None else known
    return {key: value for key, value in full.items() if key != "command"}


def _finite(name: str, values: Any) -> list[float]:
    """Numbers as a list; ValueError for none, for NaN, for anything else."""
    listed = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(listed, str | Mapping) or not hasattr(listed, "__iter__"):
        raise ValueError(f"{name}: values must be a list of numbers, got {values!r}")
    # A list may hold numpy scalars or tensors of one element.
    plain = [v.item() if hasattr(v, "item") else v for v in listed]
    if not plain:
        raise ValueError(f"{name}: no values; record one a seed")
    for position, value in enumerate(plain):
        if not _is_finite(value):
            shown = reprlib.repr(value)
            raise ValueError(
                f"{name}: value {position} is {shown}, not a finite number"
            )
    return [float(value) for value in plain]


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False


def _rank(profile: str) -> int:
    if profile not in PROFILES:
        raise ValueError(f"profile {profile!r} is unknown; use {', '.join(PROFILES)}")
    return PROFILES.index(profile)


__all__ = [
    "CLAIMS", "Claim", "Ledger", "Measurement", "Verdict", "findings", "scoreboard",
    "verdict",
]  # fmt: skip
