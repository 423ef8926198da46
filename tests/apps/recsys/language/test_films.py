"""Side text of films: the join by title and year, on examples and on MovieLens-100k."""

import sqlite3

import numpy as np
import pytest

from apps.common import wheels
from apps.recsys.data import load, ml100k
from apps.recsys.language.catalogue import catalogue
from apps.recsys.language.films import MEMBER, join, matched, read
from apps.recsys.language.titles import comparable

fetched = pytest.mark.skipif(
    not wheels.is_cached("bokeh-sampledata"),
    reason="needs `sparsekit data fetch bokeh-sampledata`",
)


def film(title, year, director="D"):
    return (title, year, director, "", "A, B, C, D", "Italy, France", "Italian")


def test_the_join_on_examples():
    rows = [
        film("The Seventh Seal", 1957, "Bergman"), film("Seventh Seal", 1957, "other"),
        film("Sabrina", 1954, "Wilder"), film("Sabrina", 1995, "Pollack"),
        film("Hamlet", 1996, "near"), film("Hamlet", 1997, "exact"),
        film("Clean Slate", 1994, "wrong year"), film("Coup de Torchon", 1981, "right"),
        film(None, 1990), film("No year", None), film("Names <|x|>\n", 2000, "A\nB"),
    ]  # fmt: skip
    titles = ["Seventh Seal, The (Sjunde inseglet, Det)", "Sabrina", "Sabrina",
              "Hamlet",
              "Clean Slate (Coup de Torchon)", "Sabrina", "Nothing", "", "no year",
              "Names x"]  # fmt: skip
    years = [1957, 1954, 1995, 1997, 1981, 1970, 1990, 1990, 1990, 2000]
    found = matched(titles, years, rows)
    assert found.columns["director"] == (
        "Bergman", "Wilder", "Pollack", "exact", "right", "", "", "", "", "A B",
    )  # fmt: skip
    assert found.columns["cast"][0] == "A, B, C"
    assert found.matched.tolist() == [True] * 5 + [False] * 4 + [True]
    assert found.ambiguous == 1
    assert found.rate == 0.6
    assert found.weighted(np.array([4, 0, 0, 0, 0, 4, 0, 0, 0, 0])) == 0.5
    assert not matched(["Sabrina"], [None], rows).matched.any()


def test_damaged_files_are_named():
    with pytest.raises(ValueError, match=r"movies\.db is damaged"):
        read(b"no database" * 1000)
    empty = sqlite3.connect(":memory:")
    empty.execute("CREATE TABLE omdb (x)")
    with pytest.raises(ValueError, match=r"movies\.db is damaged"):
        read(empty.serialize())


@fetched
def test_the_join_rate_of_movielens():
    """Above the 1,366 films and 92.3 % of interactions of the plain rule."""
    log = ml100k()
    items = catalogue(load("ml100k"))
    every = list(log.titles)
    years = [
        int(y) if str(y).isdigit() else None for y in log.item_table["release_year"]
    ]
    found = join(every, years)
    counts = np.bincount(log.items, minlength=len(every))
    assert found.matched.sum() == 1386
    assert found.weighted(counts) == pytest.approx(0.9273, abs=1e-4)
    some = join(items.titles, items.years)
    with_text = items.with_side(some.columns)
    alien = items.titles.index("Alien")
    assert "Director: Ridley Scott." in with_text.text(alien)


@fetched
def test_every_film_finds_itself():
    """A sample of the file joined to the file, against a slow search for each."""
    with wheels.wheel("bokeh-sampledata") as archive:
        rows = read(wheels.member(archive, MEMBER))
    sample, names = rows[::397], [comparable(row[0]) for row in rows]
    found = matched([row[0] for row in sample], [row[1] for row in sample], rows)
    for row, director in zip(sample, found.columns["director"], strict=True):
        plain = comparable(row[0])
        same = [r for r, name in zip(rows, names, strict=True) if name == plain]
        near = [r for r in same if abs(r[1] - row[1]) <= 1]
        first = min(near, key=lambda r: abs(r[1] - row[1]))  # the most reviewed
        directors = [name.strip() for name in (first[2] or "").split(",")]
        assert director == ", ".join([n for n in directors if n][:3])
    assert found.matched.all()
