"""Equal bytes: how sparse a model must be so that its packed file fits a budget.

    small = models.build("mlp", width=25, depth=2, classes=10)
    large = models.build("mlp", width=100, depth=2, classes=10)
    sparsity = sparsity_within(large, bytes_on_disk(small, {}))

The file holds the index too, so 90 % fewer weights are not 90 % fewer bytes.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from apps.common.cost import bytes_on_disk
from sparsekit.allocation import uniform
from sparsekit.masks import count_active
from sparsekit.method import Allocation


def largest_file(model: nn.Module, counts: Mapping[str, int]) -> int:
    """Bytes of the packed file under the worst masks with `counts` active weights.

    CSR and a bit mask depend on the counts alone. Delta gaps take one byte more for
    each 255 absent weights in a row, and most if all absent weights stand in one row:
    those are the masks taken here. No other masks with these counts need more.

    >>> model = nn.Linear(100, 50)
    >>> largest_file(model, {"weight": 500}) - largest_file(model, {"weight": 400})
    499
    """
    weights = dict(model.named_parameters())
    masks = {name: _last(weights[name], n_active) for name, n_active in counts.items()}
    return bytes_on_disk(model, masks)


def sparsity_within(
    model: nn.Module,
    budget: int,
    masked: Collection[str] | None = None,
    allocation: Allocation = uniform,
) -> float:
    """Lowest sparsity at which the packed file has at most `budget` bytes.

    Whatever the masks turn out to be: it holds for `largest_file`, so for every mask
    with the counts of `allocation`.

    Args:
        model: untrained or trained; only shapes and dtypes matter.
        budget: bytes of the file, header and all that is not masked included.
        masked: names of the masked parameters; default: every parameter with at least
            2 dimensions, as `train` does.
        allocation: (shapes, sparsity) -> active weights a tensor. `uniform` is what
            gradual and one-shot pruning within each tensor have; static has `erk`.

    Raises:
        ValueError: if one active weight a tensor takes more than the budget already.

    >>> from apps.classify import models
    >>> model = models.build("mlp", width=100, depth=2, classes=10)
    >>> round(sparsity_within(model, 90_000), 3)
    0.784
    """
    named = dict(model.named_parameters())
    names = [n for n, p in named.items() if p.dim() >= 2] if masked is None else masked
    shapes = {name: tuple(named[name].shape) for name in names}
    total = sum(named[name].numel() for name in names)

    def fits(n_active: int) -> bool:
        counts = allocation(shapes, _sparsity(total, n_active))
        return largest_file(model, counts) <= budget

    if fits(total):
        return 0.0
    low, high = len(shapes), total  # active weights: low fits, high does not
    if not fits(low):
        raise ValueError(
            f"{budget} bytes are too few: one active weight a tensor takes "
            f"{largest_file(model, allocation(shapes, _sparsity(total, low)))}"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return _sparsity(total, low)


def _sparsity(total: int, n_active: int) -> float:
    """The fraction that `count_active` turns into `n_active` again."""
    sparsity = (total - n_active) / total
    assert count_active(total, sparsity) == n_active
    return sparsity


def _last(weight: Tensor, n_active: int) -> Tensor:
    """Mask [shape of weight] whose last `n_active` entries are alive."""
    alive = torch.arange(weight.numel()) >= weight.numel() - n_active
    return alive.view(weight.shape)
