"""Who is ranked for: users that the model can know."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from apps.recsys.evaluation import evaluate, new_users, of_items, select
from apps.recsys.models.closed_form import EASE
from apps.recsys.splits import Dataset
from tests.apps.recsys.artefacts import dataset

NEW = [2, 11]


@pytest.fixture(scope="module")
def whole() -> Dataset:
    return dataset()


@pytest.fixture(scope="module")
def later(whole) -> Dataset:
    """The same, but two users have nothing in the training part."""
    keep = sp.diags_array(1.0 - np.isin(np.arange(whole.shape[0]), NEW)).tocsr()
    train = sp.csr_array(keep @ whole.train, dtype=np.float32)
    train.eliminate_zeros()
    return replace(whole, train=train)


def test_new_users_are_left_out_and_counted(whole, later):
    """The others' values do not change, the mean is over them alone."""
    model = EASE(20).fit(later.train)
    every, found = evaluate(model, whole, "test"), evaluate(model, later, "test")
    assert new_users(whole, "test") == 0
    assert new_users(later, "test") == len(NEW)
    assert (np.diff(whole.test.indptr)[NEW] > 0).all()
    for name, values in every.values.items():
        expected = values.copy()
        expected[NEW] = np.nan
        np.testing.assert_array_equal(found.values[name], expected)
        assert found.means[name] == np.nanmean(expected)
    assert (found.ranked[NEW] == -1).all()


def test_slices_of_items_leave_them_out_too(later):
    """The parts by items add up to the whole, for those who are ranked for."""
    tested = evaluate(EASE(20).fit(later.train), later, "test")
    low = np.arange(later.shape[1]) < 20
    of_low, of_high = (of_items(tested, later, part, [20]) for part in (low, ~low))
    hits = np.zeros(later.shape[0])
    for part, values in ((low, of_low), (~low, of_high)):
        n = np.diff(sp.csr_array(later.test[:, part]).indptr)
        assert np.isnan(values["recall@20"][NEW]).all()
        hits += np.nan_to_num(values["recall@20"]) * n
    n = np.diff(later.test.indptr)
    wanted = np.nan_to_num(tested.values["recall@20"]) * n
    np.testing.assert_allclose(hits, wanted)
    assert hits.sum() > 0


def test_settings_are_chosen_by_known_users(later):
    """On validation as on test."""
    model, (n, _) = EASE(20), later.shape
    values = evaluate(model.fit(later.train), later, "valid").values["ndcg@20"]
    there = np.diff(later.valid.indptr) > 0
    assert np.isnan(values[NEW]).all()
    assert np.isfinite(values[there & ~np.isin(np.arange(n), NEW)]).all()
    assert select([model], later).table[0][1] == np.nanmean(values)


def test_nobody_is_left(whole):
    empty = sp.csr_array(whole.shape, dtype=np.float32)
    model = EASE(20).fit(whole.train)
    with pytest.raises(ValueError, match="the test part is empty"):
        evaluate(model, replace(whole, test=empty), "test")
    with pytest.raises(ValueError, match="no user of the test part has training"):
        evaluate(model, replace(whole, train=empty), "test")
