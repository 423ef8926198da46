"""A file of a recommender with new interactions, users and items in it, not trained.

    newer = updated(load("model.safetensors"), read("today.csv"))
    save("model.safetensors", newer)

Factors, with the item vectors v that are there:

1. Users with new interactions get the vector of their whole history (`FoldIn`).
2. New items get vectors by the same closed form with the sides exchanged.
3. Users of new items are folded in again, now with those.

Vectors of other users and items do not move. Folding in depends on the whole history
alone, so interactions may come in one file or in many, and a user who was added equals
one who shows that history. Items that come later do depend on what was known before:
train again from time to time.

Item weights are fitted again from all interactions: as if they had been there at once.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from apps.recsys.artefact import Artefact, Tags
from apps.recsys.export import (
    columns_of,
    kept_weights,
    linear_scorer,
    lists_of,
    matrix_of,
)
from apps.recsys.fold_in import folded
from apps.recsys.interactions import Interactions
from apps.recsys.models.closed_form import EASE, ItemKNN
from apps.recsys.ragged import Ids, Texts, ragged
from apps.recsys.scoring import FactorScorer, FoldIn, LinearScorer
from apps.recsys.tables import Table, dense, encode, from_arrays, integers

REFITTED = {"EASE": EASE, "ItemKNN": ItemKNN}
BY_ROW = (*dense.KINDS, *integers.KINDS)


def updated(artefact: Artefact, log: Interactions) -> Artefact:
    """The artefact with all interactions of `log`; what it knows already is no news.

    log: ids that the file knows, new ones, or both. Titles and tags of new items are
    taken from its item table, if it has one.

    Raises ValueError if the file holds no users, or a model that cannot be updated.
    """
    if len(artefact.user_ids) == 0:
        raise ValueError("the file holds no users and histories: nothing to go on from")
    user_ids, users = _with_new(artefact.user_ids, log.user_ids)
    item_ids, items = _with_new(artefact.item_ids, log.item_ids)
    shape = (len(user_ids), len(item_ids))
    old = matrix_of(artefact.history, shape[1])
    old.resize(shape)
    pairs = np.unique(np.stack([users[log.users], items[log.items]]), axis=1)
    ones = np.ones(pairs.shape[1], np.float32)
    new = sp.csr_array((ones, tuple(pairs)), shape=shape)
    new = sp.csr_array(new - new.multiply(old))
    new.eliminate_zeros()
    history = sp.csr_array(old + new)
    model: FactorScorer | LinearScorer
    if isinstance(artefact.model, FactorScorer):
        touched = np.flatnonzero(np.diff(new.indptr))
        model = _factors(artefact.model, old, history, touched)
    else:
        model = _refitted(artefact, history)
    added = len(item_ids) - len(artefact.item_ids)
    texts, tags = _columns(artefact, log, item_ids, added)
    popularity = np.zeros(shape[1], np.int64)
    popularity[: len(artefact.popularity)] = artefact.popularity
    popularity += np.bincount(new.indices, minlength=shape[1])
    told = dict(artefact.about)
    told["updates"] = [
        *told.get("updates", []),
        {
            "users": shape[0] - len(artefact.user_ids), "items": added,
            "interactions": int(new.nnz), "of": artefact.name,
        },
    ]  # fmt: skip
    return replace(
        artefact, user_ids=user_ids, item_ids=item_ids, history=lists_of(history),
        popularity=popularity, model=model, texts=texts, tags=tags, about=told, name="",
    )  # fmt: skip


def new_items(
    users: np.ndarray, buyers: sp.csr_array, fold_in: FoldIn, target: float
) -> np.ndarray:
    """[M, d] float32: vectors of items that were not trained.

    `FoldIn` with the sides exchanged: v minimises
        `sum_{u in B} (t - u.v)^2 + unseen sum_u (u.v)^2 + l2 |v|^2`
    over the users B who have the item.

    users: [U, d]. buyers: CSR [M, U]. target: t, at which old items score with those
    who have them, so that new ones compete with them.
    """
    return folded(fold_in, buyers, users) * np.float32(target)


def level(users: np.ndarray, items: np.ndarray, histories: sp.csr_array) -> float:
    """Mean of u.v over the pairs of the histories, CSR [U, I]; 1 if there are none."""
    if histories.nnz == 0:
        return 1.0
    total = 0.0
    for row in np.flatnonzero(np.diff(histories.indptr)):
        own = histories.indices[histories.indptr[row] : histories.indptr[row + 1]]
        total += float((items[own] @ users[row]).sum())
    return total / histories.nnz


def _factors(
    model: FactorScorer, old: sp.csr_array, history: sp.csr_array, touched: np.ndarray
) -> FactorScorer:
    """The model after an update. old, history: CSR [U, I] before and after it.

    touched: the users who have something new.
    """
    items = _all_rows(model.items)
    n_items, fold = len(items), model.fold_in
    known = sp.csr_array(history[:, :n_items])
    if model.users is None:
        target, rows = 1.0, np.arange(len(known.indptr) - 1)
        users = folded(fold, known, items)
    else:
        rows = touched
        users = np.zeros((history.shape[0], items.shape[1]), np.float32)
        users[: model.users.shape[0]] = _all_rows(model.users)
        target = level(users, items, sp.csr_array(old[:, :n_items]))
        users[rows] = folded(fold, known[rows], items) * np.float32(target)
    if history.shape[1] > n_items:
        # The penalty is to the users' mean squared length what it is to the items'.
        l2 = fold.l2 * _mean_square(users) / _mean_square(items)
        buyers = sp.csr_array(history[:, n_items:].T)
        late = new_items(users, buyers, FoldIn(fold.unseen, l2), target)
        places = np.arange(n_items, history.shape[1])
        model = replace(model, items=_with_rows(model.items, places, late))
        items = _all_rows(model.items)
        users[rows] = folded(fold, history[rows], items) * np.float32(target)
    if model.users is not None:
        model = replace(model, users=_with_rows(model.users, rows, users[rows]))
    return model


def _mean_square(vectors: np.ndarray) -> float:
    return float((vectors.astype(np.float64) ** 2).sum(1).mean())


def _refitted(artefact: Artefact, history: sp.csr_array) -> LinearScorer:
    told = dict(artefact.about.get("model", {}))
    name, keep = told.pop("name", None), told.pop("keep", None)
    if name not in REFITTED:
        raise ValueError(
            "item weights are fitted again, but the file does not tell how: export it "
            f"with settings= of {' or '.join(REFITTED)}"
        )
    try:
        settings = REFITTED[name](**told)
    except TypeError as error:
        raise ValueError(f"the file's settings of {name} do not fit: {error}") from None
    return linear_scorer(kept_weights(settings.fit(history).weights, keep))


def _with_rows(table: Table, rows: np.ndarray, vectors: np.ndarray) -> Table:
    """The table with these rows replaced, or appended; all others bit for bit."""
    if len(rows) == 0:
        return table
    if table.kind not in BY_ROW:
        raise ValueError(
            f"a table of kind {table.kind} has no rows of its own to replace: pack "
            "float32 vectors, update them, then pack again"
        )
    n = max(table.shape[0], int(rows.max()) + 1)
    fresh = encode(vectors, table.kind).arrays()
    arrays = {}
    for name, array in table.arrays().items():
        arrays[name] = np.zeros((n, *array.shape[1:]), array.dtype)
        arrays[name][: len(array)] = array
        arrays[name][rows] = fresh[name]
    return from_arrays(table.kind, (n, table.shape[1]), arrays, table.settings())


def _all_rows(table: Table) -> np.ndarray:
    return table.rows(slice(None))


def _with_new(ids: Ids, more: np.ndarray) -> tuple[Ids, np.ndarray]:
    """Ids with those of `more` that are new at the end, and the index of each."""
    found = [ids.find(text) for text in more]
    fresh = [text for text, index in zip(more, found, strict=True) if index is None]
    places = iter(range(len(ids), len(ids) + len(fresh)))
    index = [next(places) if index is None else index for index in found]
    if not fresh:
        return ids, np.array(index, np.int64)
    return Ids.of([*ids, *fresh]), np.array(index, np.int64)


def _columns(
    artefact: Artefact, log: Interactions, item_ids: Ids, added: int
) -> tuple[dict[str, Texts], dict[str, Tags]]:
    """Titles and tags with those of the new items: empty where the log tells none."""
    n_old = len(artefact.item_ids)
    rows = {text: row for row, text in enumerate(log.item_ids)}
    late = [rows[item_ids[i]] for i in range(n_old, n_old + added)]
    new_texts: dict[str, Any] = {}
    new_tags: dict[str, Any] = {}
    if log.item_table is not None:
        new_texts, new_tags = columns_of(log.item_table.iloc[late])
    texts = {
        column: Texts.of([*old, *new_texts.get(column, [""] * added)])
        for column, old in artefact.texts.items()
    }
    tags = {
        column: _joined(old, new_tags.get(column), n_old)
        for column, old in artefact.tags.items()
    }
    return texts, tags


def _joined(old: Tags, late: Tags | None, n_old: int) -> Tags:
    """Items of `late` are numbered from n_old on."""
    if late is None:
        return old
    items = {value: old.items[i] for i, value in enumerate(old.values)}
    for i, value in enumerate(late.values):
        before = items.get(value, np.empty(0, np.int32))
        items[value] = np.concatenate([before, late.items[i] + n_old])
    values = sorted(items)
    return Tags(Ids.of(values), ragged([items[value] for value in values]))
