"""Items and histories as the augmentations take them: plain lists.

items = catalogue(data)                  # titles, years, genres of a Dataset
more = items.with_side(columns(data, ["description"]))
read = histories(data, most=20)          # the last items of each user, in order
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from apps.recsys.language.titles import shown, usable
from apps.recsys.splits import Dataset
from sparsekit.spelling import choice

if TYPE_CHECKING:
    import pandas as pd

YEAR = re.compile(r"1[89]\d\d|20\d\d")
GENRES = ("genres", "genre", "class", "categories", "category")
NO_GENRES = ("", "unknown")
LONGEST = 2000  # characters of a text; the encoder reads 256 tokens
TAG = re.compile(r"<[^<>]*>")
YEARS = ("release_year", "year", "release_date")


@dataclass(frozen=True)
class Catalogue:
    """Items by index. titles: as their file has them. years: None where unknown.

    genres: of each item, maybe none. side: {field: text of each item, "" if unknown},
    as from `films.join`.
    """

    titles: tuple[str, ...]
    years: tuple[int | None, ...]
    genres: tuple[tuple[str, ...], ...]
    side: dict[str, tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        columns = {"years": self.years, "genres": self.genres, **(self.side or {})}
        for name, column in columns.items():
            if len(column) != len(self.titles):
                raise ValueError(
                    f"{name} has {len(column)} items, titles {len(self.titles)}"
                )

    def __len__(self) -> int:
        return len(self.titles)

    def line(self, item: int) -> str:
        """An item as a prompt shows it.

        >>> films = Catalogue(("Alien",), (1979,), (("Horror", "Sci-Fi"),))
        >>> films.line(0)
        'Alien (1979), Horror, Sci-Fi'
        """
        year = f" ({self.years[item]})" if self.years[item] else ""
        genres = "".join(f", {shown(genre).text}" for genre in self.genres[item])
        return f"{shown(self.titles[item]).text}{year}{genres}"

    def text(self, item: int) -> str:
        """An item as the encoder reads it: title, year, genres and what else is known.

        >>> side = {"director": ("Ridley Scott",), "country": ("",)}
        >>> Catalogue(("Alien",), (1979,), (("Horror",),), side).text(0)
        'Alien (1979). Horror. Director: Ridley Scott.'
        """
        year = f" ({self.years[item]})" if self.years[item] else ""
        parts = [f"{shown(self.titles[item]).text}{year}", ", ".join(self.genres[item])]
        for name, column in (self.side or {}).items():
            if column[item]:
                parts.append(f"{name.capitalize()}: {column[item]}")
        return " ".join(f"{part}." for part in parts if part)

    @property
    def all_genres(self) -> tuple[str, ...]:
        """Those that occur, the most frequent first."""
        names = [genre for genres in self.genres for genre in genres]
        unique, counts = np.unique(np.array(names, dtype=str), return_counts=True)
        order = np.lexsort((unique, -counts))
        return tuple(str(unique[i]) for i in order)

    def showable(self) -> np.ndarray:
        """[I] bool: whether a language model may see the title."""
        return np.array(usable(self.titles), bool)

    def with_side(self, side: dict[str, tuple[str, ...]]) -> "Catalogue":
        return replace(self, side={**(self.side or {}), **side})


def catalogue(data: Dataset) -> Catalogue:
    """Titles, years and genres, from the columns that are named like it.

    Raises ValueError if the data set has no titles.
    """
    if data.titles is None or data.item_table is None:
        raise ValueError(
            f"{data.name} has no titles: a language model has nothing to read; give a "
            "table of items with a column like 'title' (--catalogue items.csv), or an "
            ".item file beside the .inter file"
        )
    titles = tuple(t if isinstance(t, str) else "" for t in data.titles)
    empty = ("",) * len(titles)
    years = _column(data.item_table, YEARS) or empty
    found = [YEAR.search(text) for text in years]
    return Catalogue(
        titles=titles,
        years=tuple(int(year[0]) if year else None for year in found),
        genres=tuple(
            tuple(g for g in re.split(r"[|,;\s]+", text) if g not in NO_GENRES)
            for text in _column(data.item_table, GENRES) or empty
        ),
    )


def columns(data: Dataset, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """{column: the text of each item, "" if unknown} of the item table, for an encoder.

    Without HTML's tags, on one line, of at most LONGEST characters.

    Raises ValueError for a column that it does not have.
    """
    there = [] if data.item_table is None else list(data.item_table.columns[1:])
    for name in names:
        if name not in there:
            refused = f"the items of {data.name} have no column {name!r}"
            raise ValueError(choice(refused, name, there, "they have"))
    return {
        name: tuple(
            " ".join(TAG.sub(" ", cell[: 10 * LONGEST]).split())[:LONGEST]
            for cell in data.item_table[name].fillna("").astype(str)
        )
        for name in names
    }


def histories(data: Dataset, most: int = 20, part: str = "train") -> list[np.ndarray]:
    """The last `most` items of each user in a part, the latest at the end; int32.

    Without times: those with the highest item indices.
    """
    matrix = data.part(part)
    times = None if data.times is None else getattr(data.times, part)
    found = []
    for start, end in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        items = matrix.indices[start:end]
        if times is not None:
            items = items[np.lexsort((items, times[start:end]))]
        found.append(items[-most:].astype(np.int32))
    return found


def _column(table: "pd.DataFrame", names: Sequence[str]) -> tuple[str, ...] | None:
    for name in names:
        if name in table.columns:
            return tuple(table[name].fillna("").astype(str))
    return None
