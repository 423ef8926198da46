"""Epochs hold every interaction once; negatives are unknown and fairly drawn."""

from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from apps.recsys.sampling import Pairs, Users


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def table(users: int, items: int, share: float, seed: int) -> sp.csr_array:
    """Nobody has everything; at least one interaction."""
    known = np.random.default_rng(seed).random((users, items)) < share
    known[:, seed % items] = False
    known[0, (seed + 1) % items] = True
    return sp.csr_array(known, dtype=np.float32)


@given(
    users=st.integers(1, 11), items=st.integers(2, 13), share=st.floats(0, 1),
    negatives=st.integers(1, 3), batch=st.integers(1, 7), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=80)
def test_an_epoch_is_all_interactions_with_negatives(
    users, items, share, negatives, batch, seed
):
    train = table(users, items, share, seed)
    sampler = Pairs(train, min(batch, train.nnz), negatives)
    batches = list(sampler.epoch(generator(seed)))
    assert len(batches) == sampler.steps == train.nnz // sampler.batch
    assert all(b.shape == sampler.shape and b.dtype == torch.int64 for b in batches)
    every = torch.cat(batches, 1).numpy()
    pairs = set(zip(*every[:2].tolist(), strict=True))
    stored = set(zip(*(axis.tolist() for axis in train.nonzero()), strict=True))
    assert len(pairs) == every.shape[1]  # none twice
    assert pairs <= stored
    assert len(stored - pairs) == train.nnz % sampler.batch
    known = train.toarray()
    for drawn in every[2:]:
        assert ((drawn >= 0) & (drawn < items)).all()
        assert not known[every[0], drawn].any()


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_negatives_have_the_stated_probabilities(power):
    """By the definition: proportional to users(j)^power among what a user lacks."""
    known = np.random.default_rng(4).random((5, 9)) < 0.4
    known[:, 8] = False  # an item without users: drawn only if all are equal
    sampler = Pairs(sp.csr_array(known, dtype=np.float32), known.sum(), 500, power)
    (batch,) = sampler.epoch(generator())
    weights = known.sum(0).astype(float) ** power
    for user in range(5):
        drawn = batch[2:, batch[0] == user].flatten().numpy()
        free = np.flatnonzero(~known[user] & (weights > 0))
        counts = np.bincount(drawn, minlength=9)
        assert counts.sum() == counts[free].sum() == 500 * known[user].sum()
        expected = counts.sum() * weights[free] / weights[free].sum()
        assert stats.chisquare(counts[free], expected).pvalue > 1e-3


def test_users_are_drawn_with_equal_probability():
    """Whatever they have: each user's interactions share 1 / active users."""
    known = np.zeros((4, 30))
    known[0, :2] = known[1, 5:25] = known[3, 9] = 1  # user 2 has nothing
    sampler = Pairs(sp.csr_array(known, dtype=np.float32), 23, by_user=True)
    epochs = [b for s in range(200) for b in sampler.epoch(generator(s))]
    users, positives, negatives = torch.cat(epochs, 1).numpy()
    assert known[users, positives].all()
    assert not known[users, negatives].any()
    counts = np.zeros((4, 30))
    np.add.at(counts, (users, positives), 1)
    has = np.maximum(known.sum(1, keepdims=True), 1)
    expected = 23 * 200 / 3 * known / has
    there = known > 0
    assert stats.chisquare(counts[there], expected[there]).pvalue > 1e-3


def test_the_last_share_is_one(monkeypatch):
    """The largest number that can be drawn finds an item, whatever the rounding."""
    largest = np.nextafter(1.0, 0.0)
    rand = partial(torch.full, fill_value=largest, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda n, **_: rand((n,)))
    for seed in range(30):
        known = np.random.default_rng(seed).random((9, 501)) < 0.5
        known[:, -1] = np.arange(9) == seed % 9  # a user of the last item
        sampler = Pairs(sp.csr_array(known, dtype=np.float32), 2, power=0.3)
        assert (sampler._draw(3, generator()) == 500).all()


def test_one_free_item_among_many():
    known = np.ones((2, 300), np.float32)
    known[0, 123] = known[1, 7] = 0
    (batch,) = Pairs(sp.csr_array(known), 598).epoch(generator())
    assert (batch[2] == torch.where(batch[0] == 0, 123, 7)).all()


def test_held_out_items_may_be_negatives():
    """To leave them out would tell the model which ones they are."""
    train = sp.csr_array(np.array([[1, 0, 0, 0]], np.float32))
    (batch,) = Pairs(train, 1, negatives=200).epoch(generator())
    assert set(batch[2:].flatten().tolist()) == {1, 2, 3}


def test_the_generator_decides():
    train = table(20, 30, 0.3, 0)
    sampler = Pairs(train, 16)

    def epoch(seed):
        return torch.cat(list(sampler.epoch(generator(seed))), 1)

    assert torch.equal(epoch(3), epoch(3))
    pairs = [epoch(seed)[:2] for seed in (3, 4)]
    assert not torch.equal(*pairs)
    for users, items in pairs:  # shuffled: not sorted by anything
        for axis in (users, items):
            assert not torch.equal(axis, axis.sort().values)
    state = torch.get_rng_state()
    epoch(3)
    assert torch.equal(torch.get_rng_state(), state)
    backwards = sp.csr_array(
        (train.data[::-1], train.indices[::-1], train.nnz - train.indptr[::-1]),
        shape=train.shape,
    )[::-1]
    unsorted = Pairs(backwards, 16)
    assert torch.equal(torch.cat(list(unsorted.epoch(generator(3))), 1), epoch(3))


def test_users():
    train = sp.csr_array([[1, 0], [0, 0], [1, 1], [0, 1], [1, 0], [0, 1]])
    batches = list(Users(train, 2).epoch(generator()))
    assert [batch.shape for batch in batches] == [(2,), (2,)]
    drawn = torch.cat(batches).tolist()
    assert len(set(drawn)) == 4
    assert 1 not in drawn


def test_refusals():
    train = sp.csr_array(np.array([[1, 0, 0], [1, 1, 1]], np.float32))
    with pytest.raises(ValueError, match="user number 1 has every item"):
        Pairs(train, 2)
    with pytest.raises(ValueError, match="power 0"):  # item 2 has no user: power 1
        Pairs(sp.csr_array(np.array([[1, 1, 0]], np.float32)), 1, power=1.0)
    with pytest.raises(
        ValueError, match=r"batch 5 exceeds the 4 training.*\(--batch 1\)"
    ):
        Pairs(train, 5)
    with pytest.raises(ValueError, match="exceeds the 0 training"):
        Pairs(sp.csr_array((3, 4), dtype=np.float32), 1)
    for wrong in ({"batch": 0}, {"negatives": 0}, {"power": -1.0}, {"power": np.nan}):
        with pytest.raises(ValueError, match="at least"):
            Pairs(train, **({"batch": 1} | wrong))
    with pytest.raises(ValueError, match="batch 3 exceeds the 2 users"):
        Users(train, 3)
    with pytest.raises(ValueError, match="at least 1"):
        Users(train, 0)
