"""Gradual magnitude pruning along a cubic schedule."""

from dataclasses import dataclass

from sparsekit.method import (
    Context,
    Masks,
    Method,
    dense_masks,
    periodic,
    prune,
    require_sparsity,
    require_step,
    require_steps,
)
from sparsekit.patterns import Pattern, Unstructured
from sparsekit.schedules import cubic
from sparsekit.scores import magnitude


@dataclass(frozen=True)
class Gradual(Method):
    """Prunes the smallest weights a little at a time while the model trains.

    s_t = s (1 - (1 - (t - begin) / (end - begin))^3) in the steps begin, begin + every,
    ..., end. Fast at first, when much can go, and slow at the end. Needs a learning
    rate that is still high enough to recover until `end`.

    Args:
        sparsity: s, fraction of zeros over all masked tensors at `end`, in [0, 1).
        begin, end: first and last step of the pruning; begin == end is one-shot.
        every: steps between two prunings.
        across_layers: one threshold over all tensors instead of one a tensor.
        pattern: which entries go together. With another than Unstructured, counts are
            the nearest that the pattern can reach.

    Source: Zhu & Gupta 2017, arXiv 1710.01878, equation 1.
    """

    sparsity: float
    begin: int = 0
    end: int = 10_000
    every: int = 100
    across_layers: bool = False
    pattern: Pattern = Unstructured()

    def __post_init__(self) -> None:
        require_sparsity(self.sparsity)
        require_steps(every=self.every)
        require_step(begin=self.begin, end=self.end)
        if self.begin > self.end:
            raise ValueError(
                f"begin <= end is needed, got begin={self.begin}, end={self.end}"
            )

    def start(self, context: Context) -> Masks:
        return dense_masks(context)

    def due(self, step: int) -> bool:
        return step == self.end or periodic(step, self.begin, self.every, self.end)

    def update(self, context: Context) -> Masks:
        scores = {name: magnitude(w) for name, w in context.weights.items()}
        sparsity = self.sparsity_at(context.step)
        return prune(
            scores, sparsity, self.pattern, self.across_layers, among=context.masks
        )

    def sparsity_at(self, step: int) -> float:
        if step < self.begin:
            return 0.0
        schedule = cubic(0.0, self.sparsity, self.begin, self.end)
        if step >= self.end:
            return schedule(self.end)
        return schedule(step - (step - self.begin) % self.every)
