"""Training and evaluation mode, changed for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """`model.train(training)` inside, and afterwards every module's own mode again.

    Modules may differ in their modes: a frozen batch norm stays frozen.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout().eval())
    >>> with in_mode(model, training=False):
    ...     print(model.training)
    False
    >>> model.training, model[1].training
    (True, False)
    """
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
