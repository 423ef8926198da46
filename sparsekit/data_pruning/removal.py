"""Dynamic data removal: the easiest examples go for good, stage by stage.

removal = DataRemoval(len(dataset), share=0.3, stage=5, stages=4)
loader = DataLoader(numbered_dataset, batch_size, sampler=removal)
for epoch in range(epochs):
    removal.set_epoch(epoch)
    for index, x, y in loader:
        logits = model(x)
        ...
        removal.record(index, logits, y)
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from sparsekit.data_pruning.dynamics import TrainingTrace, aum, misclassified
from sparsekit.masks import count_active, pack, unpack
from sparsekit.method import require_fraction, require_steps

Score = Callable[[TrainingTrace], Tensor]  # [N], larger = harder


class DataRemoval(Sampler[int]):
    """At the end of each of the first `stages` stages, the easiest examples leave.

    A stage is `stage` epochs. After stage k = 1 ... stages exactly round(share k /
    stages N) of the N examples are gone; afterwards nothing changes. What is easy is
    decided by the training's own logits of the stage that ends, at no further cost.
    Stage by stage the statistics begin anew.

    An example that an epoch left out, as one in an incomplete last batch, counts with
    what it was in the epoch before; one that the stage never showed stays.

    Args:
        n_examples: N.
        share: of all examples that leave in the end, in [0, 1).
        stage: epochs of a stage.
        stages: how many stages end with a removal.
        score: what is hard, of `dynamics`: misclassified (the paper's), forgetting (the
            released code's), or a function of yours. None: random, the control.
        tie: what decides between equal scores: `dynamics.aum`, the margin;
            `dynamics.summed_loss`; or None, for the order of the examples.
        seed: of the random choice and of the order of an epoch.

    >>> removal = DataRemoval(4, share=0.5, stage=1, stages=2)
    >>> y = torch.tensor([0, 0, 1, 1])
    >>> logits = torch.tensor([[9.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 2.0]])
    >>> removal.record(torch.arange(4), logits, y)
    >>> removal.set_epoch(1)
    >>> removal.indices  # 0 and 3 were right, 0 by the larger margin
    tensor([1, 2, 3])

    Source: Wang et al. 2022 (SparCL), arXiv 2209.09476, DDR; share and stages of the
    paper are recalled, not read there.
    Differs from the released code: sorting is stable, and ties are broken by a rule.
    """

    def __init__(
        self,
        n_examples: int,
        *,
        share: float = 0.3,
        stage: int = 5,
        stages: int = 4,
        score: Score | None = misclassified,
        tie: Score | None = aum,
        seed: int = 0,
    ):
        require_steps(n_examples=n_examples, stage=stage, stages=stages)
        require_fraction(share=share)
        if share == 1:
            raise ValueError("share is in [0, 1): some examples must stay, got 1")
        self.n_examples, self.share, self.seed = n_examples, share, seed
        self.stage, self.stages = stage, stages
        self.score, self.tie = score, tie
        self.epoch = 0
        self.kept = torch.ones(n_examples, dtype=torch.bool)
        self.trace = TrainingTrace(n_examples)  # of this stage

    def n_kept(self, epoch: int) -> int:
        """How many examples an epoch has, known before any training.

        >>> [DataRemoval(10_000).n_kept(epoch) for epoch in (0, 5, 19, 20, 49)]
        [10000, 9250, 7750, 7000, 7000]
        """
        done = min(epoch // self.stage, self.stages)
        return count_active(self.n_examples, self.share * done / self.stages)

    @property
    def indices(self) -> Tensor:
        """Sorted positions of the examples of this epoch."""
        return self.kept.nonzero().squeeze(1)

    def record(self, index: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Stores logits [B, K] of examples [B] of this epoch, and their classes [B]."""
        if self.score is not None and self.epoch < self.stage * self.stages:
            self.trace.record(self.epoch % self.stage, index, logits, targets)

    def set_epoch(self, epoch: int) -> None:
        """Begins epoch 0, 1, ..., one after the other; removes what is to leave."""
        if epoch == self.epoch:
            return
        if epoch != self.epoch + 1:
            raise ValueError(
                f"epochs come one after the other: next is {self.epoch + 1}, got "
                f"{epoch}"
            )
        self.epoch = epoch
        if epoch % self.stage == 0:
            n_leaving = int(self.kept.sum()) - self.n_kept(epoch)
            if n_leaving > 0:
                self.kept[self._easiest(n_leaving)] = False
            self.trace = TrainingTrace(self.n_examples)

    def _easiest(self, n: int) -> Tensor:
        members = self.indices
        if self.score is None:
            generator = self._generator(2)
            return members[torch.randperm(len(members), generator=generator)[:n]]
        trace = _filled(self.trace, members.numpy())
        keys = [self.score(trace)]  # the least important key comes first
        if self.tie is not None:
            keys.insert(0, self.tie(trace))
        order = np.lexsort([key.numpy() for key in keys])
        return members[torch.from_numpy(order[:n])]

    def _generator(self, purpose: int) -> torch.Generator:
        mixed = np.random.SeedSequence((self.seed, purpose, self.epoch))
        return torch.Generator().manual_seed(int(mixed.generate_state(1)[0]))

    def __len__(self) -> int:
        return int(self.kept.sum())

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self), generator=self._generator(1))
        return iter(self.indices[order].tolist())

    def state_dict(self) -> dict[str, Any]:
        """Loads with `weights_only=True`; resumes within a stage, bit for bit."""
        return {
            "epoch": self.epoch,
            "kept": pack(self.kept),
            "own": torch.from_numpy(self.trace.own.copy()),
            "other": torch.from_numpy(self.trace.other.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for a state of another number of examples."""
        own, other = state["own"].numpy(), state["other"].numpy()
        if own.shape[1:] != (self.n_examples,) or own.shape != other.shape:
            raise ValueError(
                f"the state is of {own.shape[1:]} examples, not of {self.n_examples}"
            )
        self.kept = unpack(state["kept"], (self.n_examples,))
        self.epoch = int(state["epoch"])
        self.trace = TrainingTrace(self.n_examples)
        self.trace.own, self.trace.other = own.copy(), other.copy()


def _filled(trace: TrainingTrace, members: np.ndarray) -> TrainingTrace:
    """The trace of some examples; what is missing, from the nearest epoch before."""
    part = TrainingTrace(len(members))
    part.own, part.other = trace.own[:, members], trace.other[:, members]
    if not len(part.own):
        raise ValueError("nothing was recorded in the stage that ends: call record")
    _fill(part.own, 0.0)  # of an example that was never seen: wrong, so it stays
    _fill(part.other, 1.0)
    return part


def _fill(values: np.ndarray, unseen: float) -> None:
    """NaN in [T, N] becomes the value before, or the first one after; else `unseen`."""
    n_epochs = len(values)
    forward = zip(range(1, n_epochs), range(n_epochs - 1), strict=True)
    backward = zip(range(n_epochs - 2, -1, -1), range(n_epochs - 1, 0, -1), strict=True)
    for t, nearest in [*forward, *backward]:
        missing = np.isnan(values[t])
        values[t, missing] = values[nearest, missing]
    values[np.isnan(values)] = unseen
