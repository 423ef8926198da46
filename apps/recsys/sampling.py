"""Mini-batches of interactions with negatives, or of users, decided by a generator.

    sampler = Pairs(data.train, batch=2048)
    generator = torch.Generator().manual_seed(0)
    for batch in sampler.epoch(generator):          # [3, 2048] int64
        users, positives, negatives = batch

A negative is an item that the user has no *training* interaction with. It may well be
one of the validation or test part: what is held out is unknown when the model is
trained, and sampling around it would tell the model which items it is.
"""

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor


class Pairs:
    """Epochs over all training interactions, each with `negatives` drawn items.

    An epoch is a permutation of the interactions, or as many draws of a user and of one
    of the user's items (`by_user`). Each comes with items j of probability proportional
    to `users(j)^power` among those that its user does not have: power 0 is uniform, 1
    is popularity. All draws of an epoch happen at once; the few that hit a known item
    are found by binary search in the sorted keys `user * items + item` and drawn again
    until none is left.

    Numbers come from a CPU generator: the same epochs on every device. The keys live on
    `device`, where the batches come out.

    Args:
        train: CSR [U, I], a stored entry for each interaction.
        batch: interactions a step; the incomplete last batch of an epoch is dropped.
        negatives: a positive.
        power: of the items' numbers of users; 0 or more.
        device: of the batches.
        by_user: draws users with equal probability, with replacement, so that the
            interactions of users who have few count more.

    Raises:
        ValueError: for settings out of range, more batch than interactions, and a user
            for whom no negative exists.

    >>> sampler = Pairs(sp.csr_array([[1, 1, 0], [0, 1, 1]]), batch=4)
    >>> (batch,) = sampler.epoch(torch.Generator().manual_seed(0))
    >>> sorted(zip(*batch.tolist(), strict=True))
    [(0, 0, 2), (0, 1, 2), (1, 1, 0), (1, 2, 0)]
    """

    def __init__(
        self, train: sp.csr_array, batch: int, negatives: int = 1, power: float = 0.0,
        device: str | torch.device = "cpu", by_user: bool = False,
    ):  # fmt: skip
        if batch < 1 or negatives < 1 or not power >= 0:
            raise ValueError(
                "batch and negatives must be at least 1 and power at least 0, got "
                f"{batch}, {negatives} and {power}"
            )
        require_batch(batch, train.nnz, "training interactions")
        if not train.has_sorted_indices:
            train = train.sorted_indices()
        self.batch, self.negatives, self.device = batch, negatives, device
        self.by_user = by_user
        n_users, self.n_items = train.shape
        counts = np.bincount(train.indices, minlength=self.n_items)
        weights = counts.astype(np.float64) ** power  # 0^0 = 1: uniform over all
        _require_negatives(train, weights)
        total = weights.cumsum()  # divided by its own end, the last share is 1
        self._cdf = torch.from_numpy(total / total[-1]) if power else None
        users = np.repeat(np.arange(n_users), np.diff(train.indptr))
        self._users = torch.from_numpy(users).to(device)
        self._items = torch.from_numpy(train.indices.astype(np.int64)).to(device)
        self._keys = self._users * self.n_items + self._items
        degrees = np.diff(train.indptr)
        self._active = torch.from_numpy(np.flatnonzero(degrees))
        self._degrees = torch.from_numpy(degrees.astype(np.int64))
        self._starts = torch.from_numpy(train.indptr[:-1].astype(np.int64))

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return len(self._users) // self.batch

    @property
    def shape(self) -> tuple[int, int]:
        """Of a batch."""
        return 2 + self.negatives, self.batch

    def epoch(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Batches [2 + negatives, batch] int64: users, positives, negatives in rows."""
        users, items = self._users, self._items
        if self.by_user:
            drawn = self._interactions(generator)
            users, items = users[drawn], items[drawn]
        rows = [users, items, *self._negatives(users, generator)]
        order = torch.randperm(len(users), generator=generator)
        order = order[: self.steps * self.batch].to(self.device)
        shape = (len(rows), self.steps, self.batch)
        yield from torch.stack(rows)[:, order].view(shape).transpose(0, 1).contiguous()

    def _interactions(self, generator: torch.Generator) -> Tensor:
        """[nnz] numbers of interactions, drawn by user; sorted, as the keys are."""
        n = len(self._users)
        drawn = torch.randint(len(self._active), (n,), generator=generator)
        users = self._active[drawn]
        share = torch.rand(n, generator=generator, dtype=torch.float64)
        places = self._starts[users] + (share * self._degrees[users]).long()
        return places.sort().values.to(self.device)

    def _negatives(self, users: Tensor, generator: torch.Generator) -> Tensor:
        """[negatives, n] items for users [n], which are in order."""
        offsets = users * self.n_items
        drawn = self._draw(self.negatives * len(offsets), generator)
        drawn = drawn.view(self.negatives, len(offsets))
        for row in drawn:
            clashes = self._known(offsets + row)
            while len(clashes):
                row[clashes] = self._draw(len(clashes), generator)
                again = self._known(offsets[clashes] + row[clashes])
                clashes = clashes[again]
        return drawn

    def _known(self, keys: Tensor) -> Tensor:
        """Places of the keys that belong to a training interaction."""
        place = torch.searchsorted(self._keys, keys).clamp_(max=len(self._keys) - 1)
        return (self._keys[place] == keys).nonzero().flatten()

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Items by their weights, [n] int64."""
        if self._cdf is None:
            items = torch.randint(self.n_items, (n,), generator=generator)
        else:
            where = torch.rand(n, generator=generator, dtype=torch.float64)
            items = torch.searchsorted(self._cdf, where, right=True)
        return items.to(self.device)


class Users:
    """Epochs over all users who have a training interaction, in batches [batch] int64.

    Raises ValueError as `Pairs`.

    >>> sampler = Users(sp.csr_array([[1, 0], [0, 0], [1, 1]]), batch=1)
    >>> sorted(batch.item() for batch in sampler.epoch(torch.Generator()))
    [0, 2]
    """

    def __init__(
        self, train: sp.csr_array, batch: int, device: str | torch.device = "cpu"
    ):
        users = np.flatnonzero(np.diff(train.indptr))
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        require_batch(batch, len(users), "users with training interactions")
        self.batch, self._users = batch, torch.from_numpy(users).to(device)

    @property
    def steps(self) -> int:
        return len(self._users) // self.batch

    @property
    def shape(self) -> tuple[int]:
        return (self.batch,)

    def epoch(self, generator: torch.Generator) -> Iterator[Tensor]:
        order = torch.randperm(len(self._users), generator=generator)
        order = order[: self.steps * self.batch].to(self._users.device)
        yield from self._users[order].view(self.steps, self.batch)


def require_batch(batch: int, n: int, what: str) -> None:
    """ValueError if there is not a single whole batch."""
    if batch > n:
        fits = f": take one of {max(1, n // 8)} (--batch {max(1, n // 8)})" * (n > 0)
        raise ValueError(f"batch {batch} exceeds the {n:,} {what}{fits}")


def _require_negatives(train: sp.csr_array, weights: np.ndarray) -> None:
    """ValueError for a user who has every item that can be drawn."""
    drawable = weights > 0
    taken = np.concatenate([[0], drawable[train.indices].cumsum()])
    left = drawable.sum() - np.diff(taken[train.indptr])
    (full,) = np.nonzero((left == 0) & (np.diff(train.indptr) > 0))
    if len(full):
        raise ValueError(
            f"user number {full[0]} has every item that could be a negative: leave "
            "such users out, or draw negatives with power 0"
        )
