"""Measurements that decide claims: a file for each chapter and profile.

A chapter records what it measured, one value a seed:

    ledger = Ledger(chapter="random-pruning", profile=profile)
    ledger.record("dense_minus_random_accuracy_at_widest", gaps, seeds=seeds)

`apps.common.scoreboard` then judges every claim by its rule.
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

from apps.common.claims import PROFILES, Claim, load_book
from apps.common.provenance import ROOT, provenance
from apps.common.verdicts import rank, verdict
from sparsekit import atomic

OWN, STORED = "this machine", "stored"


@dataclass(frozen=True)
class Measurement:
    """Values of one metric, one a seed, and where they come from.

    path: of the file; device, date and commit: None if the file does not say.
    """

    values: tuple[float, ...]
    profile: str
    source: str
    commit: str | None
    path: Path
    device: str | None = None
    date: str | None = None


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
        rank(profile)
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
        if not enough and rank(self.profile) >= rank(claim.min_profile):
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


def measurement(claim: Claim, own: Path, stored: Path) -> Measurement | None:
    """The values that decide a claim; None if nobody measured it.

    This machine's of the claim's profile or above; else stored ones of such a profile;
    else this machine's of a lower profile; else stored ones of a lower profile. Of
    several profiles the highest.
    """
    least = rank(claim.min_profile)
    high = [p for p in reversed(PROFILES) if rank(p) >= least]
    low = [p for p in reversed(PROFILES) if rank(p) < least]
    for profiles in (high, low):
        for folder, source in ((own, OWN), (stored, STORED)):
            for profile in profiles:
                path = folder / profile / f"{claim.chapter}.json"
                found = read_values(path, claim.metric)
                if found is not None:
                    known = read_provenance(path)
                    about = [known.get(key) for key in ("device", "date")]
                    values, commit = found
                    return Measurement(values, profile, source, commit, path, *about)
    return None


def read_provenance(path: Path) -> dict[str, str]:
    """Where a file of measurements says it is from: its texts, such as device, date."""
    found = json.loads(path.read_text("utf-8"))["provenance"]
    return {key: value for key, value in found.items() if isinstance(value, str)}


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


__all__ = ["Ledger", "Measurement", "measurement", "read_values", "verdict"]
