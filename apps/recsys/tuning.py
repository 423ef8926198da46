"""Settings to try for each model: the same number for all, chosen on validation.

    for recommender in baseline_candidates("ease", 5, seed=0): ...
    for config in candidates(Config(model="mf"), 5, seed=0): ...

The first is where the search begins: the given settings, or a baseline's defaults. The
others are drawn from ranges that are wide enough for data sets of other sizes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from apps.recsys.config import Config
from apps.recsys.models.als import ALS
from apps.recsys.models.closed_form import (
    EASE,
    Cooccurrence,
    ItemKNN,
    Popularity,
    Recommender,
)


@dataclass(frozen=True)
class Between:
    """A number from low to high, uniform in its logarithm; whole if low is."""

    low: float
    high: float

    def draw(self, generator: np.random.Generator) -> float | int:
        spread = generator.uniform(math.log(self.low), math.log(self.high))
        value = math.exp(spread)
        return round(value) if isinstance(self.low, int) else float(f"{value:.3g}")


@dataclass(frozen=True)
class OneOf:
    """One of a few values."""

    values: tuple[Any, ...]

    def draw(self, generator: np.random.Generator) -> Any:
        return self.values[generator.integers(len(self.values))]


Space = Mapping[str, Between | OneOf]

GRAPH: Space = {
    "lr": Between(1e-3, 3e-2), "l2": Between(1e-4, 1e-2), "layers": OneOf((2, 3)),
}  # fmt: skip
NETWORKS: dict[str, Space] = {
    "mf": {"lr": Between(1e-3, 2e-2), "l2": Between(1e-4, 3e-2)},
    "lightgcn": GRAPH,
    "llmrec": GRAPH,
    "multvae": {
        "lr": Between(3e-4, 5e-3), "dropout": OneOf((0.3, 0.5, 0.7)),
        "kl": Between(0.05, 1.0),
    },
    "neumf": {
        "lr": Between(5e-4, 1e-2), "l2": Between(1e-5, 1e-2),
        "negatives": OneOf((2, 4, 8)),
    },
}  # fmt: skip

# Where the search begins for a model that is compared without settings of its own.
STARTS: dict[str, dict[str, Any]] = {
    "mf": {"lr": 0.005, "l2": 0.01},
    "lightgcn": {"lr": 0.01, "l2": 0.003, "layers": 2},
    "llmrec": {"lr": 0.01, "l2": 0.003, "layers": 2},
    "multvae": {"lr": 0.001, "batch": 100, "dropout": 0.5, "kl": 0.2},
    "neumf": {"lr": 0.002, "l2": 1e-4, "negatives": 4, "dim": 16, "layers": 3},
}

BASELINES: dict[str, tuple[Recommender, Space]] = {
    "popularity": (Popularity(), {}),
    "item-knn": (
        ItemKNN(), {"neighbours": Between(20, 1000), "shrink": Between(0.1, 300.0)},
    ),
    "ease": (EASE(), {"l2": Between(20.0, 3000.0)}),
    "co-occurrence": (Cooccurrence(), {}),
    "als": (ALS(), {"l2": Between(0.1, 100.0), "alpha": Between(0.3, 30.0)}),
}  # fmt: skip


def candidates(config: Config, trials: int, seed: int) -> list[Config]:
    """`config` itself, then others with its model's settings drawn anew."""
    drawn = _drawn(NETWORKS[config.model], trials - 1, seed)
    return [config, *(replace(config, **changes) for changes in drawn)]


def baseline_candidates(name: str, trials: int, seed: int) -> list[Recommender]:
    """A baseline's defaults, then others; one alone if there is nothing to choose."""
    start, space = BASELINES[name]
    drawn = _drawn(space, trials - 1, seed) if space else []
    return [start, *(replace(start, **changes) for changes in drawn)]


def _drawn(space: Space, n: int, seed: int) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    return [
        {name: values.draw(generator) for name, values in space.items()}
        for _ in range(n)
    ]
