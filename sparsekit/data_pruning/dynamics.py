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

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
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
        if logits.dim() != 2 or not len(index) == len(logits) == len(targets):
            raise ValueError(
                "record needs index [B], logits [B, K] and targets [B], got "
                f"{list(index.shape)}, {list(logits.shape)} and {list(targets.shape)}"
            )
        if (
            len(index)
            and not 0 <= int(index.min()) <= int(index.max()) < self.n_examples
        ):
            raise ValueError(
                f"index is in 0 ... {self.n_examples - 1}, got {int(index.min())} ... "
                f"{int(index.max())}"
            )
        if not 0 <= epoch <= len(self.own):
            raise ValueError(
                f"epochs are recorded in order: next is {len(self.own)}, got {epoch}"
            )
        if epoch == len(self.own):
            empty = np.full((1, self.n_examples), np.nan, np.float32)
            self.own = np.concatenate([self.own, empty])
            self.other = np.concatenate([self.other, empty])
        with torch.no_grad():
            p = logits.detach().float().softmax(1)
            where = targets.unsqueeze(1)
            self.own[epoch, index] = p.gather(1, where).squeeze(1).cpu()
            self.other[epoch, index] = p.scatter(1, where, -torch.inf).amax(1).cpu()

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
    return torch.from_numpy(_windows(trace, window).std(2, ddof=1).mean(0))


def dual(trace: TrainingTrace, window: int = 10) -> Tensor:
    """std(p_y) (1 - mean(p_y)) within `window` epochs, averaged over all windows.

    Uncertain and not yet learned; meant for the first 30 epochs.

    Source: Cho et al. 2025, DUAL, arXiv 2502.06905.
    """
    parts = _windows(trace, window)
    return torch.from_numpy((parts.std(2, ddof=1) * (1 - parts.mean(2))).mean(0))


def _windows(trace: TrainingTrace, window: int) -> np.ndarray:
    """p_y in every window: [T - window + 1, N, window]."""
    own = _complete(trace).own
    if not 2 <= window <= len(own):
        raise ValueError(
            f"window is in 2 ... {len(own)} (the epochs recorded), got {window}"
        )
    return sliding_window_view(own, window, axis=0)


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
