"""Iterative magnitude pruning with rewinding: lottery tickets."""

from dataclasses import dataclass

from sparsekit.method import (
    Context,
    Masks,
    Method,
    dense_masks,
    prune,
    require_sparsity,
    require_steps,
)
from sparsekit.patterns import Unstructured
from sparsekit.scores import magnitude


@dataclass(frozen=True)
class IMP(Method):
    """Train, prune the smallest weights, go back to the early weights, and again.

    After i of n rounds the density is (1 - sparsity)^(i / n). A pruning replaces the
    step in which it happens and puts the whole model back to what it was at step
    `rewind_to`; the optimizer's state is that of a new optimizer. The training lasts
    `every * (rounds + 1)` steps; a learning-rate schedule should restart each round.

    Args:
        sparsity: fraction of zeros over all masked tensors after the last round.
        rounds: n, how often it prunes.
        every: steps of training a round.
        rewind_to: step whose weights come back, less than `every`; 0 = the first.
        across_layers: one threshold over all tensors, as for the paper's larger nets.

    Source: Frankle & Carbin 2019, arXiv 1803.03635; late rewinding 1912.05671.
    """

    sparsity: float
    rounds: int = 5
    every: int = 1000
    rewind_to: int = 0
    across_layers: bool = True

    replaces_step = True

    def __post_init__(self) -> None:
        require_sparsity(self.sparsity)
        require_steps(rounds=self.rounds, every=self.every)
        if not 0 <= self.rewind_to < self.every:
            raise ValueError(
                f"rewind_to must be in [0, every={self.every}), got {self.rewind_to}"
            )

    def start(self, context: Context) -> Masks:
        return dense_masks(context)

    def due(self, step: int) -> bool:
        return step % self.every == 0 and 0 < step <= self.every * self.rounds

    def update(self, context: Context) -> Masks:
        scores = {name: magnitude(w) for name, w in context.weights.items()}
        return prune(
            scores,
            self.sparsity_at(context.step),
            Unstructured(),
            self.across_layers,
            among=context.masks,
        )

    def sparsity_at(self, step: int) -> float:
        done = min(step // self.every, self.rounds)
        if done == self.rounds:
            return self.sparsity
        return 1 - (1 - self.sparsity) ** (done / self.rounds)
