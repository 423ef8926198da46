"""A small data set that is quick to learn: three classes of 8x8 images."""

import numpy as np
import pytest

from apps.data_pruning.config import Config
from tests.apps.patterns import noisy_patterns, stored


def images(n: int = 230, size: int = 8, channels: int = 1, spread: float = 0.6):
    """Noisy copies of one pattern a class; n is no multiple of the batch."""
    x, y = noisy_patterns(n, 3, channels, size, spread)
    return x.astype(np.float32), y


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Config:
    """161 training examples; half a second for everything that a test trains."""
    return Config(
        dataset=stored(tmp_path_factory, *images()), model="mlp", width=13, depth=1,
        epochs=4, batch=17, lr=0.02, weight_decay=0.01, score_epoch=1, score_runs=2,
    )  # fmt: skip
