"""Scores of a training trace: what happened to each example over the epochs.

Record the trace while you train, by example number:

    trace = TrainingTrace(len(dataset))
    for epoch in range(epochs):
        for index, x, y in loader:
            logits = model(x)
            ...
            trace.record(epoch, index, logits, y)
    hard = forgetting(trace)

Every score is [N], larger = harder.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


class TrainingTrace:
    """p_y and the largest other probability of every example in every epoch.

    own, other: [T, N] float32, NaN where an example was not seen in that epoch.

    Args:
        n_examples: N.

    >>> trace = TrainingTrace(2)
    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    >>> trace.record(0, torch.tensor([0, 1]), logits, torch.tensor([0, 0]))
    >>> trace.own.round(2).tolist(), trace.correct.tolist()
    ([[0.8799999952316284, 0.5]], [[True, False]])
    """

    def __init__(self, n_examples: int):
        if n_examples < 1:
            raise ValueError(f"n_examples is at least 1, got {n_examples}")
        self.n_examples = n_examples
        self.own = np.empty((0, n_examples), np.float32)
        self.other = np.empty((0, n_examples), np.float32)

    def record(
        self, epoch: int, index: Tensor, logits: Tensor, targets: Tensor
    ) -> None:
        """Stores a batch of `epoch` (0, 1, ...): index [B] of its examples.

        logits: [B, K]; targets: [B] int64. A second record of the same example in the
        same epoch replaces the first.
        """
        index = index.cpu()
        self._require_batch(epoch, index, logits, targets)
        with torch.no_grad():
            label, finite = targets.unsqueeze(1), torch.isfinite(logits).all(1)
            p = logits.float().softmax(1)
            own = p.gather(1, label).squeeze(1)
            other = p.scatter(1, label, -torch.inf).amax(1)
            # Reading from an accelerator waits for it: once.
            own, other, finite = torch.stack([own, other, finite.float()]).cpu()
        bad = (finite == 0).nonzero()
        if len(bad):
            raise ValueError(
                f"the logits of example {int(index[bad[0]])} are NaN or infinite"
            )
        if epoch == len(self.own):
            empty = np.full((1, self.n_examples), np.nan, np.float32)
            self.own = np.concatenate([self.own, empty])
            self.other = np.concatenate([self.other, empty])
        self.own[epoch, index], self.other[epoch, index] = own, other

    def _require_batch(
        self, epoch: int, index: Tensor, logits: Tensor, targets: Tensor
    ) -> None:
        if logits.dim() != 2 or not len(index) == len(logits) == len(targets):
            raise ValueError(
                "record needs index [B], logits [B, K] and targets [B], got "
                f"{list(index.shape)}, {list(logits.shape)} and {len(targets)} targets"
            )
        outside = index[(index < 0) | (index >= self.n_examples)]
        if len(outside):
            raise ValueError(
                f"index is in 0 ... {self.n_examples - 1}, got {int(outside[0])}"
            )
        if not 0 <= epoch <= len(self.own):
            raise ValueError(
                f"epochs are recorded in order: next is {len(self.own)}, got {epoch}"
            )

    @property
    def correct(self) -> np.ndarray:
        """[T, N] bool: the label's probability was the largest, alone."""
        return self.own > self.other


def forgetting(trace: TrainingTrace) -> Tensor:
    """How often an example went from right to wrong; infinity if it was never right.

    Source: Toneva et al. 2019, arXiv 1812.05159, algorithm 1.
    """
    correct = _complete(trace).correct
    events = (correct[:-1] & ~correct[1:]).sum(0).astype(np.float32)
    events[~correct.any(0)] = np.inf
    return torch.from_numpy(events)


def misclassified(trace: TrainingTrace) -> Tensor:
    """How often an example was wrong.

    Source: Wang et al. 2022 (SparCL), arXiv 2209.09476, data removal.
    """
    wrong = ~_complete(trace).correct
    return torch.from_numpy(wrong.sum(0).astype(np.float32))


def summed_loss(trace: TrainingTrace) -> Tensor:
    """Cross-entropy summed over the epochs, -sum log p_y."""
    own = _complete(trace).own
    return torch.from_numpy(-np.log(own.clip(1e-30)).sum(0))


def aum(trace: TrainingTrace) -> Tensor:
    """Minus the area under the margin, -sum over epochs of (p_y - max of the others).

    Mislabelled examples have the largest values.

    Source: Pleiss et al. 2020, arXiv 2001.10528, with probabilities instead of logits,
    as in CCS (Zheng et al. 2023, arXiv 2210.15809).
    """
    trace = _complete(trace)
    return torch.from_numpy(-(trace.own - trace.other).sum(0))


def dynamic_uncertainty(trace: TrainingTrace, window: int = 10) -> Tensor:
    """Standard deviation of p_y within `window` epochs, averaged over all windows.

    Source: He et al. 2024, Dyn-Unc, arXiv 2306.05175.
    """
    parts = _windows(trace, window)
    return _mean(part.std(0, ddof=1) for part in parts)


def dual(trace: TrainingTrace, window: int = 10) -> Tensor:
    """std(p_y) (1 - mean(p_y)) within `window` epochs, averaged over all windows.

    Uncertain and not yet learned; meant for the first 30 epochs.

    Source: Cho et al. 2025, DUAL, arXiv 2502.06905.
    """
    parts = _windows(trace, window)
    return _mean(part.std(0, ddof=1) * (1 - part.mean(0)) for part in parts)


def _windows(trace: TrainingTrace, window: int) -> list[np.ndarray]:
    """p_y in each window: T - window + 1 views of [window, N]."""
    own = _complete(trace).own
    if not 2 <= window <= len(own):
        raise ValueError(
            f"window is in 2 ... {len(own)} (the epochs recorded), got {window}"
        )
    return [own[i : i + window] for i in range(len(own) - window + 1)]


def _mean(parts: Iterable[np.ndarray]) -> Tensor:
    """One part after the other: all windows at once would take `window` times more."""
    total, n = np.zeros(()), 0
    for part in parts:
        total, n = total + part, n + 1
    return torch.from_numpy((total / n).astype(np.float32))


def _complete(trace: TrainingTrace) -> TrainingTrace:
    if len(trace.own) == 0:
        raise ValueError("the trace is empty: call record in every epoch")
    missing = np.isnan(trace.own)
    if missing.any():
        epoch, example = np.argwhere(missing)[0]
        raise ValueError(
            f"example {example} was not recorded in epoch {epoch} ({missing.sum()} are "
            "missing in all): record every example once an epoch, without drop_last"
        )
    return trace
