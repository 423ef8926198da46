"""A file of a recommender with new interactions, users and items in it, not trained.

    newer = updated(load("model.safetensors"), read("today.csv"))
    save("model.safetensors", newer)

Factors, with the vectors that are there:

1. Users with new interactions get the vector of their whole history (`FoldIn`).
2. New items get vectors from those of their users, as the trained items would
   (`ItemFold`).
3. Users of new items are folded in again, now with those.

Vectors of other users and items do not move. Folding in depends on the whole history
alone, so interactions may come in one file or in many, and a user who was added gets
the list of one who shows that history. Items that come later do depend on what was
known before: train again from time to time.

Item weights are fitted again from all interactions: as if they had been there at once.
"""

from dataclasses import dataclass, replace
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
    numbers_of,
)
from apps.recsys.fold_in import L2, UNSEEN, folded, level, mean_square, scale_of
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
        model = refitted(artefact, history)
    added = len(item_ids) - len(artefact.item_ids)
    late = _late(artefact, log, item_ids)
    texts, tags = _columns(artefact, late, added)
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
        numbers=_numbers(artefact, late, added),
    )  # fmt: skip


@dataclass(frozen=True)
class ItemFold:
    """How an item's vector follows from its users: `scale` times a `FoldIn`.

    `FoldIn` with the sides exchanged: v minimises
        `sum_{u in B} (1 - u.v)^2 + unseen sum_u (u.v)^2 + l2 |v|^2`
    over the users B who have the item.
    """

    fold_in: FoldIn
    scale: float

    def vectors(self, users: np.ndarray, buyers: sp.csr_array) -> np.ndarray:
        """[M, d] float32. users: [U, d]. buyers: CSR [M, U]."""
        return folded(self.fold_in, buyers, users) * np.float32(self.scale)


def item_fold(
    users: np.ndarray, items: np.ndarray, buyers: sp.csr_array, most: int = 1000
) -> ItemFold:
    """The `ItemFold` that gives the items that are there their own vectors, nearly.

    unseen and l2 are those whose vectors have the largest cosine to the trained ones,
    over `most` items at random. The scale then gives them the mean score of the trained
    ones over all known pairs: new items are to be recommended as often as old ones,
    whatever the lengths of the model's vectors.

    users: [U, d]; items: [I, d]; buyers: CSR [I, U].

    Raises ValueError if that mean is not positive: there is nothing to match.
    """
    chosen = np.flatnonzero(np.diff(buyers.indptr))
    if len(chosen) > most:
        rng = np.random.default_rng(0)
        chosen = np.sort(rng.choice(chosen, most, replace=False))
    trained, buyers = items[chosen], buyers[chosen]
    unit = mean_square(users)
    wanted = level(trained, users, buyers)
    if not (wanted > 0 and unit > 0):
        raise ValueError(
            "known pairs have no positive score on the average: new items find no "
            "place among the old ones; train again"
        )
    best, cosine = ItemFold(FoldIn(0, unit), 1.0), -np.inf
    for unseen in UNSEEN:
        for factor in L2:
            fold = FoldIn(unseen, factor * unit)
            found = folded(fold, buyers, users)
            both = float(np.sqrt((found**2).sum() * (trained**2).sum()))
            value = float((found * trained).sum()) / both
            if value > cosine:
                scale = wanted / level(found, users, buyers)
                best, cosine = ItemFold(fold, scale), value
    return best


def _factors(
    model: FactorScorer, old: sp.csr_array, history: sp.csr_array, touched: np.ndarray
) -> FactorScorer:
    """The model after an update. old, history: CSR [U, I] before and after it.

    touched: the users who have something new.
    """
    items, fold = _all_rows(model.items), model.fold_in
    n_items, n_users = len(items), history.shape[0]
    old, known = (sp.csr_array(part[:, :n_items]) for part in (old, history))
    users = np.zeros((n_users, items.shape[1]), np.float32)
    n_trained, scale = 0, 1.0
    if model.users is not None:
        n_trained = model.users.shape[0]
        users[:n_trained] = _all_rows(model.users)
        scale = scale_of(users, items, old, fold)
    if history.shape[1] > n_items:
        # Users who were trained stay what they are for this.
        users[n_trained:] = folded(fold, known[n_trained:], items) * np.float32(scale)
        solve = item_fold(users, items, sp.csr_array(old.T))
        vectors = solve.vectors(users, sp.csr_array(history[:, n_items:].T))
        places = np.arange(n_items, history.shape[1])
        model = replace(model, items=_with_rows(model.items, places, vectors))
        items = _all_rows(model.items)
    if model.users is None:
        return model
    vectors = folded(fold, history[touched], items) * np.float32(scale)
    return replace(model, users=_with_rows(model.users, touched, vectors))


def refitted(artefact: Artefact, history: sp.csr_array) -> LinearScorer:
    """Item weights fitted on other histories, by the settings that the file tells.

    Raises ValueError if it tells none.
    """
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


def _late(artefact: Artefact, log: Interactions, item_ids: Ids) -> Any:
    """The rows of the log's item table for the new items, or None."""
    if log.item_table is None:
        return None
    rows = {text: row for row, text in enumerate(log.item_ids)}
    new = range(len(artefact.item_ids), len(item_ids))
    return log.item_table.iloc[[rows[item_ids[i]] for i in new]]


def _numbers(artefact: Artefact, late: Any, added: int) -> dict[str, np.ndarray]:
    """With those of the new items: NaN where the log tells none."""
    new = numbers_of(late)
    unknown = np.full(added, np.nan)
    return {
        column: np.concatenate([old, new.get(column, unknown)])
        for column, old in artefact.numbers.items()
    }


def _columns(
    artefact: Artefact, late: Any, added: int
) -> tuple[dict[str, Texts], dict[str, Tags]]:
    """Titles and tags with those of the new items: empty where the log tells none."""
    n_old = len(artefact.item_ids)
    new_texts, new_tags = columns_of(late)
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
