"""What other libraries take: callbacks, an estimator; each file imports its library."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sparsekit.method import Method
from sparsekit.sparsifier import Sparsifier


def build(
    model: nn.Module,
    optimizer: Optimizer,
    method: Method,
    saved: Mapping[str, Any] | None = None,
    **options: Any,
) -> Sparsifier:
    """A sparsifier, new or as `saved`, for a model that has its saved weights already.

    A new one zeroes what its method drops; loading puts that back.

    Args:
        saved: `state_dict()` of the sparsifier to go on with.
        options: of `Sparsifier`.
    """
    sparsifier = Sparsifier(model, optimizer, method, **options)
    if saved is not None:
        sparsifier.load_state_dict(saved)
    return sparsifier
