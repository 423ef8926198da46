"""Random crops and flips of images, as DER and SparCL use them."""

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 4  # pixels of zeros at the edges


def crops_and_flips(raw: Tensor, generator: torch.Generator) -> Tensor:
    """Each image [B, C, S, S] moved by up to 4 pixels, and flipped every other time.

    Draws are made on the CPU, so that every device gets the same.
    """
    n, size = len(raw), raw.shape[2]
    top, left = torch.randint(0, 2 * PADDING + 1, (2, n), generator=generator)
    flipped = torch.randint(0, 2, (n, 1, 1, 1), generator=generator)
    drawn = torch.stack([top, left, flipped.view(n)]).to(raw.device)  # one copy
    padded = F.pad(raw, (PADDING,) * 4)
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # [B, C, 9, 9, S, S]
    rows = torch.arange(n, device=raw.device)
    moved = windows[rows, :, drawn[0], drawn[1]]
    return torch.where(drawn[2].bool().view(n, 1, 1, 1), moved.flip(3), moved)
