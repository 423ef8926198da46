"""Untrained models: of a config, or like a trained one, as functions of the seed."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from apps.common import classifiers
from apps.common.seeds import seeded
from apps.unlearning.config import Config


def builder(config: Config, data: Any) -> Callable[[int], nn.Module]:
    """seed -> untrained model of a config. data: has `train` and `classes`."""
    _, channels, size, _ = data.train.x.shape
    return of_shape(config, data.classes, channels, size)


def of_shape(
    config: Config, classes: int, channels: int, size: int
) -> Callable[[int], nn.Module]:
    """seed -> untrained model of a config, for images [B, channels, size, size]."""
    shape = (classes, channels, size)
    return partial(classifiers.build, config.model, config.width, config.depth, *shape)


def anew(model: nn.Module) -> Callable[[int], nn.Module]:
    """A function seed -> untrained model of the same architecture.

    Every module that holds parameters draws them again by its `reset_parameters`, as
    torch's layers do. Raises ValueError for one that has no such method.

    >>> fresh = anew(nn.Linear(2, 1))
    >>> bool((fresh(0).weight == fresh(0).weight).all())
    True
    """
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own and not hasattr(module, "reset_parameters"):
            raise ValueError(
                f"{type(module).__name__} {name!r} has parameters but no "
                "reset_parameters: give build_model=, a function seed -> model"
            )
    template = copy.deepcopy(model)

    def fresh(seed: int) -> nn.Module:
        new = copy.deepcopy(template)
        with seeded(seed):
            for module in new.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
        return new

    return fresh
