"""Greedy maximum entropy: published vectors, incremental = direct, exhaustive order."""

import math
import random
from math import comb

import pytest
import torch

from sparsekit.data_pruning.gme import entropy_with, maximum_entropy
from tests.reference.data_selection import entropy


@pytest.mark.parametrize(
    ("counts", "item", "expected"),
    [
        ([0, 0, 1, 2, 0], [1, 2, 3, 4], 1.27703),
        ([0, 0, 1, 2, 0], [1, 2], 1.05492),
        ([0, 2, 1, 0, 0], [4, 3, 2, 1], 1.27703),
        ([0, 2, 1, 0, 0], [2, 1], 0.67301),
        ([0, 2, 1], [], 0.63651),
        ([0, 0, 0], [], 0.0),
        ([1, 0], [0, 0, 0], 0.0),
    ],
)
def test_published_vectors(counts, item, expected):
    assert round(entropy_with(counts, item), 5) == expected
    values = [i for i, c in enumerate(counts) for _ in range(c)] + item
    assert entropy_with(counts, item) == pytest.approx(entropy(values) if values else 0)


def films(n, seed):
    rng = random.Random(seed)
    genres, cast = "abcdefg", range(11)
    return [
        [rng.choices(genres, [9, 5, 3, 2, 1, 1, 1], k=rng.randint(0, 3)),
         rng.sample(cast, rng.randint(0, 4))]
        for _ in range(n)
    ]  # fmt: skip


def direct(items, n, objective, binarised):
    """Entropies from lists of values, at every step and for every item."""
    if binarised:
        items = [[sorted(set(values)) for values in item] for item in items]
    n_variables = len(items[0])
    utopia = [
        math.log(len({e for item in items for e in item[v]}))
        for v in range(n_variables)
    ]
    taken, order, found = [[] for _ in range(n_variables)], [], []
    for _ in range(n):
        costs = {}
        for i, item in enumerate(items):
            if i in order:
                continue
            h = [
                round(entropy(taken[v] + item[v]), 5) if taken[v] + item[v] else 0.0
                for v in range(n_variables)
            ]
            if objective == "utopia":
                costs[i] = math.dist(h, utopia)
            else:
                costs[i] = -sum(h)
        best = min(costs, key=lambda i: (round(costs[i], 12), i))
        order.append(best)
        taken = [taken[v] + items[best][v] for v in range(n_variables)]
        found.append([entropy(values) if values else 0.0 for values in taken])
    return order, found


@pytest.mark.parametrize("binarised", [False, True])
@pytest.mark.parametrize("objective", ["utopia", "sum"])
@pytest.mark.parametrize("seed", range(3))
def test_incremental_is_direct(seed, objective, binarised):
    items = films(19, seed)
    order, entropies = direct(items, 19, objective, binarised)
    found = maximum_entropy(items, 19, objective=objective, binarised=binarised)
    assert found.order.tolist() == order
    expected = torch.tensor(entropies, dtype=torch.float64)
    torch.testing.assert_close(found.entropies, expected)


def test_entropies_are_compared_at_five_decimals():
    """1,000 and 1,002 are known: one more of the first is better by 1e-6 only."""
    items = [[["a"] * 1000 + ["b"] * 1002], [["b"]], [["a"]]]
    assert entropy_with([1000, 1002], [0]) > entropy_with([1000, 1002], [1])
    assert maximum_entropy(items, 2).order.tolist() == [0, 1]


def test_more_even_than_chance():
    items = films(200, 7)
    found = maximum_entropy(items, 20, objective="sum").entropies[-1].sum()
    rng = random.Random(0)
    for _ in range(30):
        drawn = rng.sample(items, 20)
        values = [[e for item in drawn for e in item[v]] for v in range(2)]
        assert found > entropy(values[0]) + entropy(values[1])


def test_a_look_at_some_candidates_only():
    items = films(30, 1)

    def taken(m, seed):
        generator = torch.Generator().manual_seed(seed)
        return maximum_entropy(items, 1, candidates=m, generator=generator).order.item()

    exact = maximum_entropy(items, 1).order.item()
    assert taken(30, 0) == exact
    # P(the best is among m of N) = 1 - C(N - 1, m) / C(N, m) = m / N
    share = sum(taken(12, seed) == exact for seed in range(400)) / 400
    assert 1 - comb(29, 12) / comb(30, 12) == pytest.approx(0.4)
    assert abs(share - 0.4) < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 4}, r"n is in 0 \.\.\. 3"),
        ({"objective": "max"}, "'utopia' or 'sum'"),
        ({"candidates": 2}, "needs a generator"),
    ],
)
def test_refused(change, message):
    with pytest.raises(ValueError, match=message):
        maximum_entropy(**{"items": films(3, 0), "n": 2, **change})
    assert len(maximum_entropy(films(3, 0), 0).order) == 0


def test_an_item_without_entities_changes_no_entropy():
    items = [[[], ["x"]], [["a", "b"], []], [[], []], [["a"], ["y"]]]
    sample = maximum_entropy(items, 4)
    assert sample.entropies.shape == (4, 2)
    assert not sample.entropies.isnan().any()
    assert sorted(sample.order.tolist()) == [0, 1, 2, 3]
    counts: dict[int, list] = {0: [], 1: []}
    for step, item in enumerate(sample.order.tolist()):
        for v in (0, 1):
            counts[v] += items[item][v]
            expected = entropy(counts[v]) if counts[v] else 0.0
            assert float(sample.entropies[step, v]) == pytest.approx(expected)


def test_as_many_candidates_as_items_are_all_of_them():
    items = films(20, seed=5)
    everything = maximum_entropy(items, 8).order
    for candidates in (20, 50):
        generator = torch.Generator().manual_seed(0)
        found = maximum_entropy(items, 8, candidates=candidates, generator=generator)
        assert torch.equal(found.order, everything)
    generator = torch.Generator().manual_seed(0)
    few = maximum_entropy(items, 8, candidates=2, generator=generator).order
    assert not torch.equal(few, everything)
    assert len(set(few.tolist())) == 8


def test_none_and_all_may_be_taken():
    items = films(5, seed=1)
    assert maximum_entropy(items, 0).entropies.shape[0] == 0
    assert sorted(maximum_entropy(items, 5).order.tolist()) == list(range(5))
    with pytest.raises(ValueError, match="candidates is at least 1, and needs"):
        maximum_entropy(items, 2, candidates=3)
