"""Lists and texts in two arrays: as Python's own lists, and checked."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.recsys import ragged as module
from apps.recsys.ragged import Ids, Ragged, Texts, offsets_of, ragged

texts = st.text(st.characters(codec="utf-8"), max_size=12)


@given(st.lists(st.lists(st.integers(0, 99), max_size=7)))
def test_lists(lists):
    found = ragged(lists)
    assert [part.tolist() for part in found] == lists if lists else len(found) == 0
    found.check(len(lists))


@given(st.lists(texts))
def test_texts(given_texts):
    found = Texts.of(given_texts)
    found.check(len(given_texts))
    assert list(found) == given_texts
    assert [found[i] for i in range(len(found))] == given_texts


@given(st.lists(texts, unique=True), texts)
def test_ids_are_found_as_in_a_dict(ids, other):
    found = Ids.of(ids)
    found.check(len(ids))
    index = {text: i for i, text in enumerate(ids)}
    for text in [*ids, other, other + "x", "\ud800"]:
        assert found.find(text) == index.get(text)


def test_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 3)
    ids = [str(i) for i in range(11)]
    assert list(Ids.of(ids)) == ids


def test_ids_repeat_and_lone_surrogates():
    with pytest.raises(ValueError, match="repeat"):
        Ids.of(["a", "b", "a"])
    with pytest.raises(ValueError, match="no text"):
        Texts.of(["\udc00"])


def test_offsets_become_wide_only_where_they_must():
    assert offsets_of([3, 4]).dtype == np.int32
    wide = offsets_of(np.array([2**30, 2**30]))
    assert wide.dtype == np.int64
    assert wide[-1] == 2**31


def i32(*values):
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    ("offsets", "values", "match"),
    [
        (i32(0, 2), i32(1, 2), "must be 3 integers"),
        (np.array([0.0, 1, 2]), i32(1, 2), "must be 3 integers"),
        (i32(1, 1, 2), i32(1, 2), "rise from 0 to 2"),
        (i32(0, 1, 3), i32(1, 2), "rise from 0 to 2"),
        (i32(0, 3, 2), i32(1, 2), "rise from 0 to 2"),
        (i32(0, -1, 2), i32(1, 2), "rise from 0 to 2"),
        (i32(0, 2, 2), i32(1, 2)[None], "one list"),
        (i32(0, 2, 2), np.array([1, 2]), "int32"),
        (i32(0, 2, 2), i32(1, 5), "0 ... 4"),
        (i32(0, 2, 2), i32(-1, 4), "0 ... 4"),
        (i32(0, 2, 2), i32(4, 1), "rise within"),
        (i32(0, 2, 2), i32(4, 4), "rise within"),
    ],
)
def test_wrong_lists(offsets, values, match):
    with pytest.raises(ValueError, match=match):
        Ragged(offsets, values).check(2, 5)


def test_lists_may_fall_from_one_to_the_next():
    Ragged(i32(0, 0, 2, 2, 3, 3), i32(1, 4, 0)).check(5, 5)


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=6))
def test_a_list_is_accepted_exactly_if_it_rises(lists):
    rising = all(part == sorted(set(part)) for part in lists)
    try:
        ragged(lists).check(len(lists), 10)
    except ValueError:
        assert not rising
    else:
        assert rising


@pytest.mark.parametrize(
    ("content", "offsets", "order", "match"),
    [
        (b"a\xff", i32(0, 1, 2), i32(0, 1), "UTF-8"),
        ("é".encode(), i32(0, 1, 2), i32(0, 1), "within a character"),
        (b"ab", i32(0, 1, 2), i32(1, 0), "order is wrong"),
        (b"ab", i32(0, 1, 2), i32(0, 0), "repeat"),
        (b"ab", i32(0, 1, 2), i32(0, 2), "0 ... 1"),
        (b"ab", i32(0, 1, 2), i32(-1, 1), "0 ... 1"),
        (b"ab", i32(0, 1, 2), i32(0), "2 int32"),
        (b"ab", i32(0, 1, 2), np.array([0, 1]), "2 int32"),
        (b"aa", i32(0, 1, 2), i32(0, 1), "repeat"),
    ],
)
def test_wrong_ids(content, offsets, order, match):
    with pytest.raises(ValueError, match=match):
        Ids(Ragged(offsets, np.frombuffer(content, np.uint8)), order).check(2)


def test_texts_are_bytes():
    with pytest.raises(ValueError, match="bytes"):
        Texts(Ragged(i32(0, 1), i32(65))).check(1)
