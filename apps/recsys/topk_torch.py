"""The K best items of every user, exactly, where the scores are: on a GPU, say.

    items = top_k(network.scores, 20, data.train, users, device="cuda")

The same answer as `topk`, which is faster on a CPU and needs numba; here torch alone.
"""

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

CELLS = 2**26  # scores that are held at once: 256 MB


@torch.no_grad()
def top_k(
    scores: Callable[[Tensor], Tensor],
    k: int,
    known: sp.csr_array,
    users: np.ndarray,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """[B, K] int32: items of each of the users, best first; -1 where none is left.

    scores: users [b] int64 on the device -> [b, I] float, which may be overwritten.
    known: CSR [U, I], whose stored entries are never recommended. users: [B] indices.
    Equal scores go to the lower item index.

    Raises ValueError for k < 1 and for scores that are NaN.

    >>> known = sp.csr_array([[0, 0, 0, 1]], dtype=np.float32)
    >>> scores = torch.tensor([[1.0, 3, 3, 5]])
    >>> top_k(lambda users: scores[users], 3, known, np.array([0])).tolist()
    [[1, 2, 0]]
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    k, block = min(k, known.shape[1]), max(1, CELLS // known.shape[1])
    best, bad = [], torch.zeros((), dtype=torch.bool, device=device)
    for start in range(0, len(users), block):
        rows = users[start : start + block]
        part = known[rows]
        line = np.repeat(np.arange(len(rows)), np.diff(part.indptr))
        place = torch.from_numpy(np.stack([line, part.indices])).to(device)
        values = scores(torch.from_numpy(rows).to(device))
        bad |= values.isnan().any()
        values[place[0], place[1]] = -torch.inf
        best.append(_best(values, k))
    if bad:
        raise ValueError("a score is NaN")
    return torch.cat(best).cpu().numpy()


def _best(values: Tensor, k: int) -> Tensor:
    """[b, k] int32. `topk` leaves open which of equal scores it takes."""
    top, items = values.topk(min(k + 1, values.shape[1]))
    if top.shape[1] > k:
        (tied,) = (top[:, k - 1] == top[:, k]).nonzero(as_tuple=True)
        if len(tied):
            whole = values[tied].sort(descending=True, stable=True)
            top[tied, :k] = whole.values[:, :k]
            items[tied, :k] = whole.indices[:, :k]
        top, items = top[:, :k], items[:, :k]
    items, order = items.sort()
    top, order = top.gather(1, order).sort(descending=True, stable=True)
    items = items.gather(1, order)
    return items.masked_fill(top == -torch.inf, -1).int()
