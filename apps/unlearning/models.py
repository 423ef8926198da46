"""Untrained models of an architecture that is only known from a trained one."""

import copy
from collections.abc import Callable

from torch import nn

from apps.common.seeds import seeded


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
