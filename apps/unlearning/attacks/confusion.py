"""The interclass confusion test: an influence that is visible in the predictions.

Before training, n records of each of two classes swap labels (confusion:A,B,n). They
are the forget set. A model that forgot them no longer mixes the classes up, as far
as a retrained one does not.
"""

from torch import Tensor


def confusion_error(predicted: Tensor, y: Tensor, first: int, second: int) -> float:
    """Share of records of the two classes that are not predicted as their own class.

    predicted, y: [N] int64. The ideal is the retrained model's value, not 0.

    >>> import torch
    >>> y = torch.tensor([3, 3, 5, 5, 7])
    >>> confusion_error(torch.tensor([3, 5, 5, 0, 3]), y, 3, 5)
    0.5

    Source: Goel et al. 2022, arXiv 2201.06640 ("IC-ERR").
    """
    _require(y, first, second)
    ours = (y == first) | (y == second)
    return float((predicted[ours] != y[ours]).double().mean())


def confused(predicted: Tensor, y: Tensor, first: int, second: int) -> int:
    """How many records of one class are predicted as the other.

    >>> import torch
    >>> y = torch.tensor([3, 3, 5, 5, 7])
    >>> confused(torch.tensor([3, 5, 5, 0, 3]), y, 3, 5)
    1

    Source: as above ("Fgt").
    """
    _require(y, first, second)
    there = (y == first) & (predicted == second)
    back = (y == second) & (predicted == first)
    return int(there.sum() + back.sum())


def _require(y: Tensor, first: int, second: int) -> None:
    for label in (first, second):
        if not bool((y == label).any()):
            raise ValueError(f"no record of class {label} to count confusions on")
