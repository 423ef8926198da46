"""The attack on users against loops and scikit-learn; lists beside lists."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.metrics import roc_auc_score

from apps.common.roc import auc
from apps.recsys.forgetting import effects, membership
from apps.recsys.models.closed_form import EASE
from apps.recsys.models.factors import Factors
from tests.apps.recsys.artefacts import dataset


@pytest.fixture(scope="module")
def data():
    return dataset()


def random_matrix(rng, users, items):
    return sp.csr_array((rng.random((users, items)) < 0.4).astype(np.float32))


def test_cohesion_by_loops():
    rng = np.random.default_rng(0)
    v, groups = rng.normal(size=(23, 3)), random_matrix(rng, 5, 23)
    gram = v.T @ v
    ridge = membership.RIDGE * np.trace(gram) / 3
    a = np.linalg.inv(gram + ridge * np.eye(3))
    wanted = []
    for row in groups.toarray():
        members = np.flatnonzero(row)
        inside = [sum(v[i] @ a @ v[j] for j in members if j != i) for i in members]
        rest = [sum(v[i] @ a @ v[j] for j in members)
                for i in range(23) if i not in members]  # fmt: skip
        wanted.append((np.mean(inside) - np.mean(rest)) / np.std(rest))
    found = membership.cohesion(v, groups)
    np.testing.assert_allclose(found, wanted)
    turned = v @ np.linalg.qr(rng.normal(size=(3, 3)))[0] * 7
    np.testing.assert_allclose(membership.cohesion(turned, groups), wanted)


def test_groups_that_say_nothing():
    v = np.random.default_rng(0).normal(size=(4, 2))
    groups = sp.csr_array(np.array([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]))
    assert np.isnan(membership.cohesion(v, groups)).all()


def test_the_attack_finds_users_of_item_weights():
    """EASE learned from the first forty users and not from the others."""
    rng = np.random.default_rng(0)
    x = sp.csr_array((rng.random((80, 60)) < 0.15).astype(np.float32))
    seen, unseen = x[:40], x[40:]
    model = EASE(l2=5.0).fit(seen)
    reference = EASE(l2=5.0).fit(x[20:40])
    values = [
        membership.calibrated(
            membership.of_users(model, part), [membership.of_users(reference, part)]
        )
        for part in (seen[:20], unseen)
    ]
    area = auc(*values)
    labels = np.repeat([1, 0], [20, 40])
    assert area == pytest.approx(roc_auc_score(labels, np.concatenate(values)))
    assert area > 0.9


def test_scores_of_halves(data):
    model = EASE(l2=5.0).fit(data.train)
    found = membership.recall_of_halves(model.fold_in, data.train)
    for user in (0, 7):
        own = data.train[[user]].indices
        rest = np.setdiff1d(np.arange(47), own)
        value = 0.0
        for given_, asked in ((own[::2], own[1::2]), (own[1::2], own[::2])):
            scores = model.weights[given_].sum(0)
            value += (scores[asked].mean() - scores[rest].mean()) / scores[rest].std()
        assert found[user] == pytest.approx(value / 2, rel=1e-4)


def test_scores_of_pairs_in_the_users_own_units():
    rng = np.random.default_rng(0)
    model = Factors(rng.normal(size=(6, 3)), rng.normal(size=(9, 3)))
    users, items = np.array([4, 0, 4]), np.array([1, 8, 2])
    scores = model.users.astype(float) @ model.items.T.astype(float)
    wanted = [(scores[u, i] - scores[u].mean()) / scores[u].std()
              for u, i in zip(users, items, strict=True)]  # fmt: skip
    found = membership.of_pairs(model, users, items)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_models_without_an_attack():
    with pytest.raises(ValueError, match="neither vectors nor fold_in"):
        membership.of_users(object(), sp.csr_array((1, 3)))
    with pytest.raises(ValueError, match="no vectors of users"):
        membership.of_items(object(), sp.csr_array((1, 3)))
    with pytest.raises(ValueError, match="at least one reference"):
        membership.calibrated(np.ones(3), [])


def test_lists_beside_lists(data):
    rng = np.random.default_rng(0)
    ours, theirs = (
        np.stack([rng.choice(47, 10, replace=False) for _ in range(31)])
        for _ in range(2)
    )
    theirs[3] = -1
    found = effects.same_items(ours, theirs, 5)
    assert np.isnan(found[3])
    assert found[0] == len(set(ours[0][:5]) & set(theirs[0][:5])) / 5

    groups = sp.csr_array(data.train[[2, 9]])
    shares = effects.in_neighbours_lists(ours, data.train, groups, neighbours=3, k=5)
    dense = data.train.toarray()
    for row, user in enumerate((2, 9)):
        cosine = dense @ dense[user] / np.sqrt(np.maximum(dense.sum(1), 1))
        near = np.argsort(-cosine, kind="stable")[:3]
        own = set(np.flatnonzero(dense[user]))
        wanted = np.mean([item in own for u in near for item in ours[u][:5]])
        assert shares[row] == pytest.approx(wanted)


def test_a_difference_over_users_who_have_both():
    found = effects.difference(np.array([1, np.nan, 3]), np.array([0, 5, 1]))
    assert (found.value, found.n) == (1.5, 2)
