"""Metrics of continual learning: pure functions of the accuracy matrix.

a[i, j] is the accuracy on task j after learning task i, [T, T], tasks from 0. Every
metric can be computed from it, and by every library's definition, since these differ.

    a = [[0.9, 0.1], [0.5, 0.8]]
    average_accuracy(a), backward_transfer(a), forgetting(a)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

FORGETTING = ("mammoth", "chaudhry", "avalanche")
BACKWARD = ("gem", "continuum")
FORWARD = ("gem", "continuum")
Matrix = Any  # [T, T]: a tensor, an array or nested lists


def average_accuracy(a: Matrix) -> float:
    """Mean accuracy on all T tasks after the last: mean_j a[T-1, j].

    >>> average_accuracy([[0.9, 0.1], [0.5, 0.8]])
    0.65

    Source: Lopez-Paz, Ranzato 2017 (GEM), ACC. All libraries agree.
    """
    return float(_matrix(a)[-1].mean())


def learning_accuracy(a: Matrix) -> float:
    """Mean accuracy on each task right after learning it: mean_j a[j, j].

    >>> round(learning_accuracy([[0.9, 0.1], [0.5, 0.8]]), 2)
    0.85
    """
    return float(np.diag(_matrix(a)).mean())


def backward_transfer(a: Matrix, definition: str = "gem") -> float:
    """What learning later tasks did to earlier ones; negative is forgetting.

        gem        mean over j < T-1 of a[T-1, j] - a[j, j]      GEM, Mammoth
        continuum  mean over all i > j of a[i, j] - a[j, j]      Continuum

    nan for one task.

    >>> backward_transfer([[0.9, 0.1], [0.5, 0.8]])
    -0.4
    """
    a = _matrix(a)
    _known("backward transfer", definition, BACKWARD)
    if len(a) < 2:
        return float("nan")
    change = a - np.diag(a)
    if definition == "continuum":
        return float(change[np.tril_indices(len(a), -1)].mean())
    return float(change[-1, :-1].mean())


def forward_transfer(
    a: Matrix, random: Sequence[float] | Tensor | None, definition: str = "gem"
) -> float:
    """What earlier tasks do for one that is not learned yet.

        gem        mean over j >= 1 of a[j-1, j] - random[j]     GEM, Mammoth
        continuum  mean over all i < j of a[i, j]                Continuum

    random: [T] accuracy of the untrained model on each task; None for "continuum",
    which leaves it out. nan for one task. In Class-IL it says little: a class that was
    never shown is never predicted.

    >>> round(forward_transfer([[0.9, 0.3], [0.5, 0.8]], random=[0.1, 0.1]), 2)
    0.2
    """
    a = _matrix(a)
    _known("forward transfer", definition, FORWARD)
    if len(a) < 2:
        return float("nan")
    if definition == "continuum":
        return float(a[np.triu_indices(len(a), 1)].mean())
    if random is None:
        raise ValueError("forward transfer needs random, the untrained accuracies")
    b = np.asarray(random, dtype=np.float64)
    if b.shape != (len(a),):
        raise ValueError(f"random must have shape [{len(a)}], got {list(b.shape)}")
    return float((np.diag(a, 1) - b[1:]).mean())


def forgetting(a: Matrix, definition: str = "chaudhry") -> float:
    """How far accuracy fell from its best; the mean over all tasks but the last.

        chaudhry   max over i < T-1 of a[i, j], less a[T-1, j]   Chaudhry, Continuum
        mammoth    max over all i of a[i, j], less a[T-1, j]     Mammoth, SparCL
        avalanche  a[j, j] - a[T-1, j]                           Avalanche: -BWT

    chaudhry's may be negative, mammoth's never. nan for one task.

    >>> a = [[0.9, 0.1, 0.0], [0.5, 0.8, 0.2], [0.7, 0.9, 0.9]]
    >>> [round(forgetting(a, d), 2) for d in ("chaudhry", "mammoth", "avalanche")]
    [0.05, 0.1, 0.05]

    Source: Chaudhry et al. 2018 (Riemannian walk), equation 3. The maximum here is over
    all rows up to the last but one, also those before task j was learned.
    """
    return _mean(forgetting_by_task(a, definition))


def forgetting_by_task(a: Matrix, definition: str = "chaudhry") -> np.ndarray:
    """Forgetting of each task but the last, [T - 1]."""
    a = _matrix(a)
    _known("forgetting", definition, FORGETTING)
    last = a[-1, :-1]
    if definition == "avalanche":
        return np.diag(a)[:-1] - last
    best = a[:, :-1] if definition == "mammoth" else a[:-1, :-1]
    return best.max(0, initial=-np.inf) - last


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean over bins of |accuracy - confidence|.

    ECE = sum_b n_b / N |mean correct in b - mean confidence in b|, with `bins` equal
    bins of the confidence; confidence, correct: [N] in [0, 1].

    >>> c = torch.tensor([0.9, 0.9, 0.6, 0.6])
    >>> round(calibration_error(c, torch.tensor([1.0, 1.0, 1.0, 0.0])), 3)
    0.1

    Source: Guo et al. 2017.
    """
    if not len(confidence):
        raise ValueError("a calibration error needs examples, got none")
    # Bin b holds (b / bins, (b + 1) / bins], as the paper has it.
    which = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64)
    gaps.index_add_(0, which.cpu(), (correct.double() - confidence.double()).cpu())
    return float(gaps.abs().sum() / len(confidence))


def _matrix(a: Matrix) -> np.ndarray:
    """A square matrix of float64; ValueError for anything else."""
    array = np.asarray(a, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not len(array):
        raise ValueError(
            f"a must be an accuracy matrix [T, T], T >= 1, got {list(array.shape)}"
        )
    if not np.isfinite(array).all():
        raise ValueError("a has entries that are not finite: test every task each time")
    return array


def _known(what: str, definition: str, known: Sequence[str]) -> None:
    if definition not in known:
        raise ValueError(f"{what} is defined as {', '.join(known)}; got {definition!r}")


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
