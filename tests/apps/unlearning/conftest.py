"""A small data set that is quick to learn: three classes of 8x8 images."""

import numpy as np
import pytest
import torch
from torch import nn

from apps.common.images import Split
from apps.unlearning.config import Config
from tests.apps.patterns import noisy_patterns, stored


def images(n: int = 230, size: int = 8, spread: float = 0.9):
    """Noisy copies of one pattern a class; n is no multiple of the batch."""
    x, y = noisy_patterns(n, 3, size=size, spread=spread)
    return x.astype(np.float32), y


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Config:
    """161 training records; a tenth of a second for a training."""
    x, y = images()
    return Config(
        dataset=stored(tmp_path_factory, x, y, subject=np.arange(len(y)) % 23),
        model="cnn", width=3, depth=2, epochs=4, batch=17, lr=0.02, weight_decay=0.01,
        sparsity=0.5, options={"epochs": 2},
    )  # fmt: skip


@pytest.fixture
def records() -> tuple[Split, Split, Split]:
    """Retain, forget and fresh records: 11 numbers, 3 classes."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(3, 11, generator=generator)
    y = torch.arange(97) % 3
    x = centres[y] + 1.5 * torch.randn(97, 11, generator=generator)
    parts = [range(61), range(61, 74), range(74, 97)]
    return tuple(Split(x[list(p)], y[list(p)], torch.tensor(list(p))) for p in parts)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Linear(11, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3)
    )
