"""What other libraries take: callbacks, an estimator; each file imports its library."""

import copy
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

    A new sparsifier zeroes what its method drops. Trainers restore the model before
    they call anyone, so that its weights are kept aside in between.

    Args:
        saved: `state_dict()` of the sparsifier to go on with.
        options: of `Sparsifier`.
    """
    if saved is None:
        return Sparsifier(model, optimizer, method, **options)
    weights = copy.deepcopy(model.state_dict())
    moments = copy.deepcopy(optimizer.state_dict())
    sparsifier = Sparsifier(model, optimizer, method, **options)
    model.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    sparsifier.load_state_dict(saved)
    return sparsifier
