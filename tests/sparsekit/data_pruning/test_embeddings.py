"""Choosing by features: against brute force on small sets of points."""

import itertools
import sys

import pytest
import torch

from sparsekit.data_pruning import duplicates
from sparsekit.data_pruning.duplicates import semantic_duplicates
from sparsekit.data_pruning.embeddings import herding, k_center, prototypes


def points(n=29, d=3, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_prototypes_are_distances_to_the_nearest_mean():
    x = points()
    one = prototypes(x, 1)
    torch.testing.assert_close(one, (x - x.mean(0)).norm(dim=1))
    assert prototypes(x, 29).max() < 1e-5  # every example its own centre
    blobs = torch.cat([x * 0.1, x * 0.1 + 50, x * 0.1 - 50])
    found = prototypes(blobs, 3, seed=1)
    torch.testing.assert_close(found, one.repeat(3) * 0.1, rtol=1e-3, atol=1e-4)


def test_herding_by_brute_force():
    x = points()
    chosen: list[int] = []
    for _ in range(7):
        rest = [i for i in range(29) if i not in chosen]
        gap = {i: (x[[*chosen, i]].mean(0) - x.mean(0)).norm() for i in rest}
        chosen.append(min(gap, key=gap.get))
        found = herding(torch.zeros(29), len(chosen), features=x)
        assert found.tolist() == sorted(chosen)


def test_herding_is_nearer_to_the_mean_than_chance():
    x = points(101)
    kept = herding(torch.zeros(101), 11, features=x)
    gap = (x[kept].mean(0) - x.mean(0)).norm()
    generator = torch.Generator().manual_seed(1)
    others = [
        (x[torch.randperm(101, generator=generator)[:11]].mean(0) - x.mean(0)).norm()
        for _ in range(50)
    ]
    assert gap < min(others)


def test_k_center_is_within_twice_the_optimum():
    x = points(11, 2)
    distances = torch.cdist(x, x)

    def radius(centres):
        return float(distances[:, list(centres)].min(1).values.max())

    scores = torch.arange(11.0)
    for n in (1, 2, 3, 4):
        kept = k_center(scores, n, features=x).tolist()
        assert 10 in kept  # the first is the one with the highest score
        best = min(map(radius, itertools.combinations(range(11), n)))
        assert radius(kept) <= 2 * best + 1e-6
        greedy = [10]
        while len(greedy) < n:
            greedy.append(int(distances[:, greedy].min(1).values.argmax()))
        assert kept == sorted(greedy)
    assert k_center(scores, 0, features=x).tolist() == []


def test_copies_come_last_in_k_center():
    x = points(5).repeat(3, 1)
    kept = k_center(torch.zeros(15), 5, features=x)
    assert len(x[kept].unique(dim=0)) == 5
    assert len(k_center(torch.zeros(15), 9, features=x)) == 9


@pytest.mark.parametrize("n_clusters", [1, 3])
@pytest.mark.parametrize("chunk", [1024, 3])
def test_planted_duplicates(n_clusters, chunk, monkeypatch):
    monkeypatch.setattr(duplicates, "CHUNK", chunk)
    x = torch.eye(11)
    copies = 3 * x[[2, 2, 7]] + 0.001  # length does not matter
    every = torch.cat([x, copies])
    scores = torch.zeros(14)
    scores[12] = 1  # of 2, 11 and 12, which are the same, 12 stays; of 7 and 13, 7
    found = semantic_duplicates(every, scores=scores, n_clusters=n_clusters)
    assert found.dropped.tolist() == [2, 11, 13]
    assert found.kept_for.tolist() == [12, 12, 7]
    assert found.kept.tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 12]


@pytest.mark.parametrize("chunk", [1024, 2])
def test_a_chain_of_duplicates_is_kept_for_by_its_head(chunk, monkeypatch):
    monkeypatch.setattr(duplicates, "CHUNK", chunk)
    angles = torch.tensor([0.0, 0.2, 0.4, 1.5])
    x = torch.stack([angles.cos(), angles.sin()], 1)
    found = semantic_duplicates(x, epsilon=0.03, scores=torch.tensor([3.0, 2, 1, 0]))
    assert torch.cos(torch.tensor(0.4)) < 0.97 < torch.cos(torch.tensor(0.2))
    assert found.dropped.tolist() == [1, 2]
    assert found.kept_for.tolist() == [0, 0]


def test_duplicates_by_brute_force():
    x = points(41, 2)
    scores = torch.randperm(41, generator=torch.Generator().manual_seed(3)).float()
    unit = x / x.norm(dim=1, keepdim=True)
    expected = [
        i
        for i in range(41)
        if any(unit[i] @ unit[j] > 0.99 for j in range(41) if scores[j] > scores[i])
    ]
    found = semantic_duplicates(x, epsilon=0.01, scores=scores)
    assert found.dropped.tolist() == expected
    assert sorted([*found.kept.tolist(), *expected]) == list(range(41))
    assert set(found.kept_for.tolist()) <= set(found.kept.tolist())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prototypes(torch.zeros(3), 1), r"features are \[N, d\], got shape"),
        (lambda: prototypes(points(), 30), "n_clusters is in 1 ... 29"),
        (lambda: prototypes(points() / 0 - points() / 0, 1), "NaN or infinity"),
        (lambda: herding(torch.zeros(5), 2, features=points()), r"\[5, d\]"),
        (lambda: semantic_duplicates(torch.zeros(2, 2)), "row 0 is zero"),
        (lambda: semantic_duplicates(points(), epsilon=0), "epsilon is in"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        prototypes(points(), 2)
