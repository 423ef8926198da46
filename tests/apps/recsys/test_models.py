"""Baselines against their definitions, and a choice that cannot see the test part."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.sparse as sp

from apps.recsys.data import load
from apps.recsys.evaluation import evaluate, select
from apps.recsys.models.closed_form import (
    EASE,
    Cooccurrence,
    Counts,
    ItemKNN,
    Popularity,
)

RECOMMENDERS = (Popularity(), ItemKNN(5, 1.0), EASE(3.0), Cooccurrence())


@pytest.fixture(scope="module")
def train():
    """31 users x 17 items; one user and one item have nothing."""
    table = np.random.default_rng(0).random((31, 17)) < 0.25
    table[3], table[:, 5] = False, False
    return sp.csr_array(table, dtype=np.float32)


@pytest.mark.parametrize("recommender", RECOMMENDERS, ids=lambda r: type(r).__name__)
def test_common(recommender, train):
    """Shape and type, blocks, folding in, stored values that are not 1."""
    model = recommender.fit(train)
    every = model.scores(np.arange(31))
    assert every.shape == (31, 17)
    assert every.dtype == np.float32
    assert np.isfinite(every).all()
    np.testing.assert_array_equal(model.scores(np.array([7, 3])), every[[7, 3]])
    np.testing.assert_array_equal(model.fold_in(train), every)
    doubled = train * 2
    np.testing.assert_allclose(
        recommender.fit(doubled).scores(np.arange(31)), every, atol=1e-6
    )
    assert (doubled.data == 2).all()


@pytest.mark.parametrize(
    "recommender", RECOMMENDERS[1:], ids=lambda r: type(r).__name__
)
def test_two_worlds(recommender):
    """Users of one half never get a score above zero for the other half's items."""
    block = np.ones((4, 6)) - np.eye(4, 6)
    train = sp.csr_array(np.kron(np.eye(2), block), dtype=np.float32)
    scores = recommender.fit(train).scores(np.arange(8))
    own = np.kron(np.eye(2), np.ones((4, 6))) > 0
    missing = own & (train.toarray() == 0)
    assert scores[missing].min() > np.abs(scores[~own]).max() + 1e-3


def test_popularity(train):
    scores = Popularity().fit(train).scores(np.array([0]))
    np.testing.assert_array_equal(scores[0], train.toarray().sum(0))


def test_item_neighbours(train):
    table = train.toarray().astype(np.float64)
    shared, count = table.T @ table, table.sum(0)
    similar = shared / (np.sqrt(np.outer(count, count)) + 1.0)
    np.fill_diagonal(similar, 0)
    for i in range(17):  # the five best of item i, ties to the lower index
        similar[i, np.argsort(-similar[i], kind="stable")[5:]] = 0
    expected = table @ similar.T
    scores = ItemKNN(5, 1.0).fit(train).scores(np.arange(31))
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_ease_is_a_ridge_regression(train):
    """Column j: regression of item j on the others, solved on its own."""
    table = train.toarray().astype(np.float64)
    weights = np.zeros((17, 17))
    for j in range(17):
        others = np.delete(np.arange(17), j)
        x = table[:, others]
        weights[others, j] = np.linalg.solve(
            x.T @ x + 3 * np.eye(16), x.T @ table[:, j]
        )
    model = EASE(3.0).fit(train)
    np.testing.assert_allclose(model.weights, weights, atol=1e-5)
    np.testing.assert_allclose(model.scores(np.arange(31)), table @ weights, atol=1e-5)


def test_two_hops(train):
    table = train.toarray().astype(np.float64)
    users, items = (np.maximum(table.sum(axis), 1) for axis in (1, 0))
    normal = table / np.sqrt(np.outer(users, items))
    scores = Cooccurrence().fit(train).scores(np.arange(31))
    np.testing.assert_allclose(scores, table @ normal.T @ normal, atol=1e-5)


def test_refusals(train):
    with pytest.raises(ValueError, match="neighbours"):
        ItemKNN(0)
    with pytest.raises(ValueError, match="l2"):
        EASE(0)
    with pytest.raises(ValueError, match="raise most_items"):
        EASE(most_items=16).fit(train)


def test_evaluation_masks_what_is_known():
    data = load("ml100k")
    model = EASE(400).fit(data.train)
    for part in ("valid", "test"):
        result = evaluate(model, data, part, (5, 20))
        scores = model.scores(np.arange(942))
        scores[data.known(part).toarray() > 0] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :20]
        has = np.diff(data.part(part).indptr) > 0
        np.testing.assert_array_equal(result.ranked[has], order[has])
        assert (result.ranked[~has] == -1).all()
        assert result.intervals["ndcg@20"].n == has.sum()
        assert result.means["ndcg@20"] == pytest.approx(
            np.mean(result.values["ndcg@20"][has])
        )


def test_what_is_known_about_movielens():
    """EASE beats neighbours beat popularity, and by how much."""
    data = load("ml100k")
    final = data.final()
    means = [
        evaluate(r.fit(final.train), data, "test").means["ndcg@20"]
        for r in (Popularity(), ItemKNN(300, 0.0), EASE(400))
    ]
    assert means == pytest.approx([0.129, 0.244, 0.283], abs=0.002)


@dataclass(frozen=True)
class Fixed:
    """Recommends the columns of a matrix, most frequent first."""

    wanted: sp.csr_array

    def fit(self, train):
        return Counts(np.bincount(self.wanted.indices, minlength=train.shape[1]))


def test_selection_is_by_validation_alone():
    """Settings that are tuned to the test part do not win."""
    data = load("ml100k")
    for_valid, for_test = Fixed(data.valid), Fixed(data.test)
    chosen = select([for_test, for_valid], data)
    assert chosen.best is for_valid
    assert [row[0] for row in chosen.table] == [for_test, for_valid]
    blind = replace(data, test=sp.csr_array(data.shape, dtype=np.float32))
    again = select([for_test, for_valid], blind)
    assert [v for _, v in again.table] == [v for _, v in chosen.table]
    with pytest.raises(ValueError, match="no settings"):
        select([], data)
