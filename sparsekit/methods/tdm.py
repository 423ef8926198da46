"""TDM: task-aware dynamic masking, the sparsity of SparCL."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from sparsekit.allocation import uniform
from sparsekit.masks import topk_mask
from sparsekit.method import (
    Allocation,
    Context,
    Masks,
    Method,
    periodic,
    require_fraction,
    require_sparsity,
    require_step,
    require_steps,
    require_weight,
)
from sparsekit.scores import gradient, magnitude, random

Gradients = Mapping[str, Tensor | None]


@dataclass(frozen=True)
class TDM(Method):
    """Prunes the least important weights of a task's network, grows others at random.

    importance = |w| + alpha |d L_current / dw| + beta |d L_buffer / dw|   ("paper")
    importance = |w| + alpha |d L / dw|                                 ("released")

    One object is one task. At `begin` it grows a share `inter` of all weights of a
    tensor on top (expand), which train until begin + every. There, and every `every`
    steps after it, it prunes to sparsity + intra by importance and grows back to
    sparsity at random (shrink, then move). At `end` it prunes to sparsity only. For the
    next task give `Sparsifier.set_method` another object, which begins there.

    "released" takes the gradient of the training step, at no cost. "paper" takes two of
    its own, by two more backward passes in the steps that move connections, from
    `Sparsifier(..., losses={"current": ..., "buffer": ...})`. L_current should be the
    cross-entropy over the classes of the current task only. A loss that is None, as
    that of an empty buffer, adds nothing.

    Args:
        sparsity: fraction of zeros over all masked tensors, in [0, 1).
        begin: the task's first step.
        every: steps between two moves; the paper moves every 5 epochs. Of a tuple each
            is one such time, as when epochs get shorter, and nothing moves after them.
        end: last step that moves; the release rests during the last 5 epochs.
        inter: share of all weights grown at `begin`; 0 for the paper's first task.
        intra: share of all weights that moves at a time; the release has 0.01.
        alpha: weight of the gradient of the current task, or of the whole loss.
        beta: weight of the gradient of the buffer; unused by "released".
        variant: which importance, "paper" or "released".
        allocation: (shapes, sparsity) -> active weights a tensor.

    Source: Wang et al. 2022, arXiv 2209.09476, and its released code. The values of
    alpha, beta, inter and intra for "paper" are recalled, not read there.
    Differs from the release: counts are exact; the importance is that of the step that
    moves, before its update, instead of after the step before; a weight pruned and
    grown in the same move keeps its value.
    """

    sparsity: float
    begin: int = 0
    every: int | tuple[int, ...] = 500
    end: int = 10_000
    inter: float = 0.01
    intra: float = 0.005
    alpha: float = 0.5
    beta: float = 1.0
    variant: str = "released"
    allocation: Allocation = uniform

    def __post_init__(self) -> None:
        require_sparsity(self.sparsity)
        require_step(begin=self.begin, end=self.end)
        for every in self.every if isinstance(self.every, tuple) else (self.every,):
            require_steps(every=every)
        require_fraction(inter=self.inter, intra=self.intra)
        if self.end <= self.begin:
            raise ValueError(
                f"end comes after begin, which is {self.begin}; got end={self.end}"
            )
        require_weight(alpha=self.alpha, beta=self.beta)
        if self.variant not in ("paper", "released"):
            raise ValueError(
                f"variant must be 'paper' or 'released', got {self.variant!r}"
            )

    def start(self, context: Context) -> Masks:
        counts = self.allocation(context.shapes, self.sparsity)
        return {
            name: topk_mask(magnitude(weight), counts[name])
            for name, weight in context.weights.items()
        }

    def due(self, step: int) -> bool:
        if step == self.begin:
            return self.inter > 0
        if step >= self.end:
            return step == self.end
        if isinstance(self.every, tuple):
            return step - self.begin in accumulate(self.every)
        return periodic(step, self.begin, self.every, self.end)

    def update(self, context: Context) -> Masks:
        least, most = self._shrink_and_grow(context.step)
        kept = self.allocation(context.shapes, least)
        final = self.allocation(context.shapes, most)
        alive = {name: int(mask.sum()) for name, mask in context.masks.items()}
        prunes = any(min(kept[n], final[n]) < alive[n] for n in alive)
        scores = self._importance(context) if prunes else {}
        masks = {}
        for name, mask in context.masks.items():
            n_kept = min(kept[name], final[name], alive[name])
            keep = topk_mask(scores[name], n_kept, among=mask) if prunes else mask
            if n_kept < final[name]:
                noise = random(mask.shape, context.generator).to(mask.device)
                keep = keep | topk_mask(noise, final[name] - n_kept, among=~keep)
            masks[name] = keep
        return masks

    def sparsity_at(self, step: int) -> float:
        first = self.every[0] if isinstance(self.every, tuple) else self.every
        if self.begin <= step < min(self.begin + first, self.end):
            return max(0.0, self.sparsity - self.inter)
        return self.sparsity

    def _shrink_and_grow(self, step: int) -> tuple[float, float]:
        """Sparsity to prune to, and to grow to."""
        if step == self.begin:
            return self.sparsity, self.sparsity_at(step)
        if step >= self.end:
            return self.sparsity, self.sparsity
        # At least half of the weights stay, or nothing is left to regrow from.
        return min(self.sparsity + self.intra, (1 + self.sparsity) / 2), self.sparsity

    def _importance(self, context: Context) -> dict[str, Tensor]:
        scores = {name: magnitude(w) for name, w in context.weights.items()}
        for factor, grads in self._terms(context):
            for name, score in scores.items():
                grad = None if grads is None else grads[name]
                if grad is not None:  # else the parameter took no part in this step
                    score += factor * gradient(grad)
        return scores

    def _terms(self, context: Context) -> Iterator[tuple[float, Gradients | None]]:
        """Factors, and gradients of alive weights; one after the other is in memory."""
        if self.variant == "released":
            yield self.alpha, context.grads
            return
        for factor, loss in ((self.alpha, "current"), (self.beta, "buffer")):
            if factor > 0:
                yield factor, context.loss_grads[loss]
