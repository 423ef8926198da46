"""Scores against matrix products, fold-in against least squares, lists against sort."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from apps.recsys.export import kept_weights, linear_scorer
from apps.recsys.models import closed_form
from apps.recsys.scoring import FactorScorer, FoldIn, best
from apps.recsys.tables import encode, stored
from tests.apps.recsys.artefacts import binary, dataset, vectors


@given(
    arrays_of.arrays(
        np.float32,
        st.integers(1, 40),
        elements=st.sampled_from([-np.inf, -3.4e38, -1.0, 0.0, 0.5, 1.0, 2.0, 3.4e38]),
    ),
    st.integers(1, 45),
)
def test_the_best_are_those_of_a_sort(scores, k):
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    finite = [i for i in order if scores[i] > -np.inf]
    assert best(scores, k).tolist() == finite[:k]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_score_is_refused(bad):
    scores = np.zeros(200, np.float32)
    scores[77] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        best(scores, 3)


@pytest.fixture(scope="module")
def factors():
    users, items = vectors(dataset())
    return users, items


def scorer(factors, kind="float32", fold_in=None):
    users, items = factors
    return FactorScorer(
        encode(users, kind), encode(items, kind), fold_in or FoldIn(0.1, 0.5)
    )


@pytest.mark.parametrize("kind", ["float32", "float16", "int8", "int4"])
def test_trained_scores_are_products_of_the_tables(factors, kind, monkeypatch):
    monkeypatch.setattr(stored, "BLOCK", 10)  # several, the last one shorter
    model = scorer(factors, kind)
    users, items = (t.rows(np.arange(t.shape[0])) for t in (model.users, model.items))
    for user in (0, 7, 30):
        np.testing.assert_allclose(
            model.trained(user), items @ users[user], rtol=1e-5, atol=1e-6
        )
    np.testing.assert_allclose(model.gram, items.T @ items, atol=1e-5)
    np.testing.assert_allclose(model.lengths, np.linalg.norm(items, axis=1), rtol=1e-6)


@pytest.mark.parametrize("unseen", [0.0, 0.03, 1.0])
@pytest.mark.parametrize("history", [[3], [2, 11, 46, 7, 19, 23, 5]])
def test_a_fold_in_is_the_least_squares_solution(factors, unseen, history):
    """The objective's three sums, as rows of one system that lstsq solves."""
    _, items = factors
    fold = FoldIn(unseen, 0.7)
    chosen = items[history]
    rows = [chosen, np.sqrt(unseen) * items, np.sqrt(0.7) * np.eye(items.shape[1])]
    wanted = np.concatenate(
        [np.ones(len(history)), np.zeros(len(items) + len(rows[2]))]
    )
    expected = np.linalg.lstsq(np.concatenate(rows), wanted)[0]
    found = fold.vector(chosen, items.T @ items)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    parts = fold.parts(chosen, items.T @ items)
    assert parts.shape == chosen.shape
    np.testing.assert_allclose(parts.sum(0), found, rtol=1e-6, atol=1e-9)


def test_a_fold_in_is_implicits():
    """Its confidence 1 + alpha of an entry, 1 elsewhere: our unseen, l2 over alpha."""
    als = pytest.importorskip("implicit.cpu.als")
    rng = np.random.default_rng(0)
    items = rng.standard_normal((40, 8)).astype(np.float32)
    history, alpha, l2 = [2, 3, 5, 17, 31], 6.0, 0.3
    model = als.AlternatingLeastSquares(factors=8, regularization=l2)
    model.item_factors = items
    row = sp.csr_matrix(binary([history], 40) * np.float32(1 + alpha))
    theirs = model.recalculate_user(0, row)
    ours = FoldIn(1 / alpha, l2 / alpha).vector(items[history], items.T @ items)
    np.testing.assert_allclose(ours * (1 + alpha) / alpha, theirs, rtol=1e-3)


def test_much_regularisation_is_the_sum_of_the_vectors(factors):
    _, items = factors
    history = [4, 8, 15]
    found = FoldIn(0.0, 1e9).vector(items[history], items.T @ items)
    np.testing.assert_allclose(found * 1e9, items[history].sum(0), rtol=1e-5)


@pytest.mark.parametrize("settings", [(-0.1, 1), (0.1, 0), (np.nan, 1), (0, np.inf)])
def test_settings_of_a_fold_in(settings):
    with pytest.raises(ValueError, match="unseen must be 0 or more"):
        FoldIn(*settings)


def test_reasons_add_up_to_the_folded_score(factors):
    model = scorer(factors, "int8")
    history, items = np.array([1, 6, 30, 44]), np.array([0, 13, 46])
    scores, parts = model.folded(history), model.explained(history, items)
    assert parts.shape == (3, 4)
    np.testing.assert_allclose(parts.sum(1), scores[items], rtol=1e-5)


def test_similar_items_by_cosine(factors):
    items = factors[1].copy()
    items[9] = 0
    model = FactorScorer(None, encode(items, "float32"), FoldIn(0, 1))
    lengths = np.linalg.norm(items, axis=1)
    lengths[9] = 1
    unit = items / lengths[:, None]
    np.testing.assert_allclose(model.similar(3), unit @ unit[3], atol=1e-5)
    assert not model.similar(9).any()
    assert model.trained(0) is None


def test_tables_must_fit(factors):
    users, items = factors
    with pytest.raises(ValueError, match="3 dimensions, items have 5"):
        FactorScorer(encode(users[:, :3], "int8"), encode(items, "int8"), FoldIn(0, 1))


@pytest.mark.parametrize(
    "settings", [closed_form.ItemKNN(neighbours=7), closed_form.EASE(l2=20)]
)
def test_item_weights_are_the_models(settings):
    data = dataset()
    model = settings.fit(data.train)
    served = linear_scorer(kept_weights(model.weights))
    histories = binary([[2, 3, 5], [46], [0, 7, 30, 41]], data.shape[1])
    expected = model.fold_in(histories)
    dense = sp.csr_array(model.weights).toarray()
    for row in range(3):
        history = histories[[row]].indices.astype(np.int64)
        scores = served.folded(history)
        np.testing.assert_allclose(scores, expected[row], rtol=1e-5, atol=1e-6)
        items = np.array([0, 9, 46])
        parts = served.explained(history, items)
        np.testing.assert_allclose(parts, dense[np.ix_(history, items)].T, atol=1e-6)
    np.testing.assert_allclose(served.similar(5), dense[5], atol=1e-6)


def test_weights_that_are_kept_are_the_largest_of_each_column():
    rng = np.random.default_rng(0)
    dense = np.round(rng.standard_normal((13, 11)), 1).astype(np.float32)
    kept = kept_weights(dense, 4).toarray()
    for column in range(11):
        order = sorted(range(13), key=lambda j: (-abs(dense[j, column]), j))
        expected = np.zeros(13, np.float32)
        expected[order[:4]] = dense[order[:4], column]
        np.testing.assert_array_equal(kept[:, column], expected)
    np.testing.assert_array_equal(kept_weights(dense).toarray(), dense)
    with pytest.raises(ValueError, match="keep"):
        kept_weights(dense, 0)
