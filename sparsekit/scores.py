"""Scores: how much a weight matters. Larger = stays (or grows)."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def magnitude(weight: Tensor) -> Tensor:
    """|w|, any shape.

    >>> magnitude(torch.tensor([-2.0, 0.5]))
    tensor([2.0000, 0.5000])
    """
    return weight.abs()


@torch.no_grad()
def gradient(grad: Tensor) -> Tensor:
    """|g|, any shape; RigL's score for growing an absent weight.

    >>> gradient(torch.tensor([-2.0, 0.5]))
    tensor([2.0000, 0.5000])
    """
    return grad.abs()


@torch.no_grad()
def saliency(weight: Tensor, grad: Tensor) -> Tensor:
    """|w g|: change of the loss, to first order, if the weight is removed.

    For several batches sum the gradients first: |w sum g|, as in SNIP's released code.

    >>> saliency(torch.tensor([-2.0, 0.5]), torch.tensor([3.0, 4.0]))
    tensor([6., 2.])

    Source: Lee et al. 2019, arXiv 1810.02340, equation 4, before normalisation.
    """
    if weight.shape != grad.shape:
        raise ValueError(
            f"weight {tuple(weight.shape)} and grad {tuple(grad.shape)} differ in shape"
        )
    return (weight * grad).abs()


@torch.no_grad()
def activation_aware(weight: Tensor, activation_norm: Tensor) -> Tensor:
    """|w_ij| ||x_j||: magnitude times the norm of the input that the weight reads.

    Args:
        weight: (out, in, ...).
        activation_norm: (in,), norm of each input feature or channel over the data.

    >>> activation_aware(torch.tensor([[1.0, -2.0]]), torch.tensor([10.0, 0.5]))
    tensor([[10.,  1.]])

    Source: Sun et al. 2023 (Wanda), arXiv 2306.11695, equation 1.
    """
    if weight.dim() < 2 or activation_norm.shape != weight.shape[1:2]:
        raise ValueError(
            f"activation_norm has one entry an input of weight {tuple(weight.shape)}, "
            f"(out, in, ...), got shape {tuple(activation_norm.shape)}"
        )
    norm = activation_norm.view(1, -1, *[1] * (weight.dim() - 2))
    return weight.abs() * norm


def random(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Uniform noise in [0, 1), float32, on CPU: the same numbers for every device.

    >>> random((2, 3), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3])
    """
    if generator.device.type != "cpu":
        raise ValueError(
            f"the generator is on {generator.device}: use a CPU generator, so that "
            "every device and process draws the same numbers, and move the result"
        )
    return torch.rand(tuple(shape), generator=generator)
