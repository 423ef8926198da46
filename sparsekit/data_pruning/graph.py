"""Difficulty and diversity on the graph of nearest neighbours (D2 pruning).

An example counts more if its neighbours are hard too; when it is chosen, its
neighbours count less.
"""

import heapq

import torch
from torch import Tensor

from sparsekit.data_pruning.embeddings import import_sklearn, require_features


def neighbours(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest others of every example: indices [N, k], distances [N, k].

    Raises:
        ImportError: without scikit-learn.

    >>> neighbours(torch.tensor([[0.0], [1.0], [3.0]]), 1)[0].flatten()
    tensor([1, 0, 1])
    """
    x = require_features(features)
    if not 1 <= k < len(x):
        raise ValueError(f"k is in 1 ... {len(x) - 1} (N - 1), got {k}")
    search = import_sklearn("neighbors").NearestNeighbors(n_neighbors=k).fit(x.numpy())
    distance, index = search.kneighbors()  # without the example itself
    return torch.from_numpy(index), torch.from_numpy(distance).float()


def propagate(scores: Tensor, index: Tensor, distance: Tensor) -> Tensor:
    """s_i + sum over neighbours j of exp(-d_ij) s_j, [N]: one forward message."""
    return scores + (torch.exp(-distance) * scores[index]).sum(1)


def d2(
    scores: Tensor, n: int, *, features: Tensor, k: int = 5, gamma: float = 0.1
) -> Tensor:
    """n examples by scores that spread over a graph, one by one.

    Forward: every example receives its neighbours' scores. Then the best is taken and
    its neighbours j lose exp(-gamma d_ij) of its score, until n are taken.

    Args:
        scores: [N], finite.
        features: [N, d].
        k: neighbours.
        gamma: how fast the penalty falls with the distance; small = more diverse.

    >>> x = torch.tensor([[0.0], [0.0], [9.0], [9.5]])
    >>> s = torch.tensor([1.0, 0.9, 0.5, 0.1])
    >>> d2(s, 2, features=x, k=1, gamma=0.1)  # not 0 and 1, which are the same
    tensor([0, 2])

    Source: Maharana et al. 2024, arXiv 2310.07931, equations 2 and 3.
    Differs from the authors' code: a k-NN index in place of all pairs of distances.
    """
    if not torch.isfinite(scores).all():
        raise ValueError("d2 adds scores up: they must be finite (forgetting is not)")
    index, distance = neighbours(require_features(features, len(scores)), k)
    values = propagate(scores.double(), index, distance.double()).tolist()
    penalty = torch.exp(-gamma * distance.double()).tolist()
    adjacent = index.tolist()
    heap = [(-value, i) for i, value in enumerate(values)]
    heapq.heapify(heap)
    chosen = torch.zeros(len(scores), dtype=torch.bool)
    while n:
        value, best = heapq.heappop(heap)
        if chosen[best] or -value != values[best]:
            continue  # an entry from before an update
        chosen[best] = True
        n -= 1
        for j, share in zip(adjacent[best], penalty[best], strict=True):
            if not chosen[j]:
                values[j] -= share * values[best]
                heapq.heappush(heap, (-values[j], j))
    return chosen.nonzero().squeeze(1)
