"""Which records an audit looks at: the hard ones, against fresh ones as hard.

A random forget set is mostly easy records, which any model gets right whether it saw
them or not: doing nothing is close to retraining there. What is memorised leaks.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from apps.common.images import Split
from sparsekit.data_pruning.scores import el2n
from sparsekit.data_pruning.selection import top


def difficulty(model: nn.Module, split: Split, batch: int = 500) -> Tensor:
    """EL2N of each record, [N], by a model that has seen none of them (a reference):
    how surprising the record is. Larger = harder."""
    parts = zip(split.x.split(batch), split.y.split(batch), strict=True)
    return torch.cat([el2n(model, x, y) for x, y in parts])


def hardest(scores: Tensor, share: float = 0.1) -> Tensor:
    """Sorted positions of the hardest `share`, at least one.

    >>> hardest(torch.tensor([0.1, 0.9, 0.5]), 0.34)
    tensor([1])
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    return top(scores, max(1, round(share * len(scores))))


def memorisation(with_record: Tensor, without: Tensor) -> Tensor:
    """Feldman's score: mean correctness of models trained with a record, minus that of
    models trained without it, [N] in [-1, 1].

    with_record: [A, N], without: [B, N], correctness of 0 and 1.

    >>> memorisation(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
    tensor([1., 0.])

    Source: Feldman 2020, arXiv 1906.05271, definition 1.
    """
    return with_record.mean(0) - without.mean(0)


def matched(scores: Tensor, fresh: Tensor) -> Tensor:
    """For each record a different fresh one of nearly the same score, [N] positions.

    The total distance is the least possible. Raises ValueError with too few of them.

    >>> matched(torch.tensor([0.9, 0.1]), torch.tensor([0.0, 0.5, 1.0]))
    tensor([2, 0])
    """
    if len(fresh) < len(scores):
        raise ValueError(
            f"{len(scores)} records need as many fresh ones, there are {len(fresh)}"
        )
    a, b = scores.double().numpy(), fresh.double().numpy()
    _, columns = linear_sum_assignment(np.abs(a[:, None] - b[None]))
    return torch.from_numpy(columns)
