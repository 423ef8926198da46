"""Noise pruning: which triplets of a batch count, by how hard they are.

    kept = keep(losses, 0.7, "easy")         # indices of the 30 % with the least loss

A triplet (user, positive, negative) is hard if the model ranks the negative higher:
l = -log sigmoid(s_pos - s_neg) is then large.

Wei et al.: LLMRec, 2024, section 3.3. Differs from the paper: there, and in the
released code, the *hard* ones are kept, while the reason given (noise shows as large
losses) asks for the opposite. Both are offered, what lies between, and chance.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from sparsekit.masks import count_active

Which = Literal["hard", "easy", "middle", "random"]


def keep(losses: Tensor, share: float, which: Which) -> Tensor:
    """Indices of the triplets that count: [m] int64, in their order in the batch.

    losses: [n], larger = harder; not differentiated. share: that is dropped, in [0, 1);
    m is `count_active(n, share)`. which: keep the hard ones, the easy ones, the middle
    (half of the dropped from each end, an odd one from the hard), or some at random, by
    torch's generator on the CPU. Of equal losses the earlier counts as easier.

    Raises ValueError for an empty batch, NaN, or arguments out of range.

    >>> keep(Tensor([0.1, 3.0, 0.7, 0.2]), 0.5, "easy").tolist()
    [0, 3]
    """
    if losses.ndim != 1 or len(losses) == 0:
        raise ValueError(
            f"losses are a vector of at least 1, got {tuple(losses.shape)}"
        )
    if which not in get_args(Which):
        raise ValueError(f"keep {', '.join(get_args(Which))}, not {which!r}")
    values = losses.detach()
    if values.isnan().any():
        raise ValueError(
            "a loss is NaN: the scores overflowed, lower the learning rate"
        )
    n = len(values)
    m = count_active(n, share)
    if which == "random":
        return torch.randperm(n)[:m].sort().values.to(losses.device)
    first = {"easy": 0, "middle": (n - m) // 2, "hard": n - m}[which]
    order = values.argsort(stable=True)  # easy first
    return order[first : first + m].sort().values
