"""The verb budget.

sparsekit recsys budget --config lightgcn-ml100k --mb 0.02 0.08 --out runs/budget
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from apps.common.arrays import open_arrays
from apps.common.config import parse
from apps.common.verbs import narrowed, tell
from apps.recsys.budget import budget
from apps.recsys.config import PRESETS, Config
from apps.recsys.models.factors import Factors

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class BudgetConfig(Config):
    """Which recipe is best for a number of megabytes.

    Trains the dense model with several seeds, packs it by every recipe at every
    budget, chooses settings on validation, tests once. Prints a table; with `out`
    writes budget.json, budget.txt and budget.png.

    Args:
        mb: budgets in MB of 10^6 bytes; default: half of the dense tables, a
            quarter, and so on to 1/64.
        seeds: how many seeds, from `seed` on.
        recipes: names; default: all that need no training beside the dense model's.
        factors: files .npz with `users` [U, d] and `items` [I, d], one a seed, trained
            elsewhere; then nothing is trained. With `train_on` all they have seen the
            validation part, and agreement with the dense model chooses.
        measure: memory and time of a query, too.
    """

    unused: ClassVar[Mapping[str, str]] = {"resume": "it begins anew each time"}

    mb: tuple[float, ...] = ()
    seeds: int = 5
    recipes: tuple[str, ...] = ()
    factors: tuple[Path, ...] = ()
    measure: bool = True


def budget_command(argv: list[str]) -> None:
    """Find the best recommender for a number of megabytes.

    sparsekit recsys budget --config lightgcn-ml100k --mb 0.02 0.08 --out runs/budget
    """
    config = parse(BudgetConfig, argv, presets=PRESETS)
    given = [load_factors(path) for path in config.factors]
    n_seeds = len(given) or config.seeds
    curve = budget(
        narrowed(config, Config),
        [round(mb * MEGABYTE) for mb in config.mb],
        range(config.seed, config.seed + n_seeds),
        recipes=config.recipes,
        factors=given,
        measure=config.measure,
        out=config.out,
    )
    tell(curve.content(), curve.table())
    if config.out is not None:
        curve.save(config.out)
        curve.draw(config.out / "budget.png")


def load_factors(path: Path) -> Factors:
    """users and items of an .npz file. ValueError for any other file."""
    with open_arrays(path, "users", "items") as arrays:
        return Factors(
            np.asarray(arrays["users"], np.float32),
            np.asarray(arrays["items"], np.float32),
        )


BUDGET_VERBS = {"budget": budget_command}
