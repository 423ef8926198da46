"""Near duplicates against a loop over pairs, whole and cluster by cluster."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekit.data_pruning import duplicates
from sparsekit.data_pruning.duplicates import semantic_duplicates
from sparsekit.data_pruning.embeddings import nearest_centres


def circle(n: int = 60) -> Tensor:
    angle = torch.rand(n, generator=torch.Generator().manual_seed(0)) * 6.28
    return torch.stack([angle.cos(), angle.sin()], 1) * (1 + angle[:, None])


def by_pairs(x: Tensor, scores: Tensor, epsilon: float) -> dict[int, int]:
    """{dropped: who stays for it}, in plain loops."""
    x = F.normalize(x.double(), dim=1)
    order = sorted(range(len(x)), key=lambda i: (-float(scores[i]), i))
    stays = {i: i for i in order}
    for place, i in enumerate(order):
        near = [(float(x[i] @ x[j]), -k) for k, j in enumerate(order[:place])]
        if near and max(near)[0] > 1 - epsilon:
            stays[i] = stays[order[-max(near)[1]]]
    return {i: j for i, j in stays.items() if i != j}


@pytest.mark.parametrize("chunk", [1, 3, 7, 1024])
@pytest.mark.parametrize("epsilon", [0.001, 0.05, 1.5])
def test_equal_to_a_loop_over_pairs(chunk, epsilon, monkeypatch) -> None:
    monkeypatch.setattr(duplicates, "CHUNK", chunk)
    x, scores = circle(), torch.arange(60.0) % 7  # ties: the first stays
    found = semantic_duplicates(x, epsilon=epsilon, scores=scores)
    expected = by_pairs(x, scores, epsilon)
    assert dict(
        zip(found.dropped.tolist(), found.kept_for.tolist(), strict=True)
    ) == dict(sorted(expected.items()))
    assert found.kept.tolist() == [i for i in range(60) if i not in expected]


@pytest.mark.parametrize("n_clusters", [2, 5])
def test_clusters_are_looked_at_one_by_one(n_clusters: int) -> None:
    x = circle()
    cluster, distance = nearest_centres(F.normalize(x, dim=1), n_clusters, 3)
    expected = {}
    for c in range(n_clusters):
        own = (cluster == c).nonzero().squeeze(1)
        pairs = by_pairs(x[own], distance[own], 0.05)
        expected |= {int(own[i]): int(own[j]) for i, j in pairs.items()}
    found = semantic_duplicates(x, n_clusters=n_clusters, seed=3)
    assert found.dropped.tolist() == sorted(expected)
    assert found.kept_for.tolist() == [expected[i] for i in sorted(expected)]
    assert len(expected) < len(semantic_duplicates(x).dropped)  # of a border


def test_one_cluster_needs_no_other_library(monkeypatch) -> None:
    def refuse(*_):
        raise AssertionError("k-means was asked")

    monkeypatch.setattr(duplicates, "nearest_centres", refuse)
    assert len(semantic_duplicates(circle()).dropped) > 0


def test_a_similarity_of_just_one_minus_epsilon_is_no_duplicate() -> None:
    found = semantic_duplicates(torch.eye(3), epsilon=1.0)  # all at right angles
    assert found.dropped.tolist() == []
    assert found.kept.tolist() == [0, 1, 2]
    for wrong in (0.0, 2.0, -1.0):
        with pytest.raises(ValueError, match=r"epsilon is in \(0, 2\)"):
            semantic_duplicates(torch.eye(3), epsilon=wrong)


def test_one_example_is_kept() -> None:
    assert semantic_duplicates(torch.ones(1, 2)).kept.tolist() == [0]
