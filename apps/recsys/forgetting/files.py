"""Forgets in an exported file: exactly for item weights, rows alone for vectors.

newer = without(load("ease.safetensors"), Request(users=("42",)), "refit")
save("ease.safetensors", newer)
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from apps.recsys.artefact import Artefact, Tags
from apps.recsys.export import kept_weights, linear_scorer, lists_of, matrix_of
from apps.recsys.forgetting.downdate import downdated
from apps.recsys.forgetting.request import Request, refuse_twice, refuse_unknown
from apps.recsys.ragged import Ids, Texts, ragged
from apps.recsys.scoring import FactorScorer, LinearScorer
from apps.recsys.tables import Table, from_arrays
from apps.recsys.updates import BY_ROW, refitted
from sparsekit.spelling import choice

METHODS = ("refit", "downdate", "drop")


def without(artefact: Artefact, request: Request, method: str) -> Artefact:
    """The recommender without users, items and interactions of the request.

    method: for item weights "refit", fitted again on the histories that stay, or
    "downdate", the same for EASE without a fit (`downdate.downdated`). For vectors
    "drop": ids, histories, rows and popularity go, and what the vectors of the others
    have learned from them stays; interactions cannot be dropped from a vector.

    A user whose last interaction goes stays, and is recommended what is popular.

    Raises ValueError that names the fix.
    """
    users, items = _check(artefact, request, method)
    before = matrix_of(artefact.history, len(artefact.item_ids))
    after = _emptied(before, artefact, request, users, items)
    model = _model(artefact, before, after, users, items, method)
    history = sp.csr_array(after[users][:, items])
    history.sort_indices()
    told = {"method": method, "users": len(request.users)}
    told |= {"items": len(request.items), "interactions": len(request.pairs)}
    forgettings = [*artefact.about.get("forgettings", []), told]
    return replace(
        artefact,
        user_ids=Ids.of([artefact.user_ids[i] for i in users]),
        item_ids=Ids.of([artefact.item_ids[i] for i in items]),
        history=lists_of(history),
        popularity=np.bincount(history.indices, minlength=len(items)),
        model=model,
        texts={
            name: Texts.of([texts[i] for i in items])
            for name, texts in artefact.texts.items()
        },
        tags={name: _tags(tags, items) for name, tags in artefact.tags.items()},
        numbers={name: values[items] for name, values in artefact.numbers.items()},
        about={**artefact.about, "forgettings": forgettings},
        name="",
    )


def _check(
    artefact: Artefact, request: Request, method: str
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of users and items that stay; ValueError for what cannot be done."""
    if method not in METHODS:
        raise ValueError(choice(f"no method {method!r} for a file", method, METHODS))
    if not (request.users or request.items or request.pairs):
        raise ValueError("nothing to forget: give users, items or interactions")
    if len(artefact.user_ids) == 0:
        raise ValueError("the file holds no users and histories: nothing to forget in")
    if isinstance(artefact.model, FactorScorer):
        if method != "drop":
            raise ValueError(
                "vectors have learned from the others too, and a file cannot be "
                "trained: forget in the run (--run) and export that, or say --method "
                "drop, after which the item vectors still give the users away"
            )
        if request.pairs:
            raise ValueError("interactions cannot be dropped from vectors: use --run")
    elif method == "drop":
        raise ValueError("item weights are forgotten in exactly: use --method refit")
    stays = []
    for what, ids, known in (
        ("user", request.users, artefact.user_ids),
        ("item", request.items, artefact.item_ids),
    ):
        refuse_twice(what, ids)
        found = [known.find(name) for name in ids]
        refuse_unknown(what, ids, found, "the file")
        if len(ids) == len(known):
            raise ValueError(f"these are all {len(known):,} {what}s: delete the file")
        stays.append(np.setdiff1d(np.arange(len(known)), np.array(found, np.int64)))
    refuse_twice("interaction", request.pairs)
    return stays[0], stays[1]


def _emptied(
    before: sp.csr_array, artefact: Artefact, request: Request, users: np.ndarray,
    items: np.ndarray,
) -> sp.csr_array:  # fmt: skip
    """The histories, of the same shape, without what goes."""
    coo = before.tocoo()
    width = before.shape[1]
    pairs = _pair_keys(artefact, request, before)
    stays = np.isin(coo.row, users) & np.isin(coo.col, items)
    stays &= ~np.isin(coo.row.astype(np.int64) * width + coo.col, pairs)
    if not stays.any():
        raise ValueError("no interaction is left: delete the file")
    entries = (coo.data[stays], (coo.row[stays], coo.col[stays]))
    return sp.csr_array(entries, shape=before.shape)


def _pair_keys(
    artefact: Artefact, request: Request, before: sp.csr_array
) -> np.ndarray:
    found: list[int | None] = []
    for user, item in request.pairs:
        row, column = artefact.user_ids.find(user), artefact.item_ids.find(item)
        known = row is not None and column is not None
        known = known and bool(np.isin(column, artefact.history[row]))
        found.append(row * before.shape[1] + column if known else None)
    refuse_unknown("interaction", request.pairs, found, "the file")
    return np.array(found, np.int64)


def _model(
    artefact: Artefact, before: sp.csr_array, after: sp.csr_array, users: np.ndarray,
    items: np.ndarray, method: str,
) -> FactorScorer | LinearScorer:  # fmt: skip
    model = artefact.model
    if isinstance(model, FactorScorer):
        own = None if model.users is None else _rows(model.users, users)
        return FactorScorer(own, _rows(model.items, items), model.fold_in)
    if method == "refit":
        return refitted(artefact, sp.csr_array(after[:, items]))
    told: Mapping[str, Any] = artefact.about.get("model", {})
    if told.get("name") != "EASE" or told.get("keep") is not None or "l2" not in told:
        raise ValueError(
            "downdate needs all weights of EASE and its l2, as export writes them "
            "without --keep: use --method refit"
        )
    spread = sp.csr_array(
        (model.values.astype(np.float32), model.weights.values, model.weights.offsets),
        shape=before.shape[1:] * 2,
    )
    weights = downdated(spread.toarray(), before, after, float(told["l2"]))
    return linear_scorer(kept_weights(weights[np.ix_(items, items)]))


def _rows(table: Table, rows: np.ndarray) -> Table:
    if len(rows) == table.shape[0]:
        return table
    if table.kind not in BY_ROW:
        raise ValueError(
            f"a table of kind {table.kind} has no rows of its own to drop: forget in "
            "the run (--run) and export again"
        )
    arrays = {name: array[rows] for name, array in table.arrays().items()}
    return from_arrays(
        table.kind, (len(rows), table.shape[1]), arrays, table.settings()
    )


def _tags(tags: Tags, items: np.ndarray) -> Tags:
    """Of the items that stay; values that no item has any more are gone."""
    number = {old: new for new, old in enumerate(items.tolist())}
    left = {}
    for index, value in enumerate(tags.values):
        own = [number[i] for i in tags.items[index].tolist() if i in number]
        if own:
            left[value] = own
    return Tags(Ids.of(list(left)), ragged(list(left.values())))
