"""The file's lists against later interactions, beside a count by hand."""

import math

import numpy as np
import pytest

from apps.recsys.backtest import backtest
from apps.recsys.export import artefact_of
from apps.recsys.interactions import Interactions
from apps.recsys.models.closed_form import EASE
from apps.recsys.models.factors import Factors
from apps.recsys.recommender import Recommender
from apps.recsys.scoring import FoldIn
from tests.apps.recsys.artefacts import dataset, vectors

FOLD = FoldIn(0.1, 0.5)


def later(pairs):
    user_ids, users = np.unique([u for u, _ in pairs], return_inverse=True)
    item_ids, items = np.unique([i for _, i in pairs], return_inverse=True)
    return Interactions(
        "later", users.astype(np.int32), items.astype(np.int32),
        user_ids.astype(object), item_ids.astype(object),
    )  # fmt: skip


@pytest.fixture(params=["vectors", "weights"])
def artefact(request):
    """Its history is the training part alone."""
    data = dataset()
    if request.param == "vectors":
        users, items = vectors(data)
        return artefact_of(
            Factors(users, items), data, fold_in=FOLD, history=data.train
        )
    return artefact_of(EASE(5.0).fit(data.train), data, history=data.train)


def test_by_hand(artefact):
    """Recall and NDCG of each user from the recommender's own lists."""
    rng = np.random.default_rng(1)
    pairs = [(f"u/{rng.integers(33)}", f"i{rng.integers(50)}") for _ in range(200)]
    found = backtest(artefact, later(pairs))
    recommender = Recommender(artefact)
    known_users, known_items = set(artefact.user_ids), set(artefact.item_ids)
    histories = {
        user: {artefact.item_ids[i] for i in artefact.history[row]}
        for row, user in enumerate(artefact.user_ids)
    }
    count = dict.fromkeys(found.counts, 0)
    wanted, seen = {}, set()
    for user, item in pairs:
        if user not in known_users:
            count["of unknown users"] += 1
        elif item not in known_items:
            count["of unknown items"] += 1
        elif (user, item) in seen:
            count["repeated"] += 1
        elif item in histories[user]:
            count["in the history already"] += 1
        else:
            count["tested"] += 1
            wanted.setdefault(user, set()).add(item)
        seen.add((user, item))
    assert found.counts == count
    assert min(count.values()) > 0
    assert sum(count.values()) == len(pairs)

    ndcg, recall = [], []
    for user in sorted(wanted, key=artefact.user_ids.find):
        items = [r.item for r in recommender.recommend(user, k=10).items]
        gains = [1 / math.log2(r + 2) for r, i in enumerate(items) if i in wanted[user]]
        n = len(wanted[user])
        ndcg.append(sum(gains) / sum(1 / math.log2(r + 2) for r in range(min(n, 10))))
        recall.append(len(gains) / n)
    np.testing.assert_allclose(found.values["ndcg@10"], ndcg, atol=1e-12)
    np.testing.assert_allclose(found.values["recall@10"], recall, atol=1e-12)


def test_popularity_beside_it(artefact):
    """Everybody turns to the most popular item that is new to them: rank 1 for it."""
    order = np.argsort(-artefact.popularity, kind="stable")
    pairs = [
        (user, artefact.item_ids[next(i for i in order if i not in set(own))])
        for user, own in zip(artefact.user_ids, artefact.history, strict=True)
    ]
    found = backtest(artefact, later(pairs))
    assert (found.popular["ndcg@5"] == 1).all()
    assert found.counts["tested"] == 31
    told = found.content()
    assert told["popularity"]["ndcg@20"]["value"] == 1
    assert told["differences"]["ndcg@20"]["value"] == pytest.approx(
        told["metrics"]["ndcg@20"]["value"] - 1
    )
    assert "31 users" in found.table()


def test_nothing_to_test_on(artefact):
    with pytest.raises(ValueError, match="nothing to test the file on: 2 of unknown u"):
        backtest(artefact, later([("a", "i1"), ("b", "i2")]))
