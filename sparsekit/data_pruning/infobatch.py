"""InfoBatch: epochs that leave out a part of what is learned, without bias.

sampler = InfoBatch(len(dataset), epochs)
loader = DataLoader(numbered_dataset, batch_size, sampler=sampler)
for epoch in range(epochs):
    sampler.set_epoch(epoch)
    for index, x, y in loader:
        losses = cross_entropy(model(x), y, reduction="none")
        (sampler.weights(index) * losses).mean().backward()
        sampler.record(index, losses)
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from sparsekit.masks import count_active

FIRST_LOSS = 3.0  # of an example not seen yet: all equal, none below the mean


class InfoBatch(Sampler[int]):
    """Of the examples with a loss below the mean a share is left out, others anew each
    epoch; those that stay count for the missing ones. The last epochs use everything.

    Of m examples below the mean k = m - round(ratio m) stay, each with weight m / k:
    the expected weighted gradient is the full one. With a sampler of your own, take
    `indices` and `weights` after `set_epoch`.

    Args:
        n_examples: N.
        epochs: of the whole training.
        ratio: share of the easy examples that is left out, in [0, 1).
        full_after: share of the epochs after which everything is used.
        seed: epoch e of a seed is the same draw, whatever else is random.

    >>> sampler = InfoBatch(4, epochs=8, seed=0)
    >>> sampler.record(torch.arange(4), torch.tensor([0.1, 0.2, 5.0, 6.0]))
    >>> sampler.set_epoch(1)
    >>> len(sampler), sampler.weights(torch.arange(4)).max()
    (3, tensor(2.))

    Source: Qin et al. 2024, arXiv 2303.04947, sections 3.1 to 3.3.
    Differs from the paper: exactly the share is left out, not each with a probability,
    so the length of an epoch is known before it begins.
    """

    def __init__(
        self,
        n_examples: int,
        epochs: int,
        *,
        ratio: float = 0.5,
        full_after: float = 0.875,
        seed: int = 0,
    ):
        if n_examples < 1 or epochs < 1:
            raise ValueError(
                f"n_examples and epochs are at least 1, got {n_examples} and {epochs}"
            )
        if not 0 <= ratio < 1 or not 0 <= full_after <= 1:
            raise ValueError(
                f"ratio is in [0, 1) and full_after in [0, 1], got {ratio} and "
                f"{full_after}"
            )
        self.epochs, self.ratio, self.seed = epochs, ratio, seed
        self.full_from = round(full_after * epochs)
        self.losses = torch.full((n_examples,), FIRST_LOSS)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draws the examples of epoch 0, 1, ... by the losses recorded so far."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        easy = (self.losses < self.losses.double().mean()).nonzero().squeeze(1)
        self.all_weights = torch.ones(len(self.losses))
        if len(easy) and epoch < self.full_from:
            n_kept = count_active(len(easy), self.ratio)
            order = easy[torch.randperm(len(easy), generator=generator)]
            self.all_weights[order[:n_kept]] = len(easy) / n_kept
            self.all_weights[order[n_kept:]] = 0
        kept = self.all_weights.nonzero().squeeze(1)
        self.indices = kept[torch.randperm(len(kept), generator=generator)]

    def weights(self, index: Tensor) -> Tensor:
        """Factors of the losses of examples, [B], on the device of `index`.

        Take the mean of the *weighted* losses of a batch: the steps of a shorter epoch
        then add up to those of a full one. Do not divide by the sum of the weights.
        """
        return self.all_weights.to(index.device)[index]

    def record(self, index: Tensor, losses: Tensor) -> None:
        """Stores losses [B] of examples, for the epochs to come."""
        losses = losses.detach().float().cpu()
        if not torch.isfinite(losses).all():
            raise ValueError("losses are NaN or infinite: the training diverged")
        self.losses[index.cpu()] = losses

    def steps(self, batch_size: int) -> int:
        """Batches of this epoch; it changes, so a schedule in steps needs it."""
        return -(-len(self) // batch_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices.tolist())

    def state_dict(self) -> dict[str, Any]:
        """The losses; `set_epoch` makes the rest again."""
        return {"losses": self.losses.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses.copy_(state["losses"])
