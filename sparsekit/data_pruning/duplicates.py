"""Near duplicates by their features: which to drop, and which copy stays for each."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekit.data_pruning.embeddings import nearest_centres, require_features

CHUNK = 1024  # rows of a similarity matrix at a time


@dataclass(frozen=True)
class Duplicates:
    """kept: [K] sorted; dropped: [D] sorted; kept_for: [D], who stays in its place."""

    kept: Tensor
    dropped: Tensor
    kept_for: Tensor


def semantic_duplicates(
    features: Tensor,
    *,
    epsilon: float = 0.05,
    n_clusters: int = 1,
    scores: Tensor | None = None,
    seed: int = 0,
) -> Duplicates:
    """Drops an example whose cosine to one before it exceeds 1 - epsilon.

    Examples are compared within k-means clusters, the highest score first, by default
    the one farthest from its centre. If b is dropped for a, and c for b, then a stays
    for both.

    Args:
        features: [N, d], no row zero.
        epsilon: in (0, 2).
        n_clusters: more are faster, and miss pairs on both sides of a border.
        scores: [N], larger = rather kept.

    Raises:
        ImportError: without scikit-learn, for several clusters.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.01]])
    >>> semantic_duplicates(x, scores=torch.tensor([0.0, 0.0, 1.0]))
    Duplicates(kept=tensor([1, 2]), dropped=tensor([0]), kept_for=tensor([2]))

    Source: Abbas et al. 2023 (SemDeDup), arXiv 2303.09540, appendix A.
    """
    x = F.normalize(require_features(features), dim=1)
    if not 0 < epsilon < 2:
        raise ValueError(f"epsilon is in (0, 2), got {epsilon}")
    zero = (x == 0).all(1)
    if zero.any():
        raise ValueError(f"row {int(zero.nonzero()[0])} is zero: it has no direction")
    if n_clusters == 1:
        clusters = torch.zeros(len(x), dtype=torch.int64)
        distance = (x - x.mean(0)).norm(dim=1)
    else:
        clusters, distance = nearest_centres(x, n_clusters, seed)
    order = (distance if scores is None else scores).argsort(
        descending=True, stable=True
    )
    for_whom = torch.arange(len(x))  # itself, if it stays
    for cluster in clusters.unique():
        members = order[clusters[order] == cluster]
        _compare(x[members], members, 1 - epsilon, for_whom)
    kept = for_whom == torch.arange(len(x))
    dropped = (~kept).nonzero().squeeze(1)
    return Duplicates(kept.nonzero().squeeze(1), dropped, for_whom[dropped])


def _compare(x: Tensor, members: Tensor, threshold: float, for_whom: Tensor) -> None:
    """Fills `for_whom` of the members, x [M, d] in the order of preference."""
    for start in range(0, len(x), CHUNK):
        end = min(start + CHUNK, len(x))
        rows = torch.arange(start, end)
        similar = x[start:end] @ x[:end].T
        later = torch.arange(end) >= rows.unsqueeze(1)
        best, which = similar.masked_fill(later, -torch.inf).max(1)
        for row in (best > threshold).nonzero().squeeze(1).tolist():
            earlier = members[which[row]]
            for_whom[members[rows[row]]] = for_whom[earlier]
