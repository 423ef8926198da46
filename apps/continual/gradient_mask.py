"""Dynamic gradient masking: of the weights that exist, only the most moved may move."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsekit import Sparsifier
from sparsekit.execution import blocked
from sparsekit.masks import count_active, topk_mask

Scores = Mapping[str, Tensor | None]


@dataclass
class GradientMask:
    """The `share` of each tensor's alive weights with the highest scores trains.

    Chosen anew every `every` steps, counted from `restart` and from every move of
    connections, in which all may train. The others keep their bits: they are frozen by
    the Sparsifier's `trainable` masks, because a gradient of zero does not stop
    momentum, Adam or weight decay.

    share: in (0, 1]. In SparCL's words q = 1 - share (1 - sparsity) of all weights get
    no gradient; its release has q = 0.8 at sparsity 0.75, a share of 0.8.
    """

    share: float = 0.8
    every: int = 30
    since: int = 0  # steps; what a checkpoint must hold

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(
                f"the share of weights that train is in (0, 1], got {self.share}"
            )
        if self.every < 1:
            raise ValueError(f"gradient masks last 1 step or more, got {self.every}")

    def restart(self) -> None:
        """Chooses anew in the next step."""
        self.since = 0

    def update(self, sparsifier: Sparsifier, score: Callable[[], Scores]) -> None:
        """Call after the backward pass and before `sparsifier.before_step`.

        score: {weight: importance}, None for a weight without gradient; called only in
        the steps that choose.
        """
        if sparsifier.method.due(sparsifier.step):  # it may drop any weight
            self.thaw(sparsifier)
            self.since = 0
            return
        if self.since % self.every == 0:
            blocked.release()  # of activations: dense scores need memory for themselves
            scores = score()
            for name, mask in sparsifier.alive.items():
                found = scores[name]
                if found is not None:
                    n_trained = count_active(int(mask.sum()), 1 - self.share)
                    sparsifier.set_trainable(name, topk_mask(found, n_trained, mask))
        self.since += 1

    def thaw(self, sparsifier: Sparsifier) -> None:
        """All alive weights train."""
        for name, mask in sparsifier.alive.items():
            sparsifier.set_trainable(name, torch.ones_like(mask))
