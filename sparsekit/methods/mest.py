"""MEST: memory-economic sparse training."""

from dataclasses import dataclass

from sparsekit.allocation import erk
from sparsekit.masks import topk_mask
from sparsekit.method import (
    Allocation,
    Context,
    Masks,
    Method,
    periodic,
    random_masks,
    require_fraction,
    require_sparsity,
    require_steps,
    require_weight,
)
from sparsekit.scores import gradient, magnitude, random


@dataclass(frozen=True)
class MEST(Method):
    """Drops by |w| + weight_of_gradient |g|, grows at random, ever fewer.

    Never needs the gradient of an absent weight. Elastic mutation (EM) prunes to
    sparsity + p and grows back to sparsity, so the budget is never exceeded. The soft
    form (EM&S) prunes to the sparsity and grows to sparsity - p, so that new weights
    train beside the old ones before the next move decides. p halves after 3/4 of `end`
    and is 0 from `end` on.

    Args:
        sparsity: fraction of zeros over all masked tensors after `end`, in [0, 1).
        every: steps between two moves; the paper uses 5 epochs.
        end: step of the last move, at which p becomes 0; about 3/4 of the training.
        extra: p at first, a fraction of all weights.
        weight_of_gradient: lambda.
        soft: EM&S instead of EM.
        allocation: (shapes, sparsity) -> active weights a tensor.

    Source: Yuan et al. 2021, arXiv 2110.14032.
    Differs from the paper: the released scripts set p and its stages by hand for each
    sparsity; here one rule scales with `end`.
    """

    sparsity: float
    every: int = 500
    end: int = 10_000
    extra: float = 0.02
    weight_of_gradient: float = 1.0
    soft: bool = False
    allocation: Allocation = erk

    def __post_init__(self) -> None:
        require_sparsity(self.sparsity)
        require_steps(every=self.every, end=self.end)
        require_fraction(extra=self.extra)
        require_weight(weight_of_gradient=self.weight_of_gradient)

    def start(self, context: Context) -> Masks:
        return random_masks(context, self.allocation(context.shapes, self.sparsity))

    def due(self, step: int) -> bool:
        return step == self.end or periodic(step, self.every, self.every, self.end)

    def update(self, context: Context) -> Masks:
        extra = self._extra(context.step)
        least, most = self.sparsity, self.sparsity
        if self.soft:
            most = max(0.0, self.sparsity - extra)
        else:
            # At least half of the weights stay, or nothing is left to regrow from.
            least = min(self.sparsity + extra, (1 + self.sparsity) / 2)
        kept = self.allocation(context.shapes, least)
        final = self.allocation(context.shapes, most)
        masks = {}
        for name, mask in context.masks.items():
            weight, grad = context.weights[name], context.grads[name]
            score = magnitude(weight)
            if grad is not None:
                score = score + self.weight_of_gradient * gradient(grad)
            n_kept = min(kept[name], final[name], int(mask.sum()))
            keep = topk_mask(score, n_kept, among=mask)
            noise = random(weight.shape, context.generator).to(weight.device)
            masks[name] = keep | topk_mask(noise, final[name] - n_kept, among=~keep)
        return masks

    def sparsity_at(self, step: int) -> float:
        if not self.soft or step < min(self.every, self.end):
            return self.sparsity
        last = self.end if step >= self.end else step - step % self.every
        return max(0.0, self.sparsity - self._extra(last))

    def _extra(self, step: int) -> float:
        if step >= self.end:
            return 0.0
        return self.extra if step < 0.75 * self.end else self.extra / 2
