"""How good a classifier is: overall, in its worst class, in its confidence."""

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15  # of the calibration error


def measure(logits: Tensor, y: Tensor) -> dict[str, float]:
    """accuracy, worst_class, ece and nll. logits: [N, K]; y: [N] int64.

    >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    >>> found = measure(logits, torch.tensor([0, 1, 1]))
    >>> round(found["accuracy"], 2), found["worst_class"]
    (0.67, 0.5)
    """
    logits = logits.double()
    return {
        "accuracy": float((logits.argmax(1) == y).double().mean()),
        "worst_class": float(class_accuracies(logits, y).min()),
        "ece": calibration_error(logits, y),
        "nll": float(F.cross_entropy(logits, y)),
    }


def class_accuracies(logits: Tensor, y: Tensor) -> Tensor:
    """Accuracy within each class that occurs in y, in the order of the classes."""
    right = (logits.argmax(1) == y).double()
    counts = y.bincount(minlength=logits.shape[1])
    sums = torch.zeros(len(counts), dtype=torch.float64, device=y.device)
    sums.index_add_(0, y, right)
    return (sums[counts > 0] / counts[counts > 0]).cpu()


def calibration_error(logits: Tensor, y: Tensor) -> float:
    """Expected calibration error with 15 equal-width bins of confidence.

    `sum_b (n_b / N) |accuracy_b - confidence_b|`; bin b holds ((b-1)/15, b/15].

    Guo, Pleiss, Sun, Weinberger: On calibration of modern neural networks, 2017, eq. 3.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    gap = (predicted == y).double() - confidence
    index = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    total = torch.zeros(BINS, dtype=torch.float64, device=y.device)
    return float(total.index_add_(0, index, gap).abs().sum() / len(y))
