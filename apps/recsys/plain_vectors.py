"""Vectors and ids as plain numpy arrays, for an index or a program of your own.

    write("vectors.npz", artefact)
    arrays = np.load("vectors.npz")          # no pickle in it
    arrays["items"] @ arrays["users"][7]     # scores of all items for one user

The item vectors are what an index for maximum inner products takes; `item_ids` has the
id of each row.
"""

from pathlib import Path

import numpy as np

from apps.recsys.artefact import Artefact
from apps.recsys.scoring import FactorScorer
from sparsekit import atomic


def write(path: str | Path, artefact: Artefact) -> None:
    """Create or replace an .npz file of a model of vectors.

    items: [I, d] float32; item_ids: [I] text. users: [U, d] float32 and user_ids: [U]
    text, if the artefact stores vectors of users; whom it does not, `FoldIn` finds:
    unseen and l2 are there, of its formula.

    Raises ValueError for a model of item weights.
    """
    model = artefact.model
    if not isinstance(model, FactorScorer):
        raise ValueError(
            "item weights (EASE, ItemKNN) are no vectors: an .npz file takes mf, "
            "lightgcn or als; write a .safetensors file"
        )
    arrays = {
        "items": model.items.rows(slice(None)),
        "item_ids": np.array(list(artefact.item_ids), str),
        "unseen": np.float64(model.fold_in.unseen),
        "l2": np.float64(model.fold_in.l2),
    }
    if model.users is not None:
        arrays["users"] = model.users.rows(slice(None))
        arrays["user_ids"] = np.array(list(artefact.user_ids), str)
    atomic.write(Path(path), lambda file: np.savez(file, **arrays))
