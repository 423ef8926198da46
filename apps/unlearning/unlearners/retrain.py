"""Retraining: the gold standard, which never saw the forget set."""

from dataclasses import dataclass

from torch import nn

from apps.unlearning.fitting import fit
from apps.unlearning.unlearner import Problem, Unlearner
from sparsekit import fixed


@dataclass(frozen=True)
class Retrain(Unlearner):
    """Trains an untrained model on the retain set, by the original's recipe.

    Weights are drawn afresh; a sparse model keeps its masks, as published, and is then
    exact only if the masks do not depend on the forget set (see the mask's provenance).

    Source: Jia et al. 2023, arXiv 2304.04934, where the reference is trained for 160
    epochs and the original for 182; here both take the recipe's.
    """

    exact = True

    def run(self, problem: Problem) -> nn.Module:
        if problem.build_model is None:
            raise ValueError(
                "retrain needs build_model=, a function seed -> untrained model"
            )
        model = problem.build_model(problem.seed).to(problem.retain.y.device)
        fixed.apply(model, problem.masks)
        return fit(
            model,
            problem.retain,
            problem.recipe,
            seed=problem.seed,
            masks=problem.masks,
            stage=problem.stage,
            loss=problem.loss,
        )
