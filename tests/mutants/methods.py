"""Methods that are broken on purpose, each in one way that a library has been."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparsekit.allocation import uniform
from sparsekit.masks import drop_and_grow, topk_mask
from sparsekit.method import Method, random_masks, require_sparsity
from sparsekit.methods.tdm import TDM
from sparsekit.scores import magnitude, random


@dataclass(frozen=True)
class Moving(Method):
    """A sound method, SET in short, that the mutants change in one place."""

    sparsity: float
    every: int = 3

    def __post_init__(self):
        require_sparsity(self.sparsity)

    def start(self, context):
        return random_masks(context, uniform(context.shapes, self.sparsity))

    def due(self, step):
        return step > 0 and step % self.every == 0

    def update(self, context):
        masks = {}
        for name, mask in context.masks.items():
            noise = random(mask.shape, context.generator)
            moved = int(mask.sum()) // 3
            masks[name] = drop_and_grow(
                mask, magnitude(context.weights[name]), noise, moved
            )
        return masks

    def sparsity_at(self, step):
        return self.sparsity


class OffByOne(Moving):
    """One weight too many: `round` here, `count_active` there."""

    def update(self, context):
        masks = super().update(context)
        first = next(iter(masks.values()))
        first.view(-1)[(~first).view(-1).nonzero()[0]] = True
        return masks


class Truncates(Moving):
    """int(N (1 - s)) for each tensor."""

    def start(self, context):
        counts = {
            name: int(weight.numel() * (1 - self.sparsity))
            for name, weight in context.weights.items()
        }
        return random_masks(context, counts)


class DrawsOnDevice(Moving):
    """Noise from the device's generator: other masks on every device and run."""

    def update(self, context):
        return {
            name: drop_and_grow(
                mask,
                magnitude(context.weights[name]),
                torch.rand(mask.shape, device=context.weights[name].device),
                int(mask.sum()) // 3,
            )
            for name, mask in context.masks.items()
        }


class BreaksTiesByEpsilon(Moving):
    """A threshold after adding tiny numbers, which vanish next to large scores."""

    def start(self, context):
        masks = {}
        counts = uniform(context.shapes, self.sparsity)
        for name, weight in context.weights.items():
            order = torch.arange(weight.numel()).view(weight.shape)
            score = magnitude(weight) - 1e-6 * order
            threshold = score.flatten().sort(descending=True).values[counts[name] - 1]
            masks[name] = score >= threshold
        return masks


class GrowsIntoKept(Moving):
    """Candidates for growth include the weights that were kept."""

    def update(self, context):
        masks = {}
        for name, mask in context.masks.items():
            moved = int(mask.sum()) // 3
            score = magnitude(context.weights[name])
            keep = topk_mask(score, int(mask.sum()) - moved, among=mask)
            masks[name] = keep | topk_mask(random(mask.shape, context.generator), moved)
        return masks


class ChangesContext(Moving):
    """Writes the new mask into the one it was shown."""

    def update(self, context):
        for name, mask in super().update(context).items():
            context.masks[name].copy_(mask)
        return dict(context.masks)


class MovesWhenNotDue(Moving):
    """Says that it is due in other steps than it counts on."""

    def sparsity_at(self, step):
        return self.sparsity if step < 4 else self.sparsity / 2


@dataclass(frozen=True)
class KeepsState(Moving):
    """Counts its own calls, so that a resumed run is at another count."""

    calls: list = field(default_factory=list)

    def update(self, context):
        self.calls.append(context.step)
        masks = super().update(context)
        if len(self.calls) % 2:
            return masks
        return {name: mask.clone() for name, mask in context.masks.items()}


@dataclass(frozen=True)
class HoldsTensor(Moving):
    """A tensor among the settings: not saved, not moved to the device."""

    scores: Tensor = field(default_factory=lambda: torch.zeros(3))


class AcceptsAnySparsity(Moving):
    """No validation: sparsity 1.5 trains something."""

    def __post_init__(self):
        pass


class IgnoresZero(Moving):
    """Moves weights at sparsity 0 too: drops one, and grows it a step later."""

    def due(self, step):
        return super().due(step) or (self.sparsity == 0 and step == 4)

    def update(self, context):
        if self.sparsity > 0:
            return super().update(context)
        masks = {name: torch.ones_like(mask) for name, mask in context.masks.items()}
        next(iter(masks.values())).view(-1)[0] = context.step == 4
        return masks


@dataclass(frozen=True)
class KeepsExpansion(TDM):
    """What a new task was given on top is never taken away again."""

    def _shrink_and_grow(self, step):
        least, most = super()._shrink_and_grow(step)
        return least, min(most, max(0.0, self.sparsity - self.inter))


@dataclass(frozen=True)
class RemembersImportance(TDM):
    """Keeps the last gradient itself, as the release does: a resumed run has none."""

    last: dict = field(default_factory=dict)

    def _terms(self, context):
        yield self.alpha, dict(self.last) or None
        self.last.update({n: g.clone() for n, g in context.grads.items()})
