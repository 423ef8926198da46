"""Choosing by features alone, [N, d]: of a pretrained network, or raw inputs.

`prototypes` is a score; `herding` and `k_center` are policies, which cover the data by
themselves and use the scores little or not at all.
"""

from typing import Any

import torch
from torch import Tensor


def prototypes(features: Tensor, n_clusters: int, seed: int = 0) -> Tensor:
    """Distance to the nearest of `n_clusters` k-means centres, [N]; larger = harder.

    Keep the far ones if data are plentiful, the near ones (`bottom`) if scarce.

    Raises:
        ImportError: without scikit-learn.

    >>> x = torch.tensor([[0.0], [0.0], [3.0], [9.0], [9.0]])
    >>> prototypes(x, 2)  # centres 1 and 9
    tensor([1., 1., 2., 0., 0.])

    Source: Sorscher et al. 2022, arXiv 2206.14486.
    """
    return nearest_centres(features, n_clusters, seed)[1]


def nearest_centres(
    features: Tensor, n_clusters: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """k-means: number of each example's cluster [N], distance to its centre [N]."""
    x = require_features(features)
    if not 1 <= n_clusters <= len(x):
        raise ValueError(f"n_clusters is in 1 ... {len(x)} (N), got {n_clusters}")
    cluster = import_sklearn("cluster")
    means = cluster.KMeans(n_clusters, n_init=3, random_state=seed)
    nearest = torch.from_numpy(means.fit_predict(x.numpy())).long()
    centres = torch.from_numpy(means.cluster_centers_)
    return nearest, (x - centres[nearest]).norm(dim=1)


def herding(scores: Tensor, n: int, *, features: Tensor) -> Tensor:
    """n examples whose mean stays as near to the mean of all as one by one allows.

    The scores are not used.

    >>> x = torch.tensor([[0.0], [4.0], [5.0], [11.0]])  # mean 5
    >>> herding(torch.zeros(4), 3, features=x)  # 5; 5 and 4; 5, 4 and 11 or 0: 6.7, 3
    tensor([1, 2, 3])

    Source: Welling 2009; the greedy form of Rebuffi et al. 2017 (iCaRL),
    arXiv 1611.07725, algorithm 4.
    """
    x = require_features(features, len(scores)).double()
    mean, squares = x.mean(0), x.square().sum(1)
    total, chosen = torch.zeros_like(mean), torch.zeros(len(x), dtype=torch.bool)
    for k in range(1, n + 1):
        # |k mean - total - x|^2 without what is the same for all x
        distance = squares - 2 * (x @ (k * mean - total))
        best = int(distance.masked_fill(chosen, torch.inf).argmin())
        chosen[best] = True
        total += x[best]
    return chosen.nonzero().squeeze(1)


def k_center(scores: Tensor, n: int, *, features: Tensor) -> Tensor:
    """n centres, each the example farthest from those before; the first scores highest.

    No example is farther from its nearest centre than twice the least possible.

    >>> x = torch.tensor([[0.0], [1.0], [5.0], [9.0]])
    >>> k_center(torch.tensor([0.0, 1.0, 0.0, 0.0]), 2, features=x)
    tensor([1, 3])

    Source: Gonzalez 1985; Sener and Savarese 2018, arXiv 1708.00489, algorithm 1.
    """
    x = require_features(features, len(scores))
    chosen = torch.zeros(len(x), dtype=torch.bool)
    distance = torch.full((len(x),), torch.inf)
    best = int(scores.argmax())
    for _ in range(n):
        chosen[best] = True
        distance = torch.minimum(distance, (x - x[best]).norm(dim=1))
        best = int(distance.masked_fill(chosen, -1).argmax())
    return chosen.nonzero().squeeze(1)


def require_features(features: Tensor, n_examples: int | None = None) -> Tensor:
    """[N, d] float on the CPU, finite; raises ValueError otherwise."""
    x = torch.as_tensor(features).detach().cpu()
    if x.dim() != 2 or len(x) == 0 or n_examples not in (None, len(x)):
        wish = "[N, d]" if n_examples is None else f"[{n_examples}, d]"
        raise ValueError(f"features are {wish}, got shape {list(x.shape)}")
    x = x if x.dtype == torch.float64 else x.float()
    if not torch.isfinite(x).all():
        raise ValueError("features hold NaN or infinity")
    return x


def import_sklearn(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"sklearn.{name}")
    except ImportError as error:
        raise ImportError(
            "this needs scikit-learn: pip install scikit-learn"
        ) from error
