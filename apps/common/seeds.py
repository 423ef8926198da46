"""Randomness from seeds, one independent stream for each purpose."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mixed(*numbers: int) -> int:
    """A seed of 32 bits from several numbers: the run's seed, and what it is for.

    Generators with the same seed draw the same permutation: without this, a random
    subset would hold exactly the examples whose labels were replaced.

    >>> mixed(0, 1), mixed(0, 2)
    (3964924996, 3141116543)
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def seeded(seed: int, device: str = "cpu") -> Iterator[None]:
    """torch's own random numbers, on the CPU and `device`, by a seed; put back after.

    >>> with seeded(0):
    ...     torch.rand(1)
    tensor([0.4963])
    """
    with torch.random.fork_rng([device] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        yield
