"""D2: messages and selection by hand, and against a slow reference."""

import math

import pytest
import torch

from sparsekit.data_pruning.graph import d2, neighbours, propagate
from tests.reference.data_selection import graph_selection


def test_neighbours_by_brute_force_and_with_copies():
    x = torch.randn(23, 3, generator=torch.Generator().manual_seed(0))
    index, distance = neighbours(x, 4)
    distances = torch.cdist(x, x).fill_diagonal_(torch.inf)
    expected = distances.topk(4, largest=False)
    torch.testing.assert_close(distance, expected.values, rtol=1e-4, atol=1e-4)
    assert torch.equal(index, expected.indices)
    index, distance = neighbours(torch.ones(5, 2), 2)
    assert (index != torch.arange(5).unsqueeze(1)).all()  # never itself
    assert distance.max() == 0


def test_five_nodes_by_hand():
    """On a line: 0 - 1 - 2 ... 10 - 11, one neighbour each."""
    x = torch.tensor([[0.0], [1.0], [2.5], [10.0], [11.0]])
    scores = torch.tensor([1.0, 2.0, 0.5, 1.5, 0.4])
    index, distance = neighbours(x, 1)
    assert index.flatten().tolist() == [1, 0, 1, 4, 3]
    e = math.exp
    expected = [1 + 2 * e(-1), 2 + e(-1), 0.5 + 2 * e(-1.5), 1.5 + 0.4 * e(-1),
                0.4 + 1.5 * e(-1)]  # fmt: skip
    # 1.74, 2.37, 0.95, 1.65, 0.95
    torch.testing.assert_close(
        propagate(scores, index, distance), torch.tensor(expected)
    )
    # 1 first; 0 loses exp(-0.1) 2.37 = 2.14 and falls to -0.40; then 3, and 4 falls
    # to -0.54; then 2 (0.946)
    assert d2(scores, 1, features=x, k=1).tolist() == [1]
    assert d2(scores, 2, features=x, k=1).tolist() == [1, 3]
    assert d2(scores, 3, features=x, k=1).tolist() == [1, 2, 3]
    # without a penalty, gamma large, the best messages
    assert d2(scores, 3, features=x, k=1, gamma=50.0).tolist() == [0, 1, 3]


@pytest.mark.parametrize("seed", range(5))
def test_the_heap_is_the_plain_greedy_selection(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(37, 2, generator=generator).double()
    scores = torch.rand(37, generator=generator).double()
    index, distance = neighbours(x, 5)
    links = {
        i: dict(zip(index[i].tolist(), distance[i].tolist(), strict=True))
        for i in range(37)
    }
    for n in (1, 5, 20, 37):
        expected = graph_selection(scores.tolist(), links, 0.3, n)
        found = d2(scores, n, features=x, k=5, gamma=0.3)
        assert found.tolist() == sorted(expected)


def test_refused():
    x = torch.randn(5, 2)
    with pytest.raises(ValueError, match="they must be finite"):
        d2(torch.tensor([0, 1, 2, 3, torch.inf]), 2, features=x)
    with pytest.raises(ValueError, match=r"k is in 1 \.\.\. 4"):
        d2(torch.zeros(5), 2, features=x, k=5)
