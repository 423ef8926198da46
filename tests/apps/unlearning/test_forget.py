"""Forget sets: every kind, and every way to ask for nonsense."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apps.common import images
from apps.unlearning import data, forget


@pytest.fixture(scope="module")
def splits(small):
    return images.load(small.dataset, 0)


def test_a_random_share_is_that_share_and_the_seed_s(splits):
    first = forget.choose("random:0.1", splits, 0)[1]
    assert len(first) == round(0.1 * len(splits.train))
    assert torch.equal(
        first.positions, forget.choose("random:0.1", splits, 0)[1].positions
    )
    assert not torch.equal(
        first.positions, forget.choose("random:0.1", splits, 1)[1].positions
    )


def test_a_class_is_gone_from_training_and_from_fresh_records(small):
    loaded = data.load(small.dataset, "class:1", 0)
    assert set(loaded.forgotten.y.tolist()) == {1}
    for part in (loaded.retained, loaded.held_out, loaded.fresh):
        assert 1 not in part.y
    assert set(loaded.fresh_forgotten.y.tolist()) == {1}
    assert loaded.forget.removed_class == 1


def test_forgotten_and_retained_are_a_partition(small):
    loaded = data.load(small.dataset, "random:0.2", 0)
    ids = torch.cat([loaded.forgotten.ids, loaded.retained.ids]).sort().values
    assert torch.equal(ids, loaded.train.ids.sort().values)


def test_a_subject_s_records_are_found_by_the_attribute(small, splits):
    loaded = data.load(small.dataset, "subject=4", 0)
    expected = [i for i in splits.train.ids.tolist() if i % 23 == 4]
    assert sorted(loaded.forgotten.ids.tolist()) == sorted(expected)


@pytest.mark.parametrize("suffix", [".txt", ".json", ".npy"])
def test_a_file_names_records_by_id(tmp_path, splits, suffix):
    ids = splits.train.ids[:3].tolist()
    path = tmp_path / f"ids{suffix}"
    if suffix == ".npy":
        np.save(path, ids)
    else:
        path.write_text(
            json.dumps(ids) if suffix == ".json" else "\n".join(map(str, ids))
        )
    chosen = forget.choose(str(path), splits, 0)[1]
    assert sorted(splits.train.ids[chosen.positions].tolist()) == sorted(ids)


def test_a_table_has_no_backdoor():
    with pytest.raises(ValueError, match="at least 6 pixels a side, got 1"):
        forget.patched(torch.zeros(3, 30, 1, 1))


def test_backdoor_patches_and_relabels_the_forget_set_only(splits):
    train, chosen = forget.choose("backdoor:0.1", splits, 0)
    assert set(train.y[chosen.positions].tolist()) == {forget.TARGET}
    assert forget.TARGET not in splits.train.y[chosen.positions]
    changed = (train.x != splits.train.x).flatten(1).any(1).nonzero().squeeze(1)
    assert torch.equal(changed, chosen.positions)


def test_confusion_swaps_labels_of_two_classes(splits):
    train, chosen = forget.choose("confusion:0,2,5", splits, 0)
    before, after = splits.train.y[chosen.positions], train.y[chosen.positions]
    assert before.bincount().tolist() == [5, 0, 5]
    assert torch.equal(after, 2 - before)
    assert int((train.y != splits.train.y).sum()) == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not understood"),
        ("random", "not understood"),
        ("random:0", "share in (0, 1)"),
        ("random:nan", "share in (0, 1)"),
        ("random:1", "share in (0, 1)"),
        ("random:0.0001", "the forget set is empty"),
        ("random:0.9999", "all 161 records"),
        ("class:x", "no whole number"),
        ("class:3", "class 3 does not exist"),
        ("class:-1", "class -1 does not exist"),
        ("confusion:0,0,5", "two different classes"),
        ("confusion:0,1,999", "cannot be confused"),
        ("confusion:0,1", "not understood"),
        ("colour=red", "no attribute 'colour'"),
    ],
)
def test_nonsense_is_named(splits, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        forget.choose(text, splits, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("1\n1", "twice"),
        ("9999", "not in the training part"),
        ("-1", "not in the training part"),
        ("one", "no file of record ids"),
    ],
)
def test_a_file_of_nonsense_is_named(tmp_path, splits, content, message):
    ids = splits.train.ids.tolist()
    path = tmp_path / "ids.txt"
    path.write_text(content.replace("1\n1", f"{ids[0]}\n{ids[0]}"))
    with pytest.raises(ValueError, match=message):
        forget.choose(str(path), splits, 0)


def test_a_missing_file_and_a_pickle_are_refused(tmp_path, splits):
    with pytest.raises(FileNotFoundError):
        forget.choose(str(tmp_path / "no.txt"), splits, 0)
    path = tmp_path / "objects.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="no file of record ids"):
        forget.read_ids(path)


@given(st.lists(st.integers(-3, 12), max_size=14))
def test_check_accepts_exactly_the_proper_subsets(positions):
    proper = (
        0 < len(positions) < 10
        and len(set(positions)) == len(positions)
        and all(0 <= p < 10 for p in positions)
    )
    try:
        found = forget.check(positions, 10)
    except ValueError:
        assert not proper
    else:
        assert proper
        assert found.tolist() == sorted(positions)
