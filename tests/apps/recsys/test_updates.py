"""Updates equal what they stand for: a fold-in from scratch, a fit on everything."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from apps.recsys.artefact import load, save
from apps.recsys.export import artefact_of, factors_of, matrix_of
from apps.recsys.interactions import Interactions
from apps.recsys.models.closed_form import EASE, ItemKNN
from apps.recsys.models.factors import Factors
from apps.recsys.recommender import Recommender
from apps.recsys.scoring import FoldIn
from apps.recsys.tables import LowRank, encode
from apps.recsys.updates import ItemFold, item_fold, level, updated
from tests.apps.recsys.artefacts import binary, dataset, vectors

FOLD = FoldIn(0.1, 0.5)


def log(pairs, table=None):
    """Interactions of (user id, item id)."""
    user_ids, users = np.unique([u for u, _ in pairs], return_inverse=True)
    item_ids, items = np.unique([i for _, i in pairs], return_inverse=True)
    if table is not None:
        table = table.set_index("item_id").reindex(item_ids).reset_index()
    return Interactions(
        "news", users.astype(np.int32), items.astype(np.int32),
        user_ids.astype(object), item_ids.astype(object), item_table=table,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data():
    return dataset()


@pytest.fixture(scope="module", params=["float32", "int8", "nobody"])
def factors(request, data):
    """With packed tables, and without a table of users."""
    users, items = vectors(data)
    if request.param == "nobody":
        return factors_of(None, encode(items, "float32"), data, fold_in=FOLD)
    return artefact_of(Factors(users, items), data, kind=request.param, fold_in=FOLD)


def rows(table):
    return table.rows(np.arange(table.shape[0]))


def lists(artefact, user=None, history=None, k=10):
    found = Recommender(artefact).recommend(user, history=history, k=k)
    return [r.item for r in found.items]


NEW = [("new", f"i{i}") for i in (1, 4, 6, 12)]


def test_a_new_user_is_one_who_shows_that_history(factors):
    newer = updated(factors, log(NEW))
    assert newer.user_ids.find("new") == 31
    expected = lists(factors, history=[i for _, i in NEW])
    assert lists(newer, "new") == expected
    assert Recommender(newer).recommend("new").source == (
        "folded" if factors.model.users is None else "trained"
    )


def test_in_parts_or_at_once(factors):
    """Any order, any repetition: the whole history decides."""
    more = [("u/3", "i40"), ("u/3", "i41"), *NEW]
    once = updated(factors, log(more))
    parts = factors
    for pair in (more[3], more[0], more[3], more[5], *more):
        parts = updated(parts, log([pair]))
    for user in ("new", "u/3", "u/4"):
        a, b = (
            Recommender(x).recommend(user, k=47, exclude_seen=False)
            for x in (once, parts)
        )
        assert [r.item for r in a.items[:20]] == [r.item for r in b.items[:20]]
    np.testing.assert_array_equal(once.popularity, parts.popularity)
    np.testing.assert_array_equal(once.history.values, parts.history.values)


def test_others_do_not_move(factors, tmp_path):
    unseen = min(set(range(47)) - set(factors.history[3].tolist()))
    newer = updated(factors, log([("u/3", f"i{unseen}"), *NEW]))
    assert newer.model.items is factors.model.items
    if factors.model.users is not None:
        others = np.delete(np.arange(31), 3)
        np.testing.assert_array_equal(
            newer.model.users.rows(others), factors.model.users.rows(others)
        )
        assert newer.model.users.shape == (32, 5)
    added = 1 + (f"i{unseen}" in [item for _, item in NEW])
    assert newer.popularity[unseen] == factors.popularity[unseen] + added
    assert newer.about["updates"][0]["interactions"] == 5
    save(tmp_path / "file", newer)
    assert lists(load(tmp_path / "file"), "new") == lists(newer, "new")


def test_what_is_known_is_no_news(factors, data):
    known = [("u/3", f"i{i}") for i in data.train[[3]].indices]
    same = updated(factors, log(known))
    np.testing.assert_array_equal(same.history.values, factors.history.values)
    np.testing.assert_array_equal(same.popularity, factors.popularity)
    assert lists(same, "u/3") == lists(factors, "u/3")


def test_new_items_get_the_least_squares_solution(data):
    users, _ = vectors(data)
    buyers = [2, 8, 9, 22]
    matrix = binary([buyers], 31)
    (found,) = ItemFold(FoldIn(0.2, 0.7), 3.0).vectors(users, matrix)
    stacked = np.concatenate(
        [users[buyers], np.sqrt(0.2) * users, np.sqrt(0.7) * np.eye(5)]
    )
    wanted = np.concatenate([np.ones(4), np.zeros(31 + 5)])
    expected = 3 * np.linalg.lstsq(stacked, wanted)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_new_items_are_implicits():
    """Its partial fit of items."""
    als = pytest.importorskip("implicit.cpu.als")
    rng = np.random.default_rng(0)
    users = rng.standard_normal((40, 8)).astype(np.float32)
    buyers = binary([[2, 3, 5, 17, 31]], 40)
    model = als.AlternatingLeastSquares(factors=8, regularization=0.3)
    model.user_factors = users
    theirs = model.recalculate_item(0, sp.csr_matrix(buyers * np.float32(7)))
    ours = ItemFold(FoldIn(1 / 6, 0.3 / 6), 7 / 6).vectors(users, buyers)
    np.testing.assert_allclose(ours[0], theirs, rtol=1e-3)


def test_trained_items_are_found_again():
    """Vectors that are a fold-in of their users: its settings and scale come back."""
    rng = np.random.default_rng(0)
    users = rng.standard_normal((60, 4)).astype(np.float32)
    buyers = sp.csr_array(rng.random((25, 60)) < 0.3, dtype=np.float32)
    unit = float((users.astype(np.float64) ** 2).sum(1).mean())
    true = ItemFold(FoldIn(0.1, 10.0 * unit), 7.0)
    items = true.vectors(users, buyers)
    found = item_fold(users, items, buyers)
    assert found.fold_in == true.fold_in
    assert found.scale == pytest.approx(7.0, rel=1e-5)
    few = item_fold(users, items, buyers, most=10)
    assert few.scale == pytest.approx(7.0, rel=1e-5)
    with pytest.raises(ValueError, match="no positive score on the average"):
        item_fold(users, -items, buyers)


def test_the_level_is_the_mean_of_known_scores(data):
    users, items = vectors(data)
    scores = users @ items.T
    expected = scores[data.train.toarray() > 0].mean()
    assert level(users, items, data.train) == pytest.approx(expected, rel=1e-5)


def test_added_vectors_are_as_long_as_trained_ones(data):
    """Folded users score their own items as trained users do theirs."""
    users, items = vectors(data)
    model = Factors(7 * users, items)
    artefact = artefact_of(model, data, fold_in=FoldIn(0.1, 50.0))
    every = [(f"u/{u}", "fresh") for u in range(0, 31, 2)]
    newer = updated(artefact, log([*NEW, *every]))
    history = matrix_of(newer.history, 48)
    both = rows(newer.model.users), rows(newer.model.items)
    before = level(7 * users, items, matrix_of(artefact.history, 47))
    assert level(*both, history) == pytest.approx(before, rel=0.3)


@pytest.mark.parametrize("which", ["factors", EASE(20.0), ItemKNN(5)])
def test_a_new_item_is_found_by_its_kind(which, factors, data):
    """Liked by users of the first taste: recommended to them, and like their items."""
    if which == "factors":
        artefact = factors
    else:
        artefact = artefact_of(which.fit(data.train), data, settings=which)
    fans = [f"u/{u}" for u in range(0, 24, 2)]
    table = pd.DataFrame(
        {
            "item_id": ["fresh"],
            "movie_title": ["Fresh!"],
            "genre": ["War|Noir"],
            "length": ["90"],
        }
    )
    newer = updated(artefact, log([(fan, "fresh") for fan in fans], table))
    place = newer.item_ids.find("fresh")
    assert place == 47
    assert newer.texts["movie_title"][place] == "Fresh!"
    assert newer.tags["genre"].find("Noir").tolist() == [47]
    assert newer.tags["genre"].find("War").tolist()[-2:] == [44, 47]
    np.testing.assert_array_equal(newer.numbers["length"], [*range(47), 90.0])
    bare = updated(artefact, log([(fan, "fresh") for fan in fans]))
    assert np.isnan(bare.numbers["length"][place])
    assert newer.popularity[place] == len(fans)
    near = [int(r.item[1:]) for r in Recommender(newer).similar("fresh", 5)]
    assert max(near) < 47 // 2
    found = {
        user: lists(newer, f"u/{user}", k=47).index("fresh")
        for user in (*range(24, 31, 2), *range(1, 31, 2))
    }
    ours = [rank for user, rank in found.items() if user % 2 == 0]
    others = [rank for user, rank in found.items() if user % 2]
    assert np.mean(ours) < 5 < 15 < np.mean(others)


@pytest.mark.parametrize("settings", [EASE(20.0), ItemKNN(5, 2.0)])
@pytest.mark.parametrize("keep", [None, 6])
def test_item_weights_are_those_of_a_fit_on_everything(settings, keep, data):
    """Item by item, whatever their order in the file."""
    artefact = artefact_of(settings.fit(data.train), data, settings=settings, keep=keep)
    pairs = [("new", "fresh"), ("new", "i5"), ("u/3", "fresh"), ("u/3", "i44")]
    newer = updated(artefact, log(pairs))
    everything = matrix_of(newer.history, 48)
    assert everything.shape == (32, 48)
    assert everything.toarray()[[31, 31, 3, 3], [47, 5, 47, 44]].all()
    fitted = settings.fit(everything)
    weights = sp.csr_array(fitted.weights).toarray()
    served = np.zeros((48, 48), np.float32)
    for row in range(48):
        part = newer.model.weights.offsets[row : row + 2]
        served[row, newer.model.weights[row]] = newer.model.values[part[0] : part[1]]
    if keep is not None:
        assert ((served != 0).sum(0) <= keep).all()
        weights = np.where(served != 0, weights, 0)
    np.testing.assert_allclose(served, weights, atol=1e-6)


def test_what_cannot_be_updated(data, factors):
    nobody = artefact_of(EASE(20).fit(data.train), data)
    with pytest.raises(ValueError, match="does not tell how"):
        updated(nobody, log(NEW))
    users, items = vectors(data)
    left = LowRank(encode(users, "float32"), encode(np.eye(5), "float32"))
    packed = factors_of(left, encode(items, "float32"), data, fold_in=FOLD)
    with pytest.raises(ValueError, match="kind low_rank has no rows of its own"):
        updated(packed, log(NEW))
    from dataclasses import replace

    from apps.recsys.ragged import Ids, ragged

    empty = replace(factors, user_ids=Ids.of([]), history=ragged([]))
    with pytest.raises(ValueError, match="no users and histories"):
        updated(empty, log(NEW))
