"""What was typed becomes a question that a file can answer: titles, filters.

titled(artefact, "toy story")                       # its id
filters_of({"class": "Comedy,War"}, (), (), artefact)
"""

import difflib
from collections.abc import Mapping, Sequence

from apps.recsys.artefact import Artefact
from apps.recsys.forgetting.request import id_list
from apps.recsys.recommender import Filters


def filters_of(
    where: Mapping[str, str],
    only: Sequence[str],
    without: Sequence[str],
    artefact: Artefact,
) -> Filters:
    """What was asked for; of several values with commas between, one must be there."""
    wanted: dict[str, str | list[str]] = {}
    for column, text in where.items():
        tags = artefact.tags.get(column)
        is_one = tags is not None and tags.find(text) is not None
        wanted[column] = text if is_one else [v.strip() for v in text.split(",")]
    chosen = id_list(only) if only else None
    return Filters(chosen, id_list(without), wanted)


def titled(artefact: Artefact, title: str) -> str:
    """The id of the item with that title, whatever its capitals.

    Raises ValueError if there is none or several; the message names what comes near.
    """
    column = artefact.title_column
    if column is None:
        raise ValueError("the file has no titles: give ids with --history")
    wanted = title.casefold()
    titles = [text.casefold() for text in artefact.texts[column]]
    found = [row for row, text in enumerate(titles) if text == wanted]
    if len(found) == 1:
        return artefact.item_ids[found[0]]
    if found:
        ids = ", ".join(artefact.item_ids[row] for row in found[:5])
        raise ValueError(f"several items are called {title!r}: {ids}; use --history")
    alike = set(difflib.get_close_matches(wanted, titles, n=5))
    near = [row for row, t in enumerate(titles) if wanted in t or t in alike][:5]
    names = "; ".join(artefact.texts[column][row] for row in near)
    raise ValueError(f"no title {title!r}" + f"; near it: {names}" * bool(near))
