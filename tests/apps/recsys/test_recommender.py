"""Lists by hand and by brute force: masks, filters, reasons, and who is unknown."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from apps.recsys.artefact import load, save
from apps.recsys.export import artefact_of
from apps.recsys.models.closed_form import ItemKNN
from apps.recsys.models.factors import Factors
from apps.recsys.recommender import BadQuestion, Filters, Recommender, UnknownId
from apps.recsys.scoring import FoldIn
from tests.apps.recsys.artefacts import dataset, vectors

FOLD = FoldIn(0.1, 0.5)


@pytest.fixture(scope="module")
def data():
    return dataset()


@pytest.fixture(scope="module")
def factors(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("f") / "file"
    save(path, artefact_of(Factors(*vectors(data)), data, fold_in=FOLD))
    return Recommender.open(path)


@pytest.fixture(scope="module")
def linear(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("l") / "file"
    model = ItemKNN(5).fit(data.train)
    save(path, artefact_of(model, data, settings=ItemKNN(5)))
    return Recommender(load(path))


def seen(data, user):
    parts = (data.train, data.valid, data.test)
    return np.unique(np.concatenate([p[[user]].indices for p in parts]))


def names(found):
    return [int(r.item.removeprefix("i")) for r in found]


@pytest.mark.parametrize("user", [0, 7, 30])
def test_a_known_user(factors, data, user):
    users, items = vectors(data)
    scores = items @ users[user]
    scores[seen(data, user)] = -np.inf
    expected = sorted(range(47), key=lambda i: (-scores[i], i))[:9]
    found = factors.recommend(f"u/{user}", k=9)
    assert found.source == "trained"
    assert names(found.items) == expected
    np.testing.assert_allclose(
        [r.score for r in found.items], scores[expected], rtol=1e-4
    )
    assert found.items[0].title == f"Film {expected[0]} <b>é</b>"
    assert all(r.reasons == () for r in found.items)


def test_seen_items_may_stay(factors, data):
    users, items = vectors(data)
    found = factors.recommend("u/3", k=100, exclude_seen=False)
    assert sorted(names(found.items)) == list(range(47))
    expected = sorted(range(47), key=lambda i: -(items @ users[3])[i])
    assert names(found.items) == expected
    assert len(factors.recommend("u/3", k=100).items) == 47 - len(seen(data, 3))


@pytest.mark.parametrize("which", ["factors", "linear"])
def test_a_history(which, request, data):
    """Its order and repetitions do not matter; what is in it is left out."""
    recommender = request.getfixturevalue(which)
    found = recommender.recommend(history=["i2", "i5", "i11"], k=6, reasons=3)
    again = recommender.recommend(history=["i11", "i5", "i2", "i5"], k=6, reasons=3)
    assert found == again
    assert found.source == "folded"
    assert not {2, 5, 11} & set(names(found.items))
    # Users of even number like the first half of the items: so does who likes these.
    assert max(names(found.items)[:3]) < 47 // 2


@pytest.mark.parametrize("which", ["factors", "linear"])
def test_a_known_user_is_one_with_that_history(which, request, data):
    """The user's own history folded in; exactly the known user's for item weights."""
    recommender = request.getfixturevalue(which)
    history = [f"i{i}" for i in seen(data, 4)]
    known = recommender.recommend("u/4", k=5, reasons=2)
    new = recommender.recommend(history=history, k=5, reasons=2)
    if which == "linear":
        assert known == new
    else:
        assert (known.source, new.source) == ("trained", "folded")
        assert len(set(names(known.items)) & set(names(new.items))) >= 3


@pytest.mark.parametrize("which", ["factors", "linear"])
def test_a_known_user_who_went_on(which, request, data):
    """What came since counts as if it had been shown with all the rest."""
    recommender = request.getfixturevalue(which)
    own = [f"i{i}" for i in seen(data, 4)]
    since = [f"i{i}" for i in range(47) if f"i{i}" not in own][:3]
    found = recommender.recommend("u/4", history=[*since, own[0]], reasons=2)
    assert found == recommender.recommend(history=[*own, *since], reasons=2)
    assert found.source == "folded"
    nothing_new = recommender.recommend("u/4", history=own[:2])
    assert nothing_new == recommender.recommend("u/4")


@pytest.mark.parametrize("which", ["factors", "linear"])
def test_reasons_add_up(which, request):
    recommender = request.getfixturevalue(which)
    history = ["i1", "i8", "i20", "i33"]
    found = recommender.recommend(history=history, k=4, reasons=9)
    parts = recommender.model.explained(
        np.array([1, 8, 20, 33]), np.array(names(found.items))
    )
    for row, recommended in zip(parts, found.items, strict=True):
        assert row.sum() == pytest.approx(recommended.score, rel=1e-4)
        adds = [reason.adds for reason in recommended.reasons]
        assert adds == sorted(adds, reverse=True)
        assert sum(adds) == pytest.approx(row[row > 0].sum(), rel=1e-5)
        assert recommended.reasons[0].title.startswith("Film ")
    one = recommender.recommend(history=history, k=4, reasons=1)
    assert [r.reasons for r in one.items] == [r.reasons[:1] for r in found.items]


def test_popularity_is_the_last_resort(factors, linear, data):
    popularity = (data.train + data.valid + data.test).sum(0)
    expected = sorted(range(47), key=lambda i: (-popularity[i], i))[:10]
    for recommender in (factors, linear):
        found = recommender.recommend(history=[], reasons=3)
        assert found.source == "popularity"
        assert names(found.items) == expected
        assert [r.score for r in found.items] == popularity[expected].tolist()
    skipped = factors.recommend(history=["new", "newer"], unknown="skip")
    assert skipped.source == "popularity"
    assert names(skipped.items) == expected


def passing(filters):
    genres = ("Drama", "Science Fiction", "War")
    allowed = set(range(47))
    if filters.only is not None:
        allowed &= {int(i[1:]) for i in filters.only}
    allowed -= {int(i[1:]) for i in filters.without}
    for values in filters.where.values():
        values = [values] if isinstance(values, str) else values
        allowed &= {
            i for i in range(47)
            if any(i % (genres.index(value) + 2) == 0 for value in values)
        }  # fmt: skip
    return allowed


ONLY = (None, ["i3", "i4", "i12", "i24"], [])
WITHOUT = ([], ["i4", "i24", "i30"])
WHERE = (
    {}, {"genre": "War"}, {"genre": ["War", "Science Fiction"]}, {"genre": []},
)  # fmt: skip


@pytest.mark.parametrize("which", ["factors", "linear"])
def test_filters_against_brute_force(which, request):
    recommender = request.getfixturevalue(which)
    for only, without, where in itertools.product(ONLY, WITHOUT, WHERE):
        filters = Filters(only, without, where)
        every = recommender.recommend(history=["i2", "i9"], k=47).items
        found = recommender.recommend(history=["i2", "i9"], k=47, filters=filters)
        allowed = passing(filters)
        assert found.items == tuple(
            r for r in every if int(r.item[1:]) in allowed
        ), filters  # fmt: skip
        alike = recommender.similar("i9", 47, filters)
        assert set(names(alike)) == allowed - {9}


RANGES = {
    "5..20": range(5, 21), "..3.5": range(4), "40..": range(40, 47), "7": [7],
    "7.5": [], "-1..0": [0], "4.0e1 ": [40], ".5..1.": None, "1..": range(1, 47),
}  # fmt: skip


@pytest.mark.parametrize("text", RANGES)
def test_a_range_of_numbers(factors, text):
    """The fixture's item i has the length i."""
    filters = Filters(where={"length": text})
    if RANGES[text] is None:  # "1." is how nobody writes 1
        with pytest.raises(BadQuestion, match="length holds numbers"):
            factors.passing(filters)
        return
    np.testing.assert_array_equal(
        np.flatnonzero(factors.passing(filters)), list(RANGES[text])
    )


def test_what_is_not_known_passes_no_range(factors):
    lengths = factors.artefact.numbers["length"].copy()
    lengths[3] = np.nan
    numbers = {"length": lengths, "genre": np.arange(47.0)}
    other = Recommender(replace(factors.artefact, numbers=numbers))
    passing = np.flatnonzero(other.passing(Filters(where={"length": ["..4", "9"]})))
    assert passing.tolist() == [0, 1, 2, 4, 9]
    # A column of values and numbers: a value that is there first.
    war = other.passing(Filters(where={"genre": "War"}))
    assert np.flatnonzero(war).tolist() == list(range(0, 47, 4))
    assert np.flatnonzero(other.passing(Filters(where={"genre": "..1"}))).size == 2


@pytest.mark.parametrize(
    "text", ["", "..", "x", "20..5", "5..x", "nan", "inf..", "1-2", "1_0", "5...", "٣"]
)
def test_what_is_no_range(factors, text):
    with pytest.raises(BadQuestion, match=r"length holds numbers.*5\.\.20"):
        factors.passing(Filters(where={"length": text}))


def test_two_columns_must_both_pass(factors):
    from apps.recsys.export import tags_of

    odd = tags_of(["odd" if i % 2 else "even" for i in range(47)], None)
    tags = {**factors.artefact.tags, "parity": odd}
    both = Recommender(replace(factors.artefact, tags=tags))
    filters = Filters(where={"parity": "odd", "genre": "Science Fiction"})
    found = both.recommend(history=[], k=47, filters=filters)
    assert sorted(names(found.items)) == [i for i in range(47) if i % 3 == 0 and i % 2]


def test_similar_items(factors, linear, data):
    _, items = vectors(data)
    unit = items / np.linalg.norm(items, axis=1, keepdims=True)
    cosines = unit @ unit[5]
    cosines[5] = -np.inf
    found = factors.similar("i5", 4)
    expected = np.argsort(-cosines, kind="stable")[:4]
    assert names(found) == expected.tolist()
    np.testing.assert_allclose([r.score for r in found], cosines[expected], atol=1e-5)
    neighbours = linear.similar("i5", 3)
    assert len(neighbours) == 3
    assert 5 not in names(neighbours)


WRONG = {
    "no user 'u/99'": lambda r: r.recommend("u/99"),
    "history: no item 'x'": lambda r: r.recommend(history=["i1", "x"]),
    "only: no item 'x'": lambda r: r.recommend("u/1", filters=Filters(only=["x"])),
    "without: no item": lambda r: r.recommend("u/1", filters=Filters(without=["x"])),
    "item: no item": lambda r: r.similar("x"),
    r"'b', 'c', 'd', 'e', 'f' and 2 more": lambda r: r.recommend(history="bcdefgh"[:0]
                                                     or list("bcdefgh")),
}  # fmt: skip


@pytest.mark.parametrize("match", WRONG)
def test_unknown_ids(factors, match):
    with pytest.raises(UnknownId, match=match):
        WRONG[match](factors)


@pytest.mark.parametrize(
    ("match", "call"),
    [
        ("a user, a history, or both", lambda r: r.recommend()),
        ("list of ids", lambda r: r.recommend(history="i1")),
        ("k must be an integer", lambda r: r.recommend("u/1", k=0)),
        ("k must be an integer", lambda r: r.recommend("u/1", k=2.0)),
        ("k must be an integer", lambda r: r.recommend("u/1", k=True)),
        ("reasons must be", lambda r: r.recommend("u/1", reasons=-1)),
        (
            "no column 'actor' to filter by; there are: genre, length$",
            lambda r: r.recommend("u/1", filters=Filters(where={"actor": "x"})),
        ),
        (
            "no column 'length<'.* write a range as column=5..20",
            lambda r: r.recommend("u/1", filters=Filters(where={"length<": "9"})),
        ),
        (
            "no item has genre 'x'; values are 'Drama', 'Science Fiction', 'War'",
            lambda r: r.recommend("u/1", filters=Filters(where={"genre": "x"})),
        ),
    ],
)
def test_wrong_questions(factors, match, call):
    with pytest.raises(ValueError, match=match):
        call(factors)


def test_unknown_ids_may_be_skipped(factors):
    plain = factors.recommend(history=["i1", "i8"], k=5)
    mixed = factors.recommend(
        history=["i1", "gone", "i8"], k=5, unknown="skip",
        filters=Filters(without=["gone"]),
    )  # fmt: skip
    assert mixed == plain
