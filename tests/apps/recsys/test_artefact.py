"""A recommender in a file: read back as it was, and refused where it cannot be one."""

from dataclasses import replace

import numpy as np
import pytest

from apps.recsys import container
from apps.recsys.artefact import Tags, load, save
from apps.recsys.container import DamagedFile
from apps.recsys.export import artefact_of, matrix_of
from apps.recsys.models.closed_form import ItemKNN
from apps.recsys.models.factors import Factors
from apps.recsys.ragged import Ids, Ragged, Texts, offsets_of
from apps.recsys.scoring import FactorScorer, FoldIn
from apps.recsys.tables import encode
from tests.apps.recsys.artefacts import dataset, vectors

FOLD = FoldIn(0.1, 0.5)


@pytest.fixture(scope="module")
def data():
    return dataset()


@pytest.fixture(scope="module")
def factors(data):
    return artefact_of(Factors(*vectors(data)), data, kind="int8", fold_in=FOLD)


@pytest.fixture(scope="module")
def linear(data):
    return artefact_of(ItemKNN(5).fit(data.train), data, settings=ItemKNN(5))


@pytest.mark.parametrize("which", ["factors", "linear"])
def test_a_file_holds_all_of_it(which, data, tmp_path, request):
    artefact = request.getfixturevalue(which)
    name = save(tmp_path / "file", artefact)
    read = load(tmp_path / "file")
    assert read.name == name
    assert list(read.user_ids) == data.user_ids.tolist()
    assert list(read.item_ids) == data.item_ids.tolist()
    assert list(read.texts["movie_title"]) == data.titles.tolist()
    assert read.title_column == "movie_title"
    assert read.tags["genre"].find("War").tolist() == list(range(0, 47, 4))
    assert read.tags["genre"].find("war") is None
    np.testing.assert_array_equal(read.numbers["length"], np.arange(47.0))
    whole = (data.train + data.valid + data.test).toarray()
    np.testing.assert_array_equal(matrix_of(read.history, 47).toarray(), whole)
    np.testing.assert_array_equal(read.popularity, whole.sum(0))
    assert read.about == artefact.about
    history = np.array([1, 5, 40])
    np.testing.assert_array_equal(
        read.model.folded(history), artefact.model.folded(history)
    )
    if which == "factors":
        assert read.model.items.kind == "int8"
        assert read.model.fold_in == FOLD
        np.testing.assert_array_equal(read.model.trained(7), artefact.model.trained(7))
        assert not read.model.items.arrays()["codes"].flags.owndata


def test_the_same_content_has_the_same_name(factors, tmp_path):
    assert save(tmp_path / "a", factors) == save(tmp_path / "b", factors)
    other = replace(factors, about={"x": 1})
    assert save(tmp_path / "c", other) != load(tmp_path / "a").name


def test_columns_with_any_name(data, factors, tmp_path):
    """Names that could be those of other arrays."""
    texts = Texts.of(["x"] * 47)
    tags = Tags(
        Ids.of(["v"]), Ragged(np.array([0, 0], np.int32), np.empty(0, np.int32))
    )
    odd = replace(
        factors,
        texts={"a": texts, "0": texts, "": texts},
        tags={"a": tags, "a.values": tags, "items": tags, "0.values": tags},
    )
    save(tmp_path / "file", odd)
    read = load(tmp_path / "file")
    assert list(read.texts) == ["a", "0", ""]
    assert list(read.tags) == ["a", "a.values", "items", "0.values"]


def test_no_users_at_all(data, tmp_path):
    """A file that holds nobody's data: histories are folded in."""
    empty = Ragged(np.zeros(1, np.int32), np.empty(0, np.int32))
    artefact = artefact_of(Factors(*vectors(data)), data, fold_in=FOLD)
    nobody = replace(
        artefact, user_ids=Ids.of([]), history=empty,
        model=FactorScorer(None, artefact.model.items, FOLD),
    )  # fmt: skip
    save(tmp_path / "file", nobody)
    read = load(tmp_path / "file")
    assert len(read.user_ids) == 0
    assert read.model.folded(np.array([3])).shape == (47,)


def i32(*values):
    return np.array(values, np.int32)


WRONG = {
    "history of fewer users": (
        "history: offsets must be 32",
        lambda a: {"history": Ragged(a.history.offsets[:-1], a.history.values)},
    ),
    "item beyond the last": (
        "history: values must lie in 0 ... 46",
        lambda a: {"history": Ragged(a.history.offsets, a.history.values + 1)},
    ),
    "popularity of fewer": (
        "popularity must be 47",
        lambda a: {"popularity": a.popularity[1:]},
    ),
    "popularity below zero": (
        "popularity must be 47",
        lambda a: {"popularity": a.popularity - 100},
    ),
    "popularity no integers": (
        "popularity must be 47",
        lambda a: {"popularity": a.popularity / 2},
    ),
    "titles of fewer": (
        "texts of 'movie_title': offsets",
        lambda a: {"texts": {"movie_title": Texts.of(["x"] * 46)}},
    ),
    "tags beyond": (
        "items of 'genre': values must lie",
        lambda a: {
            "tags": {"genre": Tags(Ids.of(["x"]), Ragged(i32(0, 1), i32(47)))}
        },
    ),
    "numbers of fewer": (
        "'length' must be 47 numbers",
        lambda a: {"numbers": {"length": a.numbers["length"][1:]}},
    ),
    "numbers of another kind": (
        "'length' must be 47 numbers, float64",
        lambda a: {"numbers": {"length": np.arange(47)}},
    ),
    "users beyond the table": (
        "32 users, but a table of 31",
        lambda a: {
            "user_ids": Ids.of(str(i) for i in range(32)),
            "history": Ragged(offsets_of([0] * 32), np.empty(0, np.int32)),
        },
    ),
    "no items": ("no items", lambda a: {"item_ids": Ids.of([])}),
    "products overflow": (
        "overflow",
        lambda a: {
            "model": FactorScorer(
                encode(np.full((31, 5), 1e30), "float32"),
                encode(np.full((47, 5), 1e30), "float32"),
                FOLD,
            )
        },
    ),
    "many dimensions": (
        "over 4096 dimensions",
        lambda a: {
            "model": FactorScorer(None, encode(np.ones((47, 4097)), "int1"), FOLD)
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_parts_that_do_not_fit(factors, case, tmp_path):
    match, change = WRONG[case]
    with pytest.raises(ValueError, match=match):
        save(tmp_path / "file", replace(factors, **change(factors)))
    assert not (tmp_path / "file").exists()


def weights(linear, **changes):
    return {"model": replace(linear.model, **changes)}


def test_weights_that_do_not_fit(linear, tmp_path):
    values, lists = linear.model.values, linear.model.weights
    for match, change in [
        ("weights hold NaN", {"values": np.full_like(values, np.nan)}),
        ("a weight for each pair", {"values": values[1:]}),
        ("float32 or float16, got int64", {"values": np.ones(len(values), int)}),
        ("0 ... 46", {"weights": Ragged(lists.offsets, lists.values + 1)}),
    ]:
        with pytest.raises(ValueError, match=match):
            save(tmp_path / "file", replace(linear, **weights(linear, **change)))


def altered(path, artefact, change):
    """The file after `change(arrays, head)`, its hashes made anew: an attacker's."""
    save(path, artefact)
    arrays, head, _ = container.read(path)
    arrays = {name: array.copy() for name, array in arrays.items()}
    change(arrays, head)
    container.write(path, arrays, head)
    return path


HOSTILE = {
    "format": lambda a, h: h.update(format="x"),
    "version": lambda a, h: h.update(version=2),
    "version true": lambda a, h: h.update(version="1"),
    "key too many": lambda a, h: h.update(more=1),
    "about no object": lambda a, h: h.update(about=[]),
    "texts no list": lambda a, h: h.update(texts="movie_title"),
    "texts no names": lambda a, h: h.update(texts=[1]),
    "numbers no list": lambda a, h: h.update(numbers="length"),
    "numbers twice": lambda a, h: h.update(numbers=["length", "length"]),
    "numbers that are missing": lambda a, h: h.update(numbers=["length", "price"]),
    "numbers that nobody names": lambda a, h: h.pop("numbers"),
    "texts twice": lambda a, h: h.update(texts=["movie_title", "movie_title"]),
    "text too many": lambda a, h: h["texts"].append("x"),
    "tags too few": lambda a, h: h["tags"].pop(),
    "scorer no object": lambda a, h: h.update(scorer=[]),
    "scorer unknown": lambda a, h: h["scorer"].update(kind="pickle"),
    "scorer unhashable": lambda a, h: h["scorer"].update(kind=["factors"]),
    "fold in missing": lambda a, h: h["scorer"].pop("fold_in"),
    "fold in no number": lambda a, h: h["scorer"]["fold_in"].update(l2="1"),
    "fold in negative": lambda a, h: h["scorer"]["fold_in"].update(l2=-1),
    "fold in huge": lambda a, h: h["scorer"]["fold_in"].update(l2=10**400),
    "table missing": lambda a, h: h["scorer"].pop("items"),
    "table of another kind": lambda a, h: h["scorer"]["items"].update(kind="int4"),
    "table kind unknown": lambda a, h: h["scorer"]["items"].update(kind="x"),
    "table of another shape": lambda a, h: h["scorer"]["items"].update(shape=[48, 5]),
    "table shape no list": lambda a, h: h["scorer"]["items"].update(shape=7),
    "table shape huge": lambda a, h: h["scorer"]["items"].update(shape=[2**31, 5]),
    "table settings": lambda a, h: h["scorer"]["items"].update(settings={"x": 1}),
    "table settings list": lambda a, h: h["scorer"]["items"].update(settings=[]),
    "table array missing": lambda a, h: a.pop("items.codes"),
    "table array too many": lambda a, h: a.update({"items.x": np.ones(1)}),
    "scales NaN": lambda a, h: a["items.scales"].fill(np.nan),
    "users' table gone": lambda a, h: h["scorer"].pop("users"),
    "array too many": lambda a, h: a.update({"x": np.ones(1)}),
    "history missing": lambda a, h: a.pop("history.items"),
    "history float": lambda a, h: a.update(
        {"history.items": a["history.items"].astype(np.float32)}
    ),
    "history far": lambda a, h: a["history.items"].__setitem__(-1, 2**31 - 1),
    "history negative": lambda a, h: a["history.items"].__setitem__(0, -1),
    "offsets far": lambda a, h: a["history.offsets"].__setitem__(3, 2**31 - 1),
    "ids no UTF-8": lambda a, h: a["item.ids.bytes"].fill(255),
    "ids equal": lambda a, h: a["item.ids.bytes"].fill(65),
    "order": lambda a, h: a["user.ids.order"].sort(),
    "two dimensions": lambda a, h: a.update({"popularity": a["popularity"][:, None]}),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(factors, case, tmp_path):
    path = altered(tmp_path / "bad.safetensors", factors, HOSTILE[case])
    with pytest.raises(DamagedFile, match=r"bad.safetensors: "):
        load(path)


def test_random_damage_with_right_hashes(factors, linear, tmp_path):
    """Any numbers in any array: refused, or a recommender that works."""
    rng = np.random.default_rng(0)
    refused = 0
    for artefact in (factors, linear):
        for _ in range(40):

            def change(arrays, head):
                name = sorted(arrays)[rng.integers(len(arrays))]
                raw = arrays[name].reshape(-1).view(np.uint8)
                if len(raw):
                    raw[rng.integers(len(raw))] = rng.integers(256)

            path = altered(tmp_path / "file", artefact, change)
            try:
                read = load(path)
            except DamagedFile:
                refused += 1
                continue
            with np.errstate(all="ignore"):
                scores = read.model.folded(np.array([0, 46]))
            assert scores.shape == (47,)
    assert refused > 10


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")
