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
def seeded(seed: int) -> Iterator[None]:
    """torch's own random numbers on the CPU by a seed; their state is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
