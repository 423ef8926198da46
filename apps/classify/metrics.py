"""Per-sample metrics of a classifier, and corruptions of its input.

Functions return one value a sample, so that `apps.common.statistics` can give
intervals and paired tests; only the calibration error is a number of the whole set.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekit.spelling import choice


def correct(logits: Tensor, y: Tensor) -> Tensor:
    """1.0 where the largest logit is the label's.

    logits: [N, K] float; y: [N] int64. Returns [N] float32 of 0 and 1; the mean is the
    accuracy. A tie goes to the lower class.

    >>> correct(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]))
    tensor([1., 0.])
    """
    _check(logits, y)
    return (logits.argmax(1) == y).float()


def nll(logits: Tensor, y: Tensor) -> Tensor:
    """Negative log-likelihood `-log softmax(logits)[y]`, in nats, [N] float32.

    >>> nll(torch.zeros(1, 2), torch.tensor([0]))  # log 2
    tensor([0.6931])
    """
    _check(logits, y)
    return F.cross_entropy(logits, y, reduction="none")


def brier(logits: Tensor, y: Tensor) -> Tensor:
    """Brier score `sum_k (p_k - [k = y])^2` (Brier, 1950), in [0, 2], [N] float32.

    >>> brier(torch.zeros(1, 2), torch.tensor([0]))
    tensor([0.5000])
    """
    _check(logits, y)
    return (logits.softmax(1) - F.one_hot(y, logits.shape[1])).square().sum(1)


def ece(logits: Tensor, y: Tensor, bins: int = 15) -> float:
    """Expected calibration error with `bins` equal-width bins of confidence.

    `ECE = sum_b (n_b / N) |accuracy_b - confidence_b|`, where bin b holds the samples
    whose largest probability lies in ((b-1)/bins, b/bins]. In [0, 1]; biased upward
    for small N. For an interval, bootstrap the samples.

    >>> round(ece(torch.tensor([[0.0, 9.0], [0.0, 9.0]]), torch.tensor([1, 0])), 3)
    0.5

    Guo, Pleiss, Sun, Weinberger: On calibration of modern neural networks, 2017, eq. 3.
    """
    return calibration_error(confidence_and_correct(logits, y), bins)


def confidence_and_correct(logits: Tensor, y: Tensor) -> np.ndarray:
    """Rows (largest probability, 1 if right else 0), [N, 2] float64: to bootstrap."""
    _check(logits, y)
    confidence, predicted = logits.double().softmax(1).max(1)
    return torch.stack([confidence, (predicted == y).double()], 1).cpu().numpy()


def calibration_error(rows: np.ndarray, bins: int = 15) -> float:
    """`ece` from rows of (confidence, correct), [N, 2].

    >>> round(calibration_error(np.array([[0.9, 1.0], [0.8, 0.0]])), 2)
    0.45
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    confidence, right = rows.T
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    total = np.bincount(index, weights=right - confidence, minlength=bins)
    return float(np.abs(total).sum() / len(rows))


# Strength of each corruption at severity 1 (standardised units, pixels, share of side).
CORRUPTIONS = {"noise": 0.5, "blur": 0.7, "occlusion": 0.15, "contrast": 0.15}


def corrupt(x: Tensor, kind: str, severity: int, generator: torch.Generator) -> Tensor:
    """A corrupted copy of standardised images; severity 0 is the identity.

    x: [N, C, S, S] float; severity: 0 to 5. Strength grows linearly with severity:

    * `noise`: adds Gaussian noise of standard deviation 0.5 a level
    * `blur`: Gaussian blur of standard deviation 0.7 pixels a level
    * `occlusion`: a square of 0.15 of the side a level, at a random place, set to the
      image's minimum
    * `contrast`: moves values towards the image's mean, by 0.15 a level

    Only `noise` and `occlusion` draw from `generator` (CPU).

    >>> x = torch.tensor([[[[0.0, 4.0], [0.0, 4.0]]]])
    >>> corrupt(x, "contrast", 2, torch.Generator()).flatten()
    tensor([0.6000, 3.4000, 0.6000, 3.4000])

    After Hendrycks, Dietterich: Benchmarking neural network robustness to common
    corruptions, 2019. Differs from the paper: four kinds, strengths of our own.
    """
    if kind not in CORRUPTIONS:
        raise ValueError(choice(f"corruption {kind!r} is unknown", kind, CORRUPTIONS))
    if severity not in range(6):
        raise ValueError(f"severity must be 0, 1, 2, 3, 4 or 5, got {severity}")
    if severity == 0:
        return x.clone()
    strength = CORRUPTIONS[kind] * severity
    if kind == "noise":
        return x + strength * torch.randn(x.shape, generator=generator).to(x)
    if kind == "blur":
        return _blur(x, strength)
    if kind == "contrast":
        return torch.lerp(x, x.mean((1, 2, 3), keepdim=True).expand_as(x), strength)
    return _occlude(x, strength, generator)


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian filter, cut at 3 sigma, edges repeated."""
    radius, (n, channels, height, width) = math.ceil(3 * sigma), x.shape
    offsets = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.softmax(-offsets.square() / (2 * sigma**2), 0)
    planes = x.reshape(n * channels, 1, height, width)
    planes = F.pad(planes, (radius,) * 4, mode="replicate")
    planes = F.conv2d(planes, kernel.view(1, 1, 1, -1))
    return F.conv2d(planes, kernel.view(1, 1, -1, 1)).view_as(x)


def _occlude(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """One square an image; `share` is its side over the image's side."""
    n, _, height, width = x.shape
    side_y, side_x = round(share * height), round(share * width)
    top = torch.randint(0, height - side_y + 1, (n, 1, 1), generator=generator)
    left = torch.randint(0, width - side_x + 1, (n, 1, 1), generator=generator)
    rows, columns = torch.arange(height).view(1, -1, 1), torch.arange(width)
    hidden = (rows >= top) & (rows < top + side_y)  # [N, S, 1]
    hidden = hidden & (columns >= left) & (columns < left + side_x)  # [N, S, S]
    return torch.where(hidden[:, None].to(x.device), x.amin((1, 2, 3), True), x)


def _check(logits: Tensor, y: Tensor) -> None:
    if logits.ndim != 2 or y.shape != logits.shape[:1] or not len(y):
        raise ValueError(
            "metrics need logits [N, K] and labels [N] with N >= 1, got "
            f"{list(logits.shape)} and {list(y.shape)}"
        )
