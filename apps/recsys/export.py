"""From a fitted model and its data to the artefact that is saved and served.

artefact = artefact_of(model, data, kind="int8")        # factors: MF, iALS, ...
artefact = artefact_of(ease, data, keep=100)            # item weights: EASE, ItemKNN
artefact = factors_of(user_table, item_table, data)     # tables that you packed
save("model.safetensors", artefact)
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from apps.recsys import fold_in as folding
from apps.recsys.artefact import Artefact, Tags
from apps.recsys.interactions import title_column
from apps.recsys.models import closed_form
from apps.recsys.models.closed_form import Model
from apps.recsys.models.factors import Factors
from apps.recsys.ragged import Ids, Ragged, Texts, offsets_of, ragged
from apps.recsys.scoring import FactorScorer, FoldIn, LinearScorer
from apps.recsys.splits import Dataset, known_items
from apps.recsys.tables import Table, encode

Users = Literal["vectors", "histories", "nothing"]
MOST_VALUES = 1000  # of a column to filter by
FEW = 20  # items, each of which may well have another value
LIST_COLUMNS = ("class", "genre", "genres", "category", "categories", "tags")
SEPARATORS = ("|", ";", ",")
NUMBERS = 0.9  # of the cells of a column to filter by range


def artefact_of(
    model: Model,
    data: Dataset,
    *,
    kind: str = "float32",
    keep: int | None = None,
    users: Users = "vectors",
    history: sp.csr_array | None = None,
    trained_on: sp.csr_array | None = None,
    fold_in: FoldIn | None = None,
    settings: Any = None,
    about: Mapping[str, Any] | None = None,
) -> Artefact:
    """A fitted model with what it takes to serve it.

    kind: of both packed tables. users: what is stored of them: vectors and histories,
    histories alone (everybody is folded in), or nothing. keep: weights of each item
    that stay, the largest by magnitude; None keeps all. history: CSR [U, I], what is
    masked and gives reasons; default all three parts of the data. trained_on: CSR
    [U, I]; users with a history and nothing there, whose vectors are what the training
    began with, are folded in. fold_in: chosen on the validation part if not given.
    settings: the dataclass that fitted the model, for updates that fit it again. about:
    more to tell, as "metrics" or "config".

    Raises ValueError for a model that is neither factors nor item weights.
    """
    about = {"model": _described(model, settings, keep), **(about or {})}
    if isinstance(model, Factors):
        if history is None:
            history = _everything(data)
        items = encode(model.items, kind)
        if fold_in is None:
            fold_in, about["fold_in"] = _chosen(items, data)
        if trained_on is not None:
            model = _with_new_users(model, trained_on, history, fold_in)
        own = encode(model.users, kind) if users == "vectors" else None
        artefact = factors_of(
            own, items, data, history=history, fold_in=fold_in, about=about
        )
        return nobody(artefact) if users == "nothing" else artefact
    if isinstance(model, closed_form.Linear):
        weights = kept_weights(model.weights, keep)
        artefact = _artefact(linear_scorer(weights), data, history, about)
        return nobody(artefact) if users == "nothing" else artefact
    raise ValueError(
        f"{type(model).__name__} cannot be exported: a file holds factors (MF, "
        "LightGCN, iALS, SVD) or item weights (EASE, ItemKNN)"
    )


def factors_of(
    users: Table | None,
    items: Table,
    data: Dataset,
    *,
    history: sp.csr_array | None = None,
    fold_in: FoldIn | None = None,
    about: Mapping[str, Any] | None = None,
) -> Artefact:
    """`artefact_of` for packed tables. users: None stores no vector of any user: all
    are folded in from their histories."""
    told = dict(about or {})
    if fold_in is None:
        fold_in, told["fold_in"] = _chosen(items, data)
    return _artefact(FactorScorer(users, items, fold_in), data, history, told)


def _chosen(items: Table, data: Dataset) -> tuple[FoldIn, dict[str, Any]]:
    """The fold-in that validation chose, and what to tell of it."""
    vectors = items.rows(np.arange(items.shape[0]))
    choice = folding.choose(vectors, data)
    return choice.best, {
        "valid ndcg@20": choice.value, "users": choice.users,
        "unseen": choice.best.unseen,
        "l2": choice.best.l2 / folding.mean_square(vectors),
    }  # fmt: skip


def _with_new_users(
    model: Factors, trained_on: sp.csr_array, history: sp.csr_array, fold_in: FoldIn
) -> Factors:
    """With folded vectors for users who have a history but nothing in `trained_on`."""
    new = np.flatnonzero(
        (np.diff(trained_on.indptr) == 0) & (np.diff(history.indptr) > 0)
    )
    if not len(new):
        return model
    users, items = model.users.copy(), model.items
    scale = folding.scale_of(users, items, trained_on, fold_in)
    users[new] = folding.folded(fold_in, history[new], items) * np.float32(scale)
    return Factors(users, items)


def nobody(artefact: Artefact) -> Artefact:
    """The artefact without a trace of its users but the popularity of the items."""
    model = artefact.model
    if isinstance(model, FactorScorer):
        model = replace(model, users=None)
    return replace(artefact, user_ids=Ids.of([]), history=ragged([]), model=model)


def kept_weights(
    weights: np.ndarray | sp.csr_array, keep: int | None = None
) -> sp.csr_array:
    """[I, I], of each column the `keep` entries of largest magnitude, never a zero.

    Equal magnitudes: the lower row stays.
    """
    if keep is None:
        rows = sp.csr_array(weights, dtype=np.float32)
        rows.eliminate_zeros()
        rows.sort_indices()
        return rows
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    columns = sp.csc_array(weights) if sp.issparse(weights) else weights
    n, parts = weights.shape[1], []
    for start in range(0, n, 256):  # a few columns at a time in full
        part = columns[:, start : start + 256]
        dense = np.asarray(part.toarray() if sp.issparse(part) else part, np.float32)
        parts.append(sp.csc_array(np.where(_largest(np.abs(dense), keep), dense, 0)))
    rows = sp.csr_array(sp.hstack(parts))
    rows.sort_indices()
    return rows


def _largest(magnitudes: np.ndarray, keep: int) -> np.ndarray:
    """Which are among the `keep` largest of their column; the first of equal ones."""
    if keep >= len(magnitudes):
        return magnitudes > 0
    place = len(magnitudes) - keep
    least = np.partition(magnitudes, place, axis=0)[place]
    above, equal = magnitudes > least, magnitudes == least
    return above | (equal & (equal.cumsum(0) <= keep - above.sum(0)))


def linear_scorer(weights: sp.csr_array) -> LinearScorer:
    """Item weights as they are served; `weights` sorted, without zeros."""
    return LinearScorer(lists_of(weights), weights.data.astype(np.float32))


def lists_of(matrix: sp.csr_array) -> Ragged:
    """The columns of each row's stored entries, rising."""
    if not matrix.has_sorted_indices:
        matrix = matrix.sorted_indices()
    lengths = np.diff(matrix.indptr)
    return Ragged(offsets_of(lengths), matrix.indices.astype(np.int32))


def matrix_of(lists: Ragged, n_columns: int) -> sp.csr_array:
    """CSR with a stored 1 for each entry of the lists: the way back."""
    ones = np.ones(len(lists.values), np.float32)
    return sp.csr_array(
        (ones, np.array(lists.values), np.array(lists.offsets)),
        shape=(len(lists), n_columns),
    )


def _artefact(
    scorer: FactorScorer | LinearScorer,
    data: Dataset,
    history: sp.csr_array | None,
    about: Mapping[str, Any],
) -> Artefact:
    if history is None:
        history = _everything(data)
    texts, tags = columns_of(data.item_table)
    numbers = numbers_of(data.item_table)
    origin = {
        "name": data.name, "split": data.split, "interactions": int(history.nnz),
    }  # fmt: skip
    return Artefact(
        user_ids=Ids.of(data.user_ids),
        item_ids=Ids.of(data.item_ids),
        history=lists_of(history),
        popularity=np.bincount(history.indices, minlength=data.shape[1]),
        model=scorer,
        texts=texts,
        tags=tags,
        numbers=numbers,
        about={"data": origin, **about},
    )


def _everything(data: Dataset) -> sp.csr_array:
    return known_items(data.train, data.valid, data.test)


def columns_of(
    table: Any, separators: Mapping[str, str] | None = None
) -> tuple[dict[str, Texts], dict[str, Tags]]:
    """Titles to show and columns to filter by, of an item table (pandas).

    A column named like "title" becomes texts, and the `title_column`. Other columns of
    text become tags if they have at most 1,000 values, unless each item has another
    one: that is no category. separators: {column: what is between its values}; without
    it a column named genre, class, category or tags is split at the first of "|", ";"
    and "," that occurs in it, else at spaces, and others are not. A column of numbers
    that are not whole is left to `numbers_of`.
    """
    texts: dict[str, Texts] = {}
    tags: dict[str, Tags] = {}
    if table is None:
        return texts, tags
    titles = title_column(table.columns[1:])
    for column in table.columns[1:]:
        cells = ["" if cell is None or cell != cell else cell for cell in table[column]]
        if not all(isinstance(cell, str) for cell in cells):
            continue
        if column == titles or "title" in column.lower():
            texts[column] = Texts.of(cells)
            continue
        separator = (separators or {}).get(column) or _separator(column, cells)
        found = tags_of(cells, separator)
        distinct = len(found.values) == len(found.items.values)
        if 0 < len(found.values) <= MOST_VALUES and not (distinct and len(cells) > FEW):
            tags[column] = found
    return texts, tags


def numbers_of(table: Any) -> dict[str, np.ndarray]:
    """{column: [I] float64} of an item table (pandas), NaN where no number is known.

    Of columns nine tenths of whose cells, empty ones aside, are finite numbers or texts
    that say one: a column of whole numbers, as a year, is one to filter by value and by
    range, whatever a few cells hold.
    """
    import pandas as pd

    found: dict[str, np.ndarray] = {}
    for column in [] if table is None else table.columns[1:]:
        cells = table[column]
        if pd.api.types.is_bool_dtype(cells):
            continue
        values = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64)
        values = np.where(np.isfinite(values), values, np.nan)
        known, filled = np.isfinite(values).sum(), (cells.notna() & (cells != "")).sum()
        if known and known >= NUMBERS * filled:
            found[column] = values
    return found


def tags_of(cells: Sequence[str], separator: str | None) -> Tags:
    """The items of each value. cells: I texts; separator: None for whole cells."""
    items: dict[str, list[int]] = {}
    for index, cell in enumerate(cells):
        for value in {
            v.strip() for v in (cell.split(separator) if separator else [cell])
        }:
            if value:
                items.setdefault(value, []).append(index)
    values = sorted(items)
    return Tags(Ids.of(values), ragged([items[value] for value in values]))


def _separator(column: str, cells: Sequence[str]) -> str | None:
    if column.lower() not in LIST_COLUMNS:
        return None
    present = (s for s in SEPARATORS if any(s in cell for cell in cells))
    return next(present, " ")


def _described(model: Model, settings: Any, keep: int | None) -> dict[str, Any]:
    if settings is None:
        return {"name": type(model).__name__}
    if not is_dataclass(settings):
        raise ValueError(f"settings must be a dataclass, got {settings!r}")
    described = {"name": type(settings).__name__, **asdict(settings)}
    return described | ({} if keep is None else {"keep": keep})
