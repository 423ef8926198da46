"""What is wrong with a file of interactions, in words: which row, which field."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

SHOWN = 3  # rows that a message names
TRIED = {",": "','", "\t": "'\\t'", ";": "';'", "|": "'|'"}


class BadTable:
    """Collects bad rows of a table, by reason.

    wanted: [N] bool, the rows that count; what is wrong with others does not matter.
    """

    def __init__(self, path: Path, wanted: np.ndarray):
        self.path, self.wanted = path, wanted
        self.reasons: dict[str, np.ndarray] = {}

    def note(self, wrong: np.ndarray, reason: str) -> None:
        rows = np.flatnonzero(wrong & self.wanted)
        if len(rows):
            self.reasons[reason] = rows

    def rows(self, policy: str, dropped: dict[str, int]) -> np.ndarray | None:
        """Rows that are left, None for all; counts the others in `dropped`.

        Raises ValueError for policy "raise".
        """
        if not self.reasons:
            return None if self.wanted.all() else np.flatnonzero(self.wanted)
        if policy == "raise":
            lines = [
                f"{reason} in {_named(rows)}" for reason, rows in self.reasons.items()
            ]
            raise ValueError(
                f"{self.path}: {'; '.join(lines)} (the header and blank lines not "
                "counted); repair them, or leave them out with bad_rows='drop' "
                "(--bad-rows drop)"
            )
        kept = self.wanted.copy()
        for reason, rows in self.reasons.items():
            rows = rows[kept[rows]]  # a row counts once, for its first reason
            kept[rows] = False
            if len(rows):
                dropped[reason] = dropped.get(reason, 0) + len(rows)
        if not kept.any():
            raise ValueError(f"{self.path}: every row is bad: {', '.join(dropped)}")
        return np.flatnonzero(kept)


def diagnose(file: Any) -> str | None:
    """Why a text file (path, separator, encoding, quotes) is no table; None if unknown.

    Reads it line by line, so the line numbers are those of an editor.
    """
    header = file.header()
    quoting = csv.QUOTE_MINIMAL if file.quotes else csv.QUOTE_NONE
    wrong: list[tuple[int, int]] = []
    with file.lines() as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1 or not line.strip("\r\n"):
                continue
            fields = next(csv.reader([line], delimiter=file.separator, quoting=quoting))
            if len(fields) != len(header):
                wrong.append((number, len(fields)))
    if not wrong:
        return None
    number, n_fields = wrong[0]
    others = f", {len(wrong):,} such lines in all" if len(wrong) > 1 else ""
    return (
        f"{file.path}, line {number}: {n_fields} field(s) where the header has "
        f"{len(header)}{others}; an id that holds {TRIED.get(file.separator)} must "
        "stand in double quotes, or leave such lines out with bad_rows='drop' "
        "(--bad-rows drop)"
    )


def unknown_columns(path: Path, role: str, name: str, header: list[str]) -> str:
    """The message for a column that the file does not have."""
    message = f"{path} has no column {name!r} for the {role}; it has {header}"
    if len(header) == 1:
        for separator, spelled in TRIED.items():
            if separator in header[0]:
                return (
                    f"{message}: its separator seems to be {spelled} "
                    f"(--separator {spelled})"
                )
    return f"{message}: name it with Columns({role}=...) (--columns {role}=NAME)"


def _named(rows: np.ndarray) -> str:
    first = ", ".join(str(row + 1) for row in rows[:SHOWN])
    if len(rows) == 1:
        return f"row {first}"
    more = f" and {len(rows) - SHOWN:,} more" if len(rows) > SHOWN else ""
    return f"rows {first}{more}"
