"""SISA: sharded, isolated, sliced, aggregated training, which forgets exactly."""

from dataclasses import dataclass

from torch import nn

from apps.unlearning.ensemble import Ensemble, Shards, train_shards
from apps.unlearning.unlearner import Problem, Unlearner


@dataclass(frozen=True)
class Sisa(Unlearner):
    """Trains the slices again that held a forgotten record, and those after them.

    The model must be an `Ensemble` that `train_shards` trained, with its checkpoints:
    SISA decides how the *original* is trained. What it returns is, bit for bit, what
    `train_shards` gives on the retain set alone.

    Args:
        shards: S, models that share no data. slices: R, checkpoints in each.

    Source: Bourtoule et al. 2021, arXiv 1912.03817.
    """

    shards: int = 5
    slices: int = 4

    exact = True

    def __post_init__(self) -> None:
        Shards(self.shards, self.slices)  # checks them

    def run(self, problem: Problem) -> nn.Module:
        model = problem.model
        if not isinstance(model, Ensemble):
            raise ValueError(
                "sisa needs a model that was trained by train_shards: it cannot take "
                f"records out of a {type(model).__name__}; retrain, or use another "
                "method"
            )
        if problem.build_model is None:
            raise ValueError("sisa needs build_model=, a function seed -> model")
        return train_shards(
            model.build_model,
            problem.retain,
            model.shards,
            problem.recipe,
            seed=model.seed,
            masks=model.masks,
            store=model.store,
        )
