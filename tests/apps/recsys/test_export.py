"""From a model and its data to a file: ids, columns, what is kept, what is refused."""

import json

import numpy as np
import pandas as pd
import pytest

from apps.recsys.artefact import load, save
from apps.recsys.evaluation import evaluate
from apps.recsys.export import (
    artefact_of,
    columns_of,
    factors_of,
    numbers_of,
    tags_of,
)
from apps.recsys.fold_in import choose, folded
from apps.recsys.models.closed_form import EASE, Cooccurrence, ItemKNN, Popularity
from apps.recsys.models.factors import Factors
from apps.recsys.recommender import Recommender
from apps.recsys.scoring import FoldIn
from apps.recsys.tables import encode
from tests.apps.recsys.artefacts import dataset, vectors


@pytest.fixture(scope="module")
def data():
    return dataset()


@pytest.mark.parametrize("settings", [ItemKNN(20), EASE(20)])
def test_what_is_served_is_what_was_evaluated(settings, data, tmp_path):
    """Lists of a file equal the model's, with the same items masked."""
    model = settings.fit(data.train)
    ranked = evaluate(model, data, "test", ks=[5]).ranked
    history = data.known("test")
    save(tmp_path / "f", artefact_of(model, data, history=data.train))
    recommender = Recommender.open(tmp_path / "f")
    items = data.item_ids
    for user in np.flatnonzero(ranked[:, 0] >= 0):
        without = items[data.valid[[user]].indices].tolist()
        found = recommender.recommend(
            data.user_ids[user], k=5, filters=filters(without)
        )
        assert [r.item for r in found.items] == items[ranked[user]].tolist()
        assert history[[user]].nnz == len(without) + data.train[[user]].nnz


def filters(without):
    from apps.recsys.recommender import Filters

    return Filters(without=without)


def test_factors_are_served_as_evaluated(data, tmp_path):
    model = Factors(*vectors(data))
    ranked = evaluate(model, data, "valid", ks=[7]).ranked
    artefact = artefact_of(model, data, history=data.train, fold_in=FoldIn(0, 1))
    save(tmp_path / "f", artefact)
    recommender = Recommender.open(tmp_path / "f")
    for user in np.flatnonzero(ranked[:, 0] >= 0):
        found = recommender.recommend(data.user_ids[user], k=7)
        assert found.source == "trained"
        expected = data.item_ids[ranked[user]].tolist()
        assert [r.item for r in found.items] == expected


def test_users_who_are_new_since_the_training_are_folded_in(data):
    """What the training never moved is not served: they get their history's list."""
    trained_on = data.train.copy()
    for user in (4, 9):
        trained_on.data[trained_on.indptr[user] : trained_on.indptr[user + 1]] = 0
    trained_on.eliminate_zeros()
    users, items = vectors(data)
    users[[4, 9]] = np.random.default_rng(0).normal(size=(2, users.shape[1]))
    model, fold = Factors(users, items), FoldIn(0.1, 1)
    plain = artefact_of(model, data, fold_in=fold)
    mended = artefact_of(model, data, fold_in=fold, trained_on=trained_on)
    for user, name in enumerate(data.user_ids):
        own = [data.item_ids[i] for i in plain.history[user]]
        found = listed(mended, name)
        new = user in (4, 9)
        expected = listed(mended, history=own) if new else listed(plain, name)
        assert found == expected
        assert not new or found != listed(plain, name)
    np.testing.assert_array_equal(model.users, users.astype(np.float32))


def listed(artefact, user=None, history=None):
    found = Recommender(artefact).recommend(user, history=history, k=47)
    return [item.item for item in found.items]


def test_a_fold_in_is_chosen_on_validation(data):
    """By brute force over the table, and blind to the test part."""
    items = vectors(data)[1]
    choice = choose(items, data, unseen=(0.0, 0.1), l2=(0.1, 10.0))
    assert len(choice.table) == 4
    assert choice.value == max(value for _, value in choice.table)
    assert dict(choice.table)[choice.best] == choice.value
    vectors_of = folded(choice.best, data.train, items)
    folded_model = Factors(vectors_of, items)
    wanted = evaluate(folded_model, data, "valid", ks=[20]).values["ndcg@20"]
    both = np.diff(data.train.indptr) > 0
    assert choice.value == pytest.approx(np.nanmean(wanted[both]))
    few = choose(items, data, unseen=(0.0,), l2=(1.0,), most_users=4)
    assert few.users == 4


def test_users_without_a_history_fold_to_nothing(data):
    items = vectors(data)[1]
    histories = data.train[[0, 1]]
    histories.indptr[:] = 0, 0, histories.indptr[2] - histories.indptr[1]
    found = folded(FoldIn(0.1, 1), histories, items)
    assert not found[0].any()
    assert found[1].any()


def test_choosing_needs_a_validation_part(data):
    with pytest.raises(ValueError, match="give the fold-in settings"):
        choose(vectors(data)[1], data.final())
    with pytest.raises(ValueError, match="vectors of items are 0"):
        choose(np.zeros((47, 3), np.float32), data)


def test_what_is_told(data):
    artefact = artefact_of(
        EASE(20).fit(data.train), data, keep=9, settings=EASE(20), about={"seed": 3}
    )
    assert artefact.about["model"] == {
        "name": "EASE", "l2": 20, "most_items": 20_000, "keep": 9,
    }  # fmt: skip
    assert artefact.about["seed"] == 3
    assert artefact.about["data"]["name"] == "small"
    assert json.dumps(artefact.about)
    assert len(artefact.model.values) <= 9 * 47


def test_tables_of_ones_own(data, tmp_path):
    users, items = vectors(data)
    artefact = factors_of(None, encode(items, "int4"), data, fold_in=FoldIn(0.1, 1))
    save(tmp_path / "f", artefact)
    assert load(tmp_path / "f").model.users is None
    chosen = factors_of(encode(users, "int8"), encode(items, "int8"), data)
    assert 0 < chosen.about["fold_in"]["valid ndcg@20"] <= 1


@pytest.mark.parametrize("which", ["factors", "linear"])
def test_what_is_stored_of_users(which, data, tmp_path):
    """The same answer for a history, whatever the file holds of users."""
    model = Factors(*vectors(data)) if which == "factors" else EASE(20).fit(data.train)
    answers, sizes = [], {}
    for users in ("vectors", "histories", "nothing"):
        artefact = artefact_of(model, data, users=users, fold_in=FoldIn(0.1, 1))
        save(tmp_path / users, artefact)
        recommender = Recommender.open(tmp_path / users)
        answers.append(recommender.recommend(history=["i1", "i9"], reasons=1))
        answers[-1:] += [recommender.recommend(history=[])]
        sizes[users] = (tmp_path / users).stat().st_size
        if users != "nothing":
            found = recommender.recommend("u/3")
            stored = users == "vectors" and which == "factors"
            assert found.source == ("trained" if stored else "folded")
    assert answers[:2] == answers[2:4] == answers[4:]
    assert sizes["nothing"] < sizes["histories"] <= sizes["vectors"]
    content = (tmp_path / "nothing").read_bytes()
    assert b"u/" not in content
    assert b"user.ids.bytes" in content


@pytest.mark.parametrize("settings", [Popularity(), Cooccurrence()])
def test_models_that_no_file_holds(settings, data):
    with pytest.raises(ValueError, match="cannot be exported: a file holds factors"):
        artefact_of(settings.fit(data.train), data)


def test_settings_are_a_dataclass(data):
    with pytest.raises(ValueError, match="dataclass"):
        artefact_of(EASE(20).fit(data.train), data, settings={"l2": 20})


def test_columns_become_texts_and_tags():
    table = pd.DataFrame(
        {
            "item": ["1", "2", "3"],
            "Title": ["a, b", None, "c"],
            "city": ["Portland, OR", "Rome", ""],
            "class": ["War Drama", "War", np.nan],
            "genres": ["Sci-Fi|War", "Sci-Fi", "War, cold"],
            "year": [1.0, 2.0, 3.0],
            "code": ["x;y", "y", "z"],
        }
    )
    texts, tags = columns_of(table, {"code": ";"})
    assert list(texts) == ["Title"]
    assert list(texts["Title"]) == ["a, b", "", "c"]
    assert {c: list(t.values) for c, t in tags.items()} == {
        "city": ["Portland, OR", "Rome"],
        "class": ["Drama", "War"],
        "genres": ["Sci-Fi", "War", "War, cold"],
        "code": ["x", "y", "z"],
    }
    assert tags["class"].find("War").tolist() == [0, 1]
    assert tags["code"].find("y").tolist() == [0, 1]
    assert columns_of(None) == ({}, {})


def test_a_column_of_many_values_is_no_filter(monkeypatch):
    monkeypatch.setattr("apps.recsys.export.MOST_VALUES", 2)
    table = pd.DataFrame({"item": ["1", "2", "3"], "url": ["a", "b", "c"]})
    assert columns_of(table)[1] == {}
    assert len(tags_of(["a", "a", "b"], None).values) == 2


def test_numbers_are_read_from_numbers_and_from_texts_that_say_one():
    table = pd.DataFrame(
        {
            "item": ["1", "2", "3"],
            "price": [1.5, np.nan, 20.0],
            "year": ["1999", "", "2001"],
            "mixed": ["1", "two", "3"],
            "endless": [1.0, np.inf, 2.0],
            "listed": [[1], [2], [3]],
            "sold": [True, False, True],
            "nothing": [None, None, None],
        }
    )
    found = numbers_of(table)
    assert list(found) == ["price", "year"]
    np.testing.assert_array_equal(found["price"], [1.5, np.nan, 20])
    np.testing.assert_array_equal(found["year"], [1999, np.nan, 2001])
    assert all(column.dtype == np.float64 for column in found.values())
    assert numbers_of(None) == {}
    years = [str(1990 + i) for i in range(20)]
    odd = {n: [*years[n:], *["V"] * n] for n in (2, 3)}
    many = pd.DataFrame({"item": years, "two": odd[2], "three": odd[3]})
    assert list(numbers_of(many)) == ["two"]
    assert np.isnan(numbers_of(many)["two"]).tolist() == [False] * 18 + [True] * 2
    assert list(columns_of(table)[1]) == ["year", "mixed"]  # filters by value as well
