"""Tables whose rows share numbers while they learn: hashing, quotient and remainder.

    embedding = SharedRows((n_users, n_items), dim, "product", stored=500, seed=0)
    embedding(rows)                      # [n, d], as nn.Embedding gives them

    hashed    row x = R[x mod m]
    product   row x = Q[x div m] * R[x mod m]       number by number
    sum       row x = Q[x div m] + R[x mod m]

Q has ceil(n / m) rows, R has m. Users and items have tables of their own, so no user
shares with an item. m = n is the whole table; smaller ones are chosen by `sizes`.

Weinberger et al.: Feature hashing for large scale multitask learning, 2009; Shi et al.:
Compositional embeddings using complementary partitions for memory-efficient
recommendation systems, 2020. Differs from them: the hash is the remainder, without
signs; both factors of a product begin alike, so that the product has the standard
deviation of a table that shares nothing.
"""

import numpy as np
import torch
from torch import Tensor, nn

SHARING = ("hashed", "product", "sum")
STD = 0.1  # of a row's numbers at first, as in models/mf.py


class SharedRows(nn.Module):
    """Users' rows, then items' rows, [U + I, d], from `stored` rows or a few less.

    Args:
        shape: (U, I).
        dim: d.
        sharing: hashed, product or sum.
        stored: rows that are stored at most, split by the numbers of users and items.
        seed: of the initial numbers, normal.

    Raises ValueError if so few rows are no table, naming the fewest that are.

    >>> SharedRows((4, 6), 2, "hashed", stored=5, seed=0).places.tolist()
    [[0, 1, 0, 1, 2, 3, 4, 2, 3, 4]]
    """

    def __init__(
        self, shape: tuple[int, int], dim: int, sharing: str, stored: int, seed: int
    ):
        super().__init__()
        self.shape, self.sharing = shape, sharing
        shares = split(shape, stored)
        self.sizes = tuple(
            sizes(n, share, sharing) for n, share in zip(shape, shares, strict=True)
        )
        places, first = [], 0
        for n, (q, m) in zip(shape, self.sizes, strict=True):
            rows = np.arange(n)
            parts = [rows % m + q] if sharing == "hashed" else [rows // m, rows % m + q]
            places.append(np.stack(parts) + first)
            first += q + m
        generator = torch.Generator().manual_seed(seed)
        std = {"hashed": STD, "product": STD**0.5, "sum": STD / 2**0.5}[sharing]
        self.weight = nn.Parameter(torch.randn(first, dim, generator=generator) * std)
        both = torch.from_numpy(np.concatenate(places, axis=1))
        self.register_buffer("places", both, persistent=False)

    @property
    def dense_shape(self) -> tuple[int, int]:
        return sum(self.shape), self.weight.shape[1]

    def forward(self, rows: Tensor) -> Tensor:
        """rows: [n] of the joint table, users first -> [n, d]."""
        parts = [self.weight.index_select(0, place[rows]) for place in self.places]
        if self.sharing == "sum":
            return parts[0] + parts[1]
        return parts[0] if self.sharing == "hashed" else parts[0] * parts[1]

    def tables(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(Q, R) of the users and of the items; a hashed Q has no rows."""
        parts = [size for pair in self.sizes for size in pair]
        split_up = self.weight.detach().float().cpu().split(parts)
        own_q, own_r, other_q, other_r = (part.numpy() for part in split_up)
        return [(own_q, own_r), (other_q, other_r)]


def split(shape: tuple[int, int], stored: int) -> tuple[int, int]:
    """Rows for users and for items, as many of either as it has itself.

    >>> split((942, 1447), 500)
    (197, 303)
    """
    users = stored * shape[0] // sum(shape)
    return users, stored - users


def sizes(n: int, stored: int, sharing: str) -> tuple[int, int]:
    """Rows of Q and R, at most `stored` together and no more than n in R.

    With a quotient: the largest remainder table that fits, so that the fewest rows
    share a row of it.

    >>> sizes(942, 197, "hashed"), sizes(942, 197, "product")
    ((0, 197), (5, 192))
    """
    if stored < fewest(n, sharing):
        raise ValueError(
            f"sharing {sharing} stores at least {fewest(n, sharing)} rows for {n}, got "
            f"{stored}"
        )
    if sharing == "hashed":
        return 0, min(n, stored)
    fits = (m for m in range(min(n, stored), 0, -1) if -(-n // m) + m <= stored)
    m = next(fits)
    return -(-n // m), m


def fewest(n: int, sharing: str) -> int:
    """Stored rows that n rows need: 1 if hashed, else about 2 sqrt(n).

    >>> fewest(942, "hashed"), fewest(942, "product")
    (1, 62)
    """
    if sharing == "hashed":
        return 1
    return min(-(-n // m) + m for m in range(1, n + 1))
