"""Directors, writers, countries and languages of films, joined by title and year.

    films = join(items.titles, items.years)
    films.rate, films.weighted(counts)       # share of items, and of interactions
    items = items.with_side(films.columns)

The side text is public domain (CC0), 17,472 films of 1940 to 2014, from bokeh's sample
data. A film matches if titles are equal as compared and the years differ by at most
one; of several the nearest year counts, then the one with more reviews.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apps.common.wheels import member, wheel
from apps.recsys.language.titles import comparable, shown

MEMBER = "bokeh_sampledata/_data/movies.db"
FIELDS = ("director", "writer", "cast", "country", "language")
MOST_NAMES = 3  # of a field that holds a list
QUERY = """
SELECT omdb.Title, omdb.Year, omdb.Director, omdb.Writer, omdb."Cast", omdb.Country,
       omdb.Language
FROM omdb LEFT JOIN tomatoes ON tomatoes.ID = omdb.ID
ORDER BY coalesce(tomatoes.Reviews, 0) DESC, omdb.ID
"""


@dataclass(frozen=True)
class Films:
    """columns: {field: text of each item, "" if unknown}. matched: [I] bool.

    ambiguous: items with several films to choose from.
    """

    columns: dict[str, tuple[str, ...]]
    matched: np.ndarray
    ambiguous: int

    @property
    def rate(self) -> float:
        """Share of the items that were found."""
        return float(self.matched.mean())

    def weighted(self, counts: np.ndarray) -> float:
        """Share of the interactions whose item was found. counts: [I], an item's."""
        return float(counts[self.matched].sum() / counts.sum())


def join(titles: Sequence[str], years: Sequence[int | None]) -> Films:
    """What is known of each title; fetches a wheel of 13 MB on first use.

    Titles that themselves stand in brackets, "Le grand bleu (The Big Blue)", are tried
    if the one in front is not found.
    """
    with wheel("bokeh-sampledata") as archive:
        content = member(archive, MEMBER, limit=100_000_000)
    return matched(titles, years, read(content))


def read(content: bytes) -> list[tuple[object, ...]]:
    """Rows title, year, and the fields, the most reviewed first."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.deserialize(content)
        return connection.execute(QUERY).fetchall()
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{MEMBER} is damaged or of another form: {error}") from None
    finally:
        connection.close()


def matched(
    titles: Sequence[str],
    years: Sequence[int | None],
    rows: Sequence[tuple[object, ...]],
) -> Films:
    """`join` with the films given as rows: title, year, then FIELDS, best first."""
    by_title: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if isinstance(row[0], str) and isinstance(row[1], int):
            by_title[comparable(row[0])].append(i)
    found: list[int | None] = []
    ambiguous = 0
    for title, year in zip(titles, years, strict=True):
        near = _near(title, year, by_title, rows)
        ambiguous += len(near) > 1
        found.append(near[0] if near else None)
    columns = {
        field: tuple("" if i is None else _names(rows[i][2 + k]) for i in found)
        for k, field in enumerate(FIELDS)
    }
    return Films(columns, np.array([i is not None for i in found]), ambiguous)


def _near(
    title: str,
    year: int | None,
    by_title: dict[str, list[int]],
    rows: Sequence[tuple[object, ...]],
) -> list[int]:
    """Films of that title and about that year, the best first."""
    if year is None:
        return []
    for name in (title, *_in_brackets(title)):
        near = []
        for i in by_title.get(comparable(name), []):
            distance = abs(int(str(rows[i][1])) - year)
            if distance <= 1:
                near.append((distance, i))
        if near:
            return [i for _, i in sorted(near)]
    return []


def _in_brackets(title: str) -> list[str]:
    head, bracket, rest = title.partition("(")
    return [part.strip(" )") for part in rest.split("(")] if bracket and head else []


def _names(value: object) -> str:
    """The first names of a list, as one line."""
    if not isinstance(value, str):
        return ""
    names = [shown(name).text for name in value.split(",")]
    return ", ".join([name for name in names if name][:MOST_NAMES])
