"""The layout of images between sparse convolutions: 16 images side by side.

A blocked tensor is [G, C, H + 2, W + 2, 16], float32, contiguous: chunks of 16 images
(G = ceil(N / 16)), channels, rows and columns with a border of one pixel, and the image
innermost, so that one weight multiplies a vector of 16 numbers and padding costs
nothing. Two rules hold for every one of them:

- the border is zero;
- lanes of images that do not exist (beyond N, in the last chunk) may hold any finite
  number in an activation, and hold exact zeros in a gradient, so that no sum over
  images has to ask.

Outputs of kernels are taken from `new`, which uses memory again. Whoever changes a
blocked tensor in place keeps its border at zero.
"""

from typing import Any

import torch
from torch import Tensor

from sparsekit.execution import threads
from sparsekit.execution.kernels import buffers, layout
from sparsekit.execution.kernels.buffers import release as release
from sparsekit.execution.kernels.layout import LANES


def to_blocked(x: Tensor) -> Tensor:
    """[N, C, H, W] float32 on the CPU, any strides -> [G, C, H + 2, W + 2, 16].

    Raises:
        ValueError: for another number of dimensions, type or device.

    >>> to_blocked(torch.ones(20, 3, 8, 8)).shape
    torch.Size([2, 3, 10, 10, 16])
    """
    require_images(x)
    return _block(x)


def from_blocked(x: Tensor, batch: int) -> Tensor:
    """[G, C, H + 2, W + 2, 16] -> [batch, C, H, W], contiguous.

    Raises:
        ValueError: if x is no blocked tensor of `batch` images.

    >>> x = torch.rand(20, 3, 8, 8)
    >>> torch.equal(from_blocked(to_blocked(x), 20), x)
    True
    """
    require_blocked(x)
    if chunks(batch) != x.shape[0]:
        raise ValueError(
            f"{batch} images lie in {chunks(batch)} chunks of {LANES}, got "
            f"{x.shape[0]} chunks"
        )
    return _unblock(x.contiguous(), batch)


def new(groups: int, channels: int, height: int, width: int) -> Tensor:
    """[groups, channels, height + 2, width + 2, 16]: zero border, anything inside.

    Memory of tensors that are gone is used again, which is what makes it fast; a fake
    kernel takes `torch.empty`.
    """
    return torch.from_numpy(buffers.lend(groups, channels, height, width))


def chunks(batch: int) -> int:
    """How many chunks `batch` images lie in."""
    return (batch + LANES - 1) // LANES


def require_images(x: Tensor) -> None:
    if x.dim() != 4 or x.dtype != torch.float32 or x.device.type != "cpu":
        raise ValueError(
            f"expected images [N, C, H, W], float32 on the CPU, got {tuple(x.shape)} "
            f"{x.dtype} on {x.device}"
        )


def require_blocked(x: Tensor) -> None:
    if (
        x.dim() != 5
        or x.shape[4] != LANES
        or min(x.shape[2:4]) < 2
        or x.dtype != torch.float32
        or x.device.type != "cpu"
    ):
        raise ValueError(
            f"expected a blocked tensor [G, C, H + 2, W + 2, {LANES}], float32 on the "
            f"CPU, got {tuple(x.shape)} {x.dtype} on {x.device}"
        )


@torch.library.custom_op("sparsekit::block", mutates_args=(), device_types="cpu")
def _block(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    out = new(chunks(batch), channels, height, width)
    threads.run(
        layout.block, out.shape[0] * channels, x.data_ptr(), *x.shape, *x.stride(),
        out.data_ptr(), nanoseconds=x.numel(),
    )  # fmt: skip
    return out


@_block.register_fake
def _(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.new_empty(chunks(batch), channels, height + 2, width + 2, LANES)


@torch.library.custom_op("sparsekit::unblock", mutates_args=(), device_types="cpu")
def _unblock(x: Tensor, batch: int) -> Tensor:
    _, channels, height, width, _ = x.shape
    out = x.new_empty(batch, channels, height - 2, width - 2)
    threads.run(
        layout.unblock, x.shape[0] * channels, x.data_ptr(), *out.shape, out.data_ptr(),
        nanoseconds=out.numel(),
    )  # fmt: skip
    return out


@_unblock.register_fake
def _(x: Tensor, batch: int) -> Tensor:
    _, channels, height, width, _ = x.shape
    return x.new_empty(batch, channels, height - 2, width - 2)


def _keep_batch(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.batch = inputs[0].shape[0]


def _backward_of_block(ctx: Any, gradient: Tensor) -> Tensor:
    return _unblock(gradient.contiguous(), ctx.batch)


def _backward_of_unblock(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return _block(gradient), None


_block.register_autograd(_backward_of_block, setup_context=_keep_batch)
_unblock.register_autograd(_backward_of_unblock)
