"""Files that still hold what was forgotten, or a model that learned from it.

Looked at: run folders, exported recommenders and lists of recommendations. Not found
this way, and to be dealt with beside it: the source of the data, backups, copies on
other machines, augmentations and the answers of language models (`augment`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.common.arrays import open_arrays
from apps.common.config import parse
from apps.recsys.artefact import Artefact, load
from apps.recsys.config import Config
from apps.recsys.forgetting.request import Forgotten, Request


@dataclass(frozen=True)
class Leftover:
    """A file, and what is in it."""

    path: Path
    why: str


def leftovers(
    folders: Iterable[Path], request: Request, dataset: str | None, new: Path
) -> list[Leftover]:
    """Files below the folders, by path. new: what has forgotten, left out.

    A run on `dataset` whose own list does not hold all of the request counts with all
    of its files; nothing is said of runs on other data sets, or without a `dataset` of
    runs at all. Raises FileNotFoundError for a folder that is not there.
    """
    found: dict[Path, str] = {}
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder} to look for leftovers in")
        for config in sorted(folder.rglob("config.toml")):
            if dataset is None or _within(config, new):
                continue
            if _has_learned(config, request, dataset):
                found |= dict.fromkeys(_files(config.parent), "a run that learned it")
        for path in _files(folder):
            if path not in found and not _within(path, new):
                why = _why(path, request)
                if why is not None:
                    found[path] = why
    return [Leftover(path, found[path]) for path in sorted(found)]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _has_learned(path: Path, request: Request, dataset: str) -> bool:
    """Whether a run folder's config.toml is of this app, and this data."""
    try:
        config = parse(Config, ["--config", str(path)])
    except ValueError:  # another app's, or damaged
        return False
    if config.dataset != dataset:
        return False
    lists = [path.parent / "forgotten.json", config.without]
    return not any(
        place is not None and place.is_file() and _covers(place, request)
        for place in lists
    )


def _covers(path: Path, request: Request) -> bool:
    forgotten = Forgotten.load(path)
    return Forgotten.of(request, forgotten) == forgotten


def _why(path: Path, request: Request) -> str | None:
    """What a file holds of the request; None if nothing, or another kind of file."""
    if path.suffix == ".safetensors":
        try:
            return _in_artefact(load(path), request)
        except ValueError:  # other tensors
            return None
    if path.suffix in (".parquet", ".csv"):
        return _in_lists(path, request)
    if path.suffix == ".npz":
        return _in_vectors(path, request)
    return None


def _in_artefact(artefact: Artefact, request: Request) -> str | None:
    users = [u for u in request.users if artefact.user_ids.find(u) is not None]
    items = [i for i in request.items if artefact.item_ids.find(i) is not None]
    pairs = [pair for pair in request.pairs if _holds(artefact, *pair)]
    if users or items or pairs:
        return (
            f"a recommender with {len(users)} users, {len(items)} items and "
            f"{len(pairs)} interactions of the request"
        )
    learned = artefact.about.get("config")
    if len(artefact.user_ids) == 0 and not (
        isinstance(learned, dict) and learned.get("without")
    ):
        return "a recommender without users that may have learned from them"
    return None


def _holds(artefact: Artefact, user: str, item: str) -> bool:
    row, column = artefact.user_ids.find(user), artefact.item_ids.find(item)
    if row is None or column is None:
        return False
    return bool(np.isin(column, artefact.history[row]))


def _in_lists(path: Path, request: Request) -> str | None:
    """Of a table with columns user and item, as `recommend --out` writes it."""
    import pyarrow as pa

    try:
        named = {"user": set(request.users), "item": set(request.items)}
        hits = dict.fromkeys(named, 0)
        for batch in _batches(path, list(named)):
            for column, ids in named.items():
                values = batch.column(column).to_pylist()
                hits[column] += sum(str(value) in ids for value in values)
    except (pa.ArrowException, OSError, ValueError):  # another file of that name
        return None
    if any(hits.values()):
        return f"lists with {hits['user']} rows of users, {hits['item']} of items"
    return None


def _in_vectors(path: Path, request: Request) -> str | None:
    """Of plain arrays, as `export --out` writes them."""
    try:
        with open_arrays(path, "items", "item_ids") as arrays:
            named = (
                arrays[f"{s}_ids"] for s in ("user", "item") if f"{s}_ids" in arrays
            )
            ids = {str(one) for array in named for one in array}
    except (ValueError, OSError):  # other arrays, or none
        return None
    users, items = (len(ids & set(part)) for part in (request.users, request.items))
    if users or items:
        return f"vectors of {users} users and {items} items of the request"
    return None


def _batches(path: Path, columns: list[str]) -> Iterator[Any]:
    """Parts of a table, with these columns; none if it lacks one."""
    import pyarrow as pa
    from pyarrow.csv import ConvertOptions, open_csv
    from pyarrow.parquet import ParquetFile

    if path.suffix == ".parquet":
        file = ParquetFile(path)
        has_all = set(columns) <= set(file.schema_arrow.names)
        return file.iter_batches(columns=columns) if has_all else iter(())
    as_text = dict.fromkeys(columns, pa.string())
    reader = open_csv(path, convert_options=ConvertOptions(column_types=as_text))
    return iter(reader if set(columns) <= set(reader.schema.names) else ())
