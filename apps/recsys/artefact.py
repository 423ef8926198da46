"""A recommender in one file: ids, model, histories, popularity, titles and tags.

    name = save("model.safetensors", artefact)
    artefact = load("model.safetensors")      # memory-mapped; numpy is all it needs

Arrays of the file, with U users and I items:

    user.ids.bytes, .offsets, .order       texts in UTF-8, and what sorts them
    item.ids...                            likewise
    history.offsets [U + 1], .items        the items of each user, rising
    popularity [I] int64                   users of each item
    users.NAME, items.NAME                 packed tables (`apps.recsys.tables`), or
    weights.offsets [I + 1], .items, .values   item to item
    text.0.bytes, .offsets                 a text for each item, as its title
    tag.0.values.bytes, ..., tag.0.offsets, .items     the items of each value of a
                                           column, as of "genre"
    number.0                               [I] float64, as of "price"; NaN is unknown

What is read from a file is checked completely when it is opened.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from apps.recsys import container
from apps.recsys.container import Arrays, DamagedFile
from apps.recsys.interactions import title_column
from apps.recsys.ragged import Ids, Ragged, Texts
from apps.recsys.scoring import FactorScorer, FoldIn, LinearScorer, lengths
from apps.recsys.tables import Table, from_arrays

FORMAT = "sparsekit.recommender"
VERSION = 1
MOST_DIMENSIONS = 4096
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Tags:
    """values: Ids; items: for each of them the items that have it, rising."""

    values: Ids
    items: Ragged

    def find(self, value: str) -> np.ndarray | None:
        """The items with that value, or None if there is no such value."""
        index = self.values.find(value)
        return None if index is None else self.items[index]


@dataclass(frozen=True)
class Artefact:
    """A fitted recommender and what it takes to use it.

    history: U lists of items, what the model was trained on. popularity: [I] int64,
    users of each item. texts: {column: I texts}; tags: {column: Tags}; numbers:
    {column: [I] float64, NaN where unknown}. about: how it came to be, in JSON: "model"
    {"name": ..., settings}, "config", "metrics", ...
    name: the hash of the whole content, empty before it is saved.
    """

    user_ids: Ids
    item_ids: Ids
    history: Ragged
    popularity: np.ndarray
    model: FactorScorer | LinearScorer
    texts: Mapping[str, Texts] = field(default_factory=dict)
    tags: Mapping[str, Tags] = field(default_factory=dict)
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def title_column(self) -> str | None:
        """The column of texts that are titles, else None."""
        return title_column(self.texts)

    def check(self) -> None:
        """ValueError, naming the part, unless all parts fit and lie in their range."""
        n_users, n_items = len(self.user_ids), len(self.item_ids)
        if n_items == 0:
            raise ValueError("there are no items")
        _named("user ids", self.user_ids.check, n_users)
        _named("item ids", self.item_ids.check, n_items)
        _named("history", self.history.check, n_users, n_items)
        counts = self.popularity
        if counts.dtype != np.int64 or counts.shape != (n_items,) or counts.min() < 0:
            raise ValueError(f"popularity must be {n_items} counts, int64")
        for name, texts in self.texts.items():
            _named(f"texts of {name!r}", texts.check, n_items)
        for name, tags in self.tags.items():
            _named(f"values of {name!r}", tags.values.check, len(tags.values))
            _named(f"items of {name!r}", tags.items.check, len(tags.values), n_items)
        for name, numbers in self.numbers.items():
            if numbers.dtype != np.float64 or numbers.shape != (n_items,):
                raise ValueError(f"{name!r} must be {n_items} numbers, float64")
        if isinstance(self.model, FactorScorer):
            _check_factors(self.model, n_users, n_items)
        else:
            _check_linear(self.model, n_items)


def save(path: str | Path, artefact: Artefact) -> str:
    """Create or replace the file in one step; the hash that names its content.

    Raises ValueError for parts that do not fit, OSError if it cannot be written.
    """
    artefact.check()
    arrays: Arrays = {"popularity": artefact.popularity}
    arrays |= _ids_arrays("user.ids", artefact.user_ids)
    arrays |= _ids_arrays("item.ids", artefact.item_ids)
    arrays |= _list_arrays("history", artefact.history)
    for number, texts in enumerate(artefact.texts.values()):
        arrays |= _text_arrays(f"text.{number}", texts)
    for number, tags in enumerate(artefact.tags.values()):
        arrays |= _ids_arrays(f"tag.{number}.values", tags.values)
        arrays |= _list_arrays(f"tag.{number}", tags.items)
    for number, numbers in enumerate(artefact.numbers.values()):
        arrays[f"number.{number}"] = numbers
    scorer: dict[str, Any] = {}
    if isinstance(artefact.model, FactorScorer):
        model, scorer["kind"] = artefact.model, "factors"
        scorer["fold_in"] = {"unseen": model.fold_in.unseen, "l2": model.fold_in.l2}
        for side in ("users", "items"):
            table = getattr(model, side)
            if table is not None:
                arrays |= {f"{side}.{n}": array for n, array in table.arrays().items()}
                scorer[side] = {
                    "kind": table.kind, "shape": list(table.shape),
                    "settings": table.settings(),
                }  # fmt: skip
    else:
        scorer["kind"] = "linear"
        arrays |= _list_arrays("weights", artefact.model.weights)
        arrays["weights.values"] = artefact.model.values
    head = {
        "format": FORMAT, "version": VERSION, "scorer": scorer,
        "texts": list(artefact.texts), "tags": list(artefact.tags),
        "about": dict(artefact.about),
    }  # fmt: skip
    if artefact.numbers:  # files without any are as they were
        head["numbers"] = list(artefact.numbers)
    return container.write(path, arrays, head)


def load(path: str | Path) -> Artefact:
    """The recommender in a file that `save` wrote, its arrays views of the file.

    Raises:
        DamagedFile: (a ValueError) naming what is wrong. FileNotFoundError.
    """
    try:
        arrays, head, name = container.read(path)
        artefact = _artefact(arrays, head, name)
        artefact.check()
    except ValueError as error:
        raise DamagedFile(f"{path}: {error}") from None
    return artefact


def _artefact(arrays: Arrays, head: dict[str, Any], name: str) -> Artefact:
    if head.get("format") != FORMAT or head.get("version") != VERSION:
        raise DamagedFile(
            f"format {head.get('format')!r} version {head.get('version')!r}, this "
            f"reader knows {FORMAT!r} version {VERSION}: use a matching sparsekit"
        )
    keys = {"format", "version", "scorer", "texts", "tags", "about"}
    if set(head) - {"numbers"} != keys:
        raise DamagedFile(f"the description has {sorted(head)}, not {sorted(keys)}")
    if not isinstance(head["about"], dict):
        raise DamagedFile("'about' is no object")
    texts = {
        column: _texts(arrays, f"text.{number}")
        for number, column in enumerate(_names(head["texts"], "texts"))
    }
    tags = {
        column: Tags(
            _ids(arrays, f"tag.{number}.values"), _lists(arrays, f"tag.{number}")
        )
        for number, column in enumerate(_names(head["tags"], "tags"))
    }
    numbers = {
        column: _take(arrays, f"number.{number}")
        for number, column in enumerate(_names(head.get("numbers", []), "numbers"))
    }
    artefact = Artefact(
        user_ids=_ids(arrays, "user.ids"),
        item_ids=_ids(arrays, "item.ids"),
        history=_lists(arrays, "history"),
        popularity=_take(arrays, "popularity"),
        texts=texts,
        tags=tags,
        numbers=numbers,
        about=head["about"],
        name=name,
        model=_model(arrays, head["scorer"]),
    )
    if arrays:
        raise DamagedFile(f"arrays that nothing uses: {sorted(arrays)[:5]}")
    return artefact


def _model(arrays: Arrays, scorer: Any) -> FactorScorer | LinearScorer:
    kind = scorer.get("kind") if isinstance(scorer, dict) else None
    if kind == "linear":
        return LinearScorer(_lists(arrays, "weights"), _take(arrays, "weights.values"))
    if kind != "factors":
        raise DamagedFile(f"the scorer is {kind!r}, this reader knows factors, linear")
    fold = scorer.get("fold_in")
    if (
        not isinstance(fold, dict)
        or set(fold) != {"unseen", "l2"}
        or not all(
            type(value) in (int, float) and value < LARGEST for value in fold.values()
        )
    ):
        raise DamagedFile(f"fold_in must be unseen and l2, got {str(fold)[:80]}")
    items = _table(arrays, scorer, "items")
    users = _table(arrays, scorer, "users") if "users" in scorer else None
    return FactorScorer(users, items, FoldIn(fold["unseen"], fold["l2"]))


def _table(arrays: Arrays, scorer: dict[str, Any], side: str) -> Table:
    entry = scorer.get(side)
    if not isinstance(entry, dict) or set(entry) != {"kind", "shape", "settings"}:
        raise DamagedFile(f"the table of {side} has no kind, shape and settings")
    if not isinstance(entry["settings"], dict):
        raise DamagedFile(f"the settings of the table of {side} are no object")
    prefix = f"{side}."
    names = [name for name in arrays if name.startswith(prefix)]
    own = {name.removeprefix(prefix): arrays.pop(name) for name in names}
    try:
        return from_arrays(entry["kind"], entry["shape"], own, entry["settings"])
    except ValueError as error:
        raise DamagedFile(f"the table of {side}: {error}") from None


def _check_factors(model: FactorScorer, n_users: int, n_items: int) -> None:
    for side, n in (("users", n_users), ("items", n_items)):
        table = getattr(model, side)
        if table is not None and table.shape[0] != n:
            raise ValueError(f"{n} {side}, but a table of {table.shape[0]}")
    if model.items.shape[1] > MOST_DIMENSIONS:  # d x d numbers are made of them
        raise ValueError(f"vectors have over {MOST_DIMENSIONS} dimensions")
    # No score overflows: |u.v| <= |u| |v|.
    longest = float(model.lengths.max())
    if not longest < LARGEST:
        raise ValueError("a vector of an item is NaN or too long")
    if model.users is not None:
        longest *= float(lengths(model.users).max())
        if not longest < LARGEST:
            raise ValueError("vectors are NaN, or their products overflow")


def _check_linear(model: LinearScorer, n_items: int) -> None:
    _named("weights", model.weights.check, n_items, n_items)
    values = model.values
    if values.dtype not in (np.float32, np.float16):
        raise ValueError(f"weights must be float32 or float16, got {values.dtype}")
    if values.shape != model.weights.values.shape:
        raise ValueError("there must be a weight for each pair of items")
    if not np.isfinite(values).all():
        raise ValueError("weights hold NaN or infinity")


def _named(what: str, check: Any, *arguments: Any) -> None:
    try:
        check(*arguments)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _names(names: Any, what: str) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise DamagedFile(f"{what!r} must be a list of names")
    if len(set(names)) < len(names):
        raise DamagedFile(f"{what!r} has a name twice")
    return names


def _take(arrays: Arrays, name: str) -> np.ndarray:
    if name not in arrays:
        raise DamagedFile(f"the array {name!r} is missing")
    return arrays.pop(name)


def _list_arrays(name: str, lists: Ragged, values: str = "items") -> Arrays:
    return {f"{name}.offsets": lists.offsets, f"{name}.{values}": lists.values}


def _lists(arrays: Arrays, name: str, values: str = "items") -> Ragged:
    return Ragged(_take(arrays, f"{name}.offsets"), _take(arrays, f"{name}.{values}"))


def _text_arrays(name: str, texts: Texts) -> Arrays:
    return _list_arrays(name, texts.lists, "bytes")


def _texts(arrays: Arrays, name: str) -> Texts:
    return Texts(_lists(arrays, name, "bytes"))


def _ids_arrays(name: str, ids: Ids) -> Arrays:
    return _text_arrays(name, ids) | {f"{name}.order": ids.order}


def _ids(arrays: Arrays, name: str) -> Ids:
    return Ids(_lists(arrays, name, "bytes"), _take(arrays, f"{name}.order"))
