"""Metrics against a table made by hand, a slow oracle and trec_eval."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.recsys import metrics
from apps.recsys.metrics import ranking_metrics
from tests.reference.ranking import list_metrics


def random_lists(seed, n_users=17, n_items=31, width=11, share=0.2):
    rng = np.random.default_rng(seed)
    ranked = np.stack([rng.permutation(n_items)[:width] for _ in range(n_users)])
    test = sp.csr_array(rng.random((n_users, n_items)) < share, dtype=np.float32)
    return ranked, test


def test_by_hand():
    """Items 0 and 1 are relevant: found at ranks 2 and 4, k = 3 and 4."""
    ranked = np.array([[5, 0, 4, 1], [1, 2, 3, 4]])
    test = sp.csr_array([[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    values = ranking_metrics(ranked, test, [3, 4])
    ideal = 1 + 1 / math.log2(3)
    expected = {
        "recall@3": 0.5, "recall@4": 1.0, "precision@3": 1 / 3, "precision@4": 0.5,
        "hit@3": 1.0, "hit@4": 1.0, "mrr@3": 0.5, "mrr@4": 0.5,
        "map@3": 0.25, "map@4": 0.5,
        "ndcg@3": (1 / math.log2(3)) / ideal,
        "ndcg@4": (1 / math.log2(3) + 1 / math.log2(5)) / ideal,
    }  # fmt: skip
    assert set(values) == set(expected)
    for name, value in expected.items():
        assert values[name][0] == pytest.approx(value, abs=1e-12), name
        assert math.isnan(values[name][1]), name


@given(seed=st.integers(0, 999), share=st.floats(0, 0.7), width=st.integers(1, 13))
@settings(max_examples=40)
def test_slow_oracle(seed, share, width):
    ranked, test = random_lists(seed, width=width, share=share)
    ranked[3, width // 2 :] = -1
    ks = sorted({1, (width + 1) // 2, width})
    values = ranking_metrics(ranked, test, ks)
    for user, row in enumerate(ranked):
        relevant = set(test[[user]].indices.tolist())
        for k in ks:
            for name, value in list_metrics(row.tolist(), relevant, k).items():
                assert values[f"{name}@{k}"][user] == pytest.approx(
                    value, abs=1e-12, nan_ok=True
                )


def test_trec_eval():
    """The same numbers from the program that evaluates TREC since 1992."""
    pytrec_eval = pytest.importorskip("pytrec_eval")
    ranked, test = random_lists(5, n_users=101, n_items=211, width=53, share=0.1)
    table = test.toarray()
    relevance = {
        str(u): {str(i): 1 for i in np.flatnonzero(row)} for u, row in enumerate(table)
    }
    run = {
        str(u): {str(i): float(-rank) for rank, i in enumerate(row)}
        for u, row in enumerate(ranked)
    }
    names = {
        "recall": "recall", "ndcg": "ndcg_cut", "map": "map_cut",
        "precision": "P", "hit": "success",
    }  # fmt: skip
    ks = (5, 10, 20, 53)
    wanted = {f"{name}.{','.join(map(str, ks))}" for name in names.values()}
    answer = pytrec_eval.RelevanceEvaluator(relevance, wanted).evaluate(run)
    values = ranking_metrics(ranked, test, ks)
    for ours, theirs in names.items():
        for k in ks:
            expected = [answer[str(u)][f"{theirs}_{k}"] for u in range(101)]
            np.testing.assert_allclose(values[f"{ours}@{k}"], expected, atol=1e-12)
    best = pytrec_eval.RelevanceEvaluator(relevance, {"recip_rank"}).evaluate(run)
    expected = [best[str(u)]["recip_rank"] for u in range(101)]
    np.testing.assert_allclose(values["mrr@53"], expected, atol=1e-12)


@given(seed=st.integers(0, 999))
@settings(max_examples=30)
def test_properties(seed):
    ranked, test = random_lists(seed)
    values = ranking_metrics(ranked, test, [1, 5, 11])
    for value in values.values():
        assert (np.isnan(value) | ((value >= 0) & (value <= 1))).all()
    for name in ("recall", "hit", "map", "mrr"):
        assert not (values[f"{name}@5"] > values[f"{name}@11"]).any(), name
    # A renumbering of the items changes nothing.
    new = np.random.default_rng(seed).permutation(31)
    renamed = sp.csr_array(test.toarray()[:, np.argsort(new)])
    for name, value in ranking_metrics(new[ranked], renamed, [1, 5, 11]).items():
        np.testing.assert_array_equal(value, values[name])


def test_a_perfect_list():
    test = sp.csr_array(np.eye(7, 31)[[0] * 5] + np.eye(7, 31)[[2] * 5])
    values = ranking_metrics(np.tile([2, 0, 9], (5, 1)), test, [1, 3])
    for name in ("ndcg@1", "ndcg@3", "recall@3", "map@3", "mrr@3", "hit@1"):
        assert (values[name] == 1).all(), name


def test_hits_only_ndcg_flatters():
    """It never falls below the proper one, and forgives what was not found."""
    ranked, test = random_lists(3)
    proper = ranking_metrics(ranked, test, [11])["ndcg@11"]
    flattering = metrics.hits_only_ndcg(ranked, test, 11)
    assert (flattering >= proper).all()
    assert flattering.mean() > proper.mean() + 0.1


def test_summary_and_comparison():
    ranked, test = random_lists(1)
    test = test.tolil()
    test[4] = 0
    test = sp.csr_array(test)
    test.eliminate_zeros()
    values = ranking_metrics(ranked, test, [5])
    interval = metrics.summary(values)["recall@5"]
    assert interval.n == 16
    assert interval.value == pytest.approx(np.nanmean(values["recall@5"]))
    other = ranking_metrics(ranked[:, ::-1], test, [5])
    difference = metrics.compare(values, other)["recall@5"]
    expected = np.nanmean(values["recall@5"]) - np.nanmean(other["recall@5"])
    assert difference.value == pytest.approx(expected)
    with pytest.raises(ValueError, match="different users"):
        metrics.compare(values, {"recall@5": np.zeros(17)} | values | {
            "recall@5": np.zeros(17)})  # fmt: skip


def test_gini_is_the_mean_difference():
    """`sum_ij |x_i - x_j| / (2 n^2 mean)`."""
    counts = np.random.default_rng(0).integers(0, 50, 23)
    pairs = np.abs(counts[:, None] - counts[None]).sum()
    expected = pairs / (2 * 23**2 * counts.mean())
    assert metrics.concentration(counts) == pytest.approx(expected)
    ranked = np.repeat(np.arange(23), counts)[:, None]
    assert metrics.gini(ranked, 23) == pytest.approx(expected)


def test_coverage_and_novelty():
    ranked = np.array([[0, 1], [1, -1], [-1, -1]])
    train = sp.csr_array([[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]])
    assert metrics.coverage(ranked, 4) == 0.5
    bits = metrics.novelty(ranked, train)
    rare, common = math.log2(3), math.log2(3 / 2)
    np.testing.assert_allclose(bits, [(rare + common) / 2, rare, np.nan])


def test_groups_are_parts_of_the_whole():
    rng = np.random.default_rng(0)
    train = sp.csr_array(rng.random((31, 101)) < 0.2, dtype=np.float32)
    ranked, test = random_lists(2, n_users=31, n_items=101)
    groups = metrics.by_popularity(train)
    assert [int(g.sum()) for g in groups.values()] == [81, 15, 5]
    degrees = np.asarray(train.sum(0))
    assert degrees[groups["tail"]].max() <= degrees[groups["head"]].min()
    hits = [
        metrics.hit_matrix(ranked, metrics.only_items(test, g)).sum()
        for g in groups.values()
    ]
    assert sum(hits) == metrics.hit_matrix(ranked, test).sum() > 0
    users = metrics.by_activity(train)
    assert sum(g.astype(int) for g in users.values()).tolist() == [1] * 31


def test_refusals():
    ranked, test = random_lists(0)
    with pytest.raises(ValueError, match="at least 12"):
        ranking_metrics(ranked, test, [12])
    with pytest.raises(ValueError, match="17 users"):
        ranking_metrics(ranked[:5], test, [1])
    with pytest.raises(ValueError, match="outside"):
        ranking_metrics(ranked + 31, test, [1])
    with pytest.raises(ValueError, match="item indices"):
        ranking_metrics(ranked / 2, test, [1])
    with pytest.raises(ValueError, match="twice"):
        ranking_metrics(np.zeros_like(ranked), test, [1])
