"""What a program of one's own computes from the arrays is what the file recommends."""

import numpy as np
import pytest

from apps.recsys.export import artefact_of, factors_of
from apps.recsys.models.closed_form import EASE
from apps.recsys.models.factors import Factors
from apps.recsys.plain_vectors import write
from apps.recsys.recommender import Recommender
from apps.recsys.scoring import FoldIn
from apps.recsys.tables import encode
from tests.apps.recsys.artefacts import dataset, vectors

FOLD = FoldIn(0.1, 0.5)


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_inner_products_give_the_same_lists(tmp_path, kind):
    data = dataset()
    artefact = artefact_of(Factors(*vectors(data)), data, kind=kind, fold_in=FOLD)
    write(tmp_path / "v.npz", artefact)
    arrays = np.load(tmp_path / "v.npz", allow_pickle=False)
    scores = arrays["users"] @ arrays["items"].T
    for row, user in enumerate(arrays["user_ids"]):
        seen = artefact.history[row]
        order = [i for i in np.argsort(-scores[row], kind="stable") if i not in seen]
        found = Recommender(artefact).recommend(str(user), k=5)
        assert [r.item for r in found.items] == arrays["item_ids"][order[:5]].tolist()


def test_somebody_new_by_the_formula(tmp_path):
    """Without vectors of users: the documented ridge regression, written out."""
    data = dataset()
    items = encode(vectors(data)[1], "float32")
    artefact = factors_of(None, items, data, fold_in=FOLD)
    write(tmp_path / "v.npz", artefact)
    arrays = np.load(tmp_path / "v.npz", allow_pickle=False)
    assert "users" not in arrays
    v, history = arrays["items"].astype(float), [3, 11, 20]
    own = v[history]
    a = own.T @ own + arrays["unseen"] * v.T @ v + arrays["l2"] * np.eye(v.shape[1])
    scores = v @ np.linalg.solve(a, own.sum(0))
    scores[history] = -np.inf
    asked = arrays["item_ids"][history].tolist()
    found = Recommender(artefact).recommend(history=asked, k=7)
    best = np.argsort(-scores, kind="stable")[:7]
    assert [r.item for r in found.items] == arrays["item_ids"][best].tolist()


def test_item_weights_are_no_vectors(tmp_path):
    data = dataset()
    with pytest.raises(ValueError, match="are no vectors"):
        write(tmp_path / "v.npz", artefact_of(EASE(5.0).fit(data.train), data))
