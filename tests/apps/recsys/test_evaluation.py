"""Who is ranked for: users that the model can know."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from apps.recsys.evaluation import evaluate, new_users, select
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
