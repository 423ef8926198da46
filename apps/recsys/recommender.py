"""Recommendations from a file, for users it knows and for users it has never seen.

    recommender = Recommender.open("model.safetensors")
    recommender.recommend("42", k=10)
    recommender.recommend(history=["50", "181"], reasons=2)  # "because you watched"
    recommender.recommend("42", filters=Filters(where={"genre": "War"}))
    recommender.recommend("42", filters=Filters(where={"price": "5..19.99"}))
    recommender.similar("50", k=5)

Numpy is all it needs. Threads may share one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from apps.recsys.artefact import Artefact, load
from apps.recsys.scoring import FactorScorer, best

Source = Literal["trained", "folded", "popularity"]
Unknown = Literal["raise", "skip"]
SHOWN = 5  # ids in an error message
NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})?(\.\.)?({NUMBER})?", re.ASCII | re.IGNORECASE)


class BadQuestion(ValueError):
    """What was asked makes no sense; the message says why."""


class UnknownId(BadQuestion):
    """An id that is not in the file."""


@dataclass(frozen=True)
class Filters:
    """Which items may be recommended: those that pass all of these.

    only: ids; None for every item. without: ids. where: {column: value or values} of
    the file's tags and numbers; an item passes if it has one of the values, in every
    column named. A value of a column of numbers may be a range, ends included: "5..20",
    "5..", "..20"; an item whose number is not known passes none.
    """

    only: Sequence[str] | None = None
    without: Sequence[str] = ()
    where: Mapping[str, str | Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Reason:
    """An item of the history, and what it adds to the score."""

    item: str
    title: str | None
    adds: float


@dataclass(frozen=True)
class Recommendation:
    """An item. Scores compare items for one user and nothing else."""

    item: str
    score: float
    title: str | None = None
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True)
class Recommendations:
    """items: best first, k or as many as pass the filters. source: how they came about.

    "trained": scores of the user's own vector; "folded": of the history, by the closed
    form of `FoldIn` or, for item weights, exactly as for a known user; "popularity":
    the most popular, where there is no history or the model knows nothing of it.
    """

    source: Source
    items: tuple[Recommendation, ...]


class Recommender:
    """Answers from one artefact."""

    def __init__(self, artefact: Artefact):
        self.artefact = artefact
        self.model = artefact.model
        column = artefact.title_column
        self._titles = None if column is None else artefact.texts[column]
        if isinstance(self.model, FactorScorer):  # now, not while the first user waits
            _ = self.model.gram, self.model.lengths

    @classmethod
    def open(cls, path: str | Path) -> "Recommender":
        """From a file; DamagedFile (a ValueError) or FileNotFoundError as `load`."""
        return cls(load(path))

    def recommend(
        self,
        user: str | None = None,
        *,
        history: Sequence[str] | None = None,
        k: int = 10,
        filters: Filters | None = None,
        exclude_seen: bool = True,
        reasons: int = 0,
        unknown: Unknown = "raise",
    ) -> Recommendations:
        """The k best items for a user of the file, or for whoever has that history.

        history: ids of items, in any order; with a user: what came since the file was
        made, and the score is folded from all of it. exclude_seen: whether what is in
        the history is left out. reasons: most items of the history that are named for
        each item, those that add most first; they explain the folded score, of which
        they are the exact parts, also where a trained vector made the list. unknown:
        "skip" leaves out ids of items that the file does not have.

        Raises UnknownId for ids, BadQuestion for all else; both are ValueErrors.
        """
        _check_count("k", k, 1)
        _check_count("reasons", reasons, 0)
        if user is None and history is None:
            raise BadQuestion("give a user, a history, or both")
        row = None if user is None else self.row_of(user)
        seen = self._items(history or (), "history", unknown)
        if row is not None:
            own = self.artefact.history[row]
            since = np.setdiff1d(seen, own)
            seen = np.union1d(own, since)
            if len(since):
                row = None  # the trained vector does not know of it
        scores, source = self._scores(row, seen)
        if filters is not None:
            scores[~self.passing(filters, unknown)] = -np.inf
        if exclude_seen:
            scores[seen] = -np.inf
        chosen = best(scores, k)
        parts = None
        if reasons and source != "popularity":
            parts = self.model.explained(seen, chosen)
        return Recommendations(
            source,
            tuple(
                self._recommendation(
                    item, scores[item],
                    () if parts is None else self._reasons(seen, parts[place], reasons),
                )
                for place, item in enumerate(chosen.tolist())
            ),
        )  # fmt: skip

    def similar(
        self,
        item: str,
        k: int = 10,
        filters: Filters | None = None,
        unknown: Unknown = "raise",
    ) -> tuple[Recommendation, ...]:
        """The k items most like one: by cosine of their vectors, or by its weights.

        Raises as `recommend`. unknown: about ids of the filters.
        """
        _check_count("k", k, 1)
        (index,) = self._items([item], "item", "raise")
        scores = self.model.similar(int(index))
        if filters is not None:
            scores[~self.passing(filters, unknown)] = -np.inf
        scores[index] = -np.inf
        return tuple(
            self._recommendation(i, scores[i]) for i in best(scores, k).tolist()
        )

    def _scores(self, row: int | None, seen: np.ndarray) -> tuple[np.ndarray, Source]:
        """[I] float32, new, and where they come from."""
        if len(seen):
            if row is not None:
                trained = self.model.trained(row)
                if trained is not None:
                    return trained, "trained"
            folded = self.model.folded(seen)
            if folded.any():
                return folded, "folded"
        return self.artefact.popularity.astype(np.float32), "popularity"

    def passing(self, filters: Filters, unknown: Unknown = "raise") -> np.ndarray:
        """[I] bool: the items that pass. Raises as `recommend`."""
        allowed = np.ones(len(self.artefact.item_ids), bool)
        if filters.only is not None:
            allowed[:] = False
            allowed[self._items(filters.only, "only", unknown)] = True
        if len(filters.without):
            allowed[self._items(filters.without, "without", unknown)] = False
        for column, values in filters.where.items():
            passes = np.zeros(len(allowed), bool)
            for value in [values] if isinstance(values, str) else values:
                passes[self._with(column, value)] = True
            allowed &= passes
        return allowed

    def _with(self, column: str, value: str) -> np.ndarray:
        """Indices of the items, or [I] bool."""
        tags = self.artefact.tags.get(column)
        numbers = self.artefact.numbers.get(column)
        items = None if tags is None else tags.find(value)
        if items is not None:
            return items
        if numbers is not None:
            low, high = limits(column, value)
            return (numbers >= low) & (numbers <= high)  # never NaN
        if tags is None:
            raise BadQuestion(self._no_column(column))
        raise BadQuestion(
            f"no item has {column} {value!r}; values are "
            + _listed([tags.values[i] for i in range(min(20, len(tags.values)))])
        )

    def _no_column(self, column: str) -> str:
        known = ", ".join({**self.artefact.tags, **self.artefact.numbers}) or "none"
        message = f"no column {column!r} to filter by; there are: {known}"
        if set(column) & set("<>"):
            message += "; write a range as column=5..20, 5.. or ..20"
        return message

    def row_of(self, user: str) -> int:
        """The index of a user of the file. Raises UnknownId."""
        row = self.artefact.user_ids.find(user)
        if row is None:
            raise UnknownId(
                f"no user {user!r} in the file; for a new one give a history"
            )
        return row

    def _items(self, ids: Sequence[str], what: str, unknown: Unknown) -> np.ndarray:
        """Indices without repeats, rising."""
        if isinstance(ids, str):
            raise BadQuestion(f"{what} must be a list of ids, not one text")
        found = [self.artefact.item_ids.find(item) for item in ids]
        if unknown == "raise" and None in found:
            missing = [i for i, index in zip(ids, found, strict=True) if index is None]
            raise UnknownId(f"{what}: no item {_listed(missing)} in the file")
        return np.array(sorted({i for i in found if i is not None}), np.int64)

    def _title(self, index: int) -> str | None:
        return None if self._titles is None else self._titles[index]

    def _recommendation(
        self, index: int, score: float, reasons: tuple[Reason, ...] = ()
    ) -> Recommendation:
        item = self.artefact.item_ids[index]
        return Recommendation(item, float(score), self._title(index), reasons)

    def _reasons(
        self, seen: np.ndarray, adds: np.ndarray, most: int
    ) -> tuple[Reason, ...]:
        """What adds most, as far as it adds anything."""
        order = np.argsort(-adds, kind="stable")[:most]
        return tuple(
            Reason(self.artefact.item_ids[i], self._title(i), float(a))
            for i, a in zip(seen[order].tolist(), adds[order], strict=True)
            if a > 0
        )


def limits(column: str, value: str) -> tuple[float, float]:
    """The ends of a range, or twice the number.

    >>> limits("price", "5..19.99"), limits("price", "..20"), limits("price", "7")
    ((5.0, 19.99), (-inf, 20.0), (7.0, 7.0))
    """
    found = RANGE.fullmatch(value.strip())
    low, dots, high = found.groups() if found else (None, None, None)
    if dots and (low or high):
        ends = float(low or "-inf"), float(high or "inf")
        if ends[0] <= ends[1]:
            return ends
    if low and not dots and not high:
        return float(low), float(low)
    raise BadQuestion(
        f"{column} holds numbers: give one, or a range from low to high as 5..20, 5.. "
        f"or ..20, got {value[:100]!r}"
    )


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadQuestion(f"{name} must be an integer from {least} on, got {value!r}")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:100]) for name in names[:SHOWN])
    return shown + f" and {len(names) - SHOWN} more" * (len(names) > SHOWN)
