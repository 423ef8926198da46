"""Top-K against a stable sort of all scores."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.recsys import topk
from apps.recsys.splits import known_items
from apps.recsys.topk import top_k_factors, top_k_scores


def sorted_answer(scores, k, known=None):
    """Indices and scores by a stable sort of the whole row."""
    scores = np.array(scores, np.float32)
    if known is not None:
        scores[known.toarray() != 0] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(scores, order, 1)
    return np.where(values == -np.inf, -1, order), values


@given(
    shape=st.tuples(st.integers(1, 13), st.integers(1, 701)),
    k=st.sampled_from([1, 2, 17, 23, 127, 129]), levels=st.integers(1, 5),
    share=st.floats(0, 1), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60)
def test_scores_with_many_ties(shape, k, levels, share, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-levels, levels, shape).astype(np.float32)
    known = sp.csr_array(rng.random(shape) < share, dtype=np.float32)
    best = top_k_scores(lambda users: scores[users], k, known, block=5)
    items, values = sorted_answer(scores, k, known)
    np.testing.assert_array_equal(best.items, items)
    np.testing.assert_array_equal(best.scores, values)


@pytest.mark.parametrize("threads", [1, 3])
def test_factors_over_many_tiles(monkeypatch, threads):
    """Small integers multiply exactly, so that ties are ties; tiles are odd."""
    monkeypatch.setattr(topk, "TILE_USERS", 7)
    monkeypatch.setattr(topk, "TILE_ITEMS", 101)
    monkeypatch.setattr(topk, "SMALL", 0)
    rng = np.random.default_rng(0)
    users, items = rng.integers(-2, 3, (41, 5)), rng.integers(-2, 3, (509, 5))
    known = sp.random_array((41, 509), density=0.3, format="csr", rng=rng)
    best = top_k_factors(users, items, 17, known, threads=threads)
    wanted, values = sorted_answer(users @ items.T, 17, known)
    np.testing.assert_array_equal(best.items, wanted)
    np.testing.assert_array_equal(best.scores, values)


def test_factors_of_a_small_catalogue():
    """All items at once and in their own order, or tile by tile: the same lists."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(-3, 4, (53, 5)), rng.integers(-3, 4, (1009, 5))
    known = sp.random_array((53, 1009), density=0.2, format="csr", rng=rng)
    best = top_k_factors(users, items, 20, known)
    wanted, values = sorted_answer(users @ items.T, 20, known)
    np.testing.assert_array_equal(best.items, wanted)
    np.testing.assert_array_equal(best.scores, values)


@pytest.mark.parametrize("n_low", [0, 1, 300, 490, 500])
@pytest.mark.parametrize("n_high", [0, 1, 12, 300])
def test_infinite_scores(n_low, n_high):
    """What cannot be halved between does not hide a score; -inf is never on a list."""
    rng = np.random.default_rng(n_low + n_high)
    scores = rng.standard_normal((17, 503)).astype(np.float32)
    scores[:, rng.permutation(503)[:n_high]] = np.inf
    scores[:, rng.permutation(503)[:n_low]] = -np.inf
    best = top_k_scores(lambda users: scores[users], 13, n_users=17)
    items, values = sorted_answer(scores, 13)
    np.testing.assert_array_equal(best.items, items)
    np.testing.assert_array_equal(best.scores, values)


def test_rising_scores():
    """Every item beats all earlier ones."""
    scores = np.arange(3001, dtype=np.float32)[None]
    best = top_k_scores(lambda users: scores.copy(), 5, n_users=1)
    assert best.items.tolist() == [[3000, 2999, 2998, 2997, 2996]]


def test_lists_end_where_no_item_is_left():
    known = sp.csr_array([[1, 1, 0], [1, 1, 1]])
    best = top_k_factors(np.ones((2, 1)), np.ones((3, 1)), 10, known)
    assert best.items.tolist() == [[2, -1, -1], [-1, -1, -1]]
    assert best.scores[0].tolist() == [1.0, -np.inf, -np.inf]


def test_unsorted_known_items_and_chosen_users():
    known = sp.csr_array(
        (np.ones(2), np.array([3, 1]), np.array([0, 0, 2, 2])), shape=(3, 5)
    )
    asked = []

    def scores(users):
        asked.append(users.tolist())
        return np.tile(np.arange(5.0), (len(users), 1))

    best = top_k_scores(scores, 2, known, users=np.array([1, 2]), block=1)
    assert best.items.tolist() == [[4, 2], [4, 3]]
    assert asked == [[1], [2]]


def test_scores_of_the_caller_may_be_read_only():
    scores = np.broadcast_to(np.float32([1, 2]), (1, 2))
    best = top_k_scores(lambda users: scores, 1, sp.csr_array([[0, 1]]))
    assert best.items.tolist() == [[0]]


@pytest.mark.parametrize("place", [0, 63, 64, 299])
def test_nan_is_refused(place):
    scores = np.zeros((2, 300), np.float32)
    scores[1, place] = np.nan
    with pytest.raises(ValueError, match="user 1 is NaN"):
        top_k_scores(lambda users: scores, 3, n_users=2)
    with pytest.raises(ValueError, match="items hold NaN"):
        top_k_factors(np.ones((2, 1)), scores[1][:, None], 3)


@given(seed=st.integers(0, 999), spread=st.floats(0, 3), k=st.integers(1, 13))
@settings(max_examples=40)
def test_lengths_that_differ(seed, spread, k):
    """Most items are skipped by their length, none that belongs on the list.

    Powers of two times small integers multiply exactly.
    """
    rng = np.random.default_rng(seed)
    lengths = 2.0 ** np.round(spread * rng.standard_normal((307, 1)))
    items = rng.integers(-3, 4, (307, 5)) * lengths
    users = rng.integers(-3, 4, (29, 5)) * 2.0 ** rng.integers(-9, 9, (29, 1))
    users[0] = 0  # every score is 0: the lowest indices win
    known = sp.random_array((29, 307), density=0.2, format="csr", rng=rng)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "TILE_ITEMS", 67)
        patch.setattr(topk, "SMALL", 0)
        best = top_k_factors(users, items, k, known)
    wanted, values = sorted_answer(users @ items.T, k, known)
    np.testing.assert_array_equal(best.items, wanted)
    np.testing.assert_array_equal(best.scores, values)


def test_refusals():
    one = np.ones((3, 2))
    with pytest.raises(ValueError, match="2 dimensions, items have 3"):
        top_k_factors(one, np.ones((4, 3)), 1)
    with pytest.raises(ValueError, match="k must be at least 1"):
        top_k_factors(one, one, 0)
    with pytest.raises(ValueError, match="3 users x 3 items"):
        top_k_factors(one, one, 1, sp.csr_array((3, 4)))
    with pytest.raises(ValueError, match="which users"):
        top_k_scores(lambda users: one, 1)
    with pytest.raises(ValueError, match="shape"):
        top_k_scores(lambda users: one, 1, n_users=4)
    with pytest.raises(ValueError, match="known has 4 items"):
        top_k_scores(lambda users: one, 1, sp.csr_array((3, 4)))


def test_union_of_what_is_known():
    a = sp.csr_array([[2.0, 0, 0], [0, 0, 0]])
    b = sp.csr_array([[5.0, 0, 1], [0, 4, 0]])
    assert known_items(a, b).toarray().tolist() == [[1, 0, 1], [0, 1, 0]]
    assert a.data.tolist() == [2.0]
