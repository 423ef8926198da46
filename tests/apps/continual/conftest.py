"""A small stream that is quick to learn: six classes of 8x8 images, three tasks."""

import numpy as np
import pytest

from apps.continual.config import Config
from tests.apps.patterns import noisy_patterns, stored


def arrays(n: int = 660, classes: int = 6, size: int = 8, spread: float = 1.0):
    """Noisy copies of one pattern a class, as bytes; n is no multiple of the batch."""
    x, y = noisy_patterns(n, classes, size=size, spread=spread)
    return np.clip(128 + 40 * x, 0, 255).astype(np.uint8), y


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Config:
    """154 training examples a task; a tenth of a second a training."""
    return Config(
        dataset=stored(tmp_path_factory, *arrays()), tasks=3,
        model="mlp", width=13, depth=1, strategy="finetune",
        buffer=30, batch=17, replay_batch=11, epochs=2, lr=0.05,
    )  # fmt: skip
