"""Matrix factorisation trained by pairwise ranking."""

import scipy.sparse as sp
import torch
from torch import Tensor, nn

from apps.recsys.models.factors import Factors
from apps.recsys.models.network import (
    Network,
    Scorer,
    bpr,
    lookup,
    normal_table,
    pair_rows,
    table,
)


class MF(Network):
    """BPR-MF: `score(u, i) = <e_u, e_i>`, one table for users and items.

    loss = mean softplus(<e_u, e_j> - <e_u, e_i>) + l2 / (2 B) sum of |e|^2 over the
    batch's vectors, each as often as it occurs.

    Args:
        train: CSR [U, I].
        dim: of the vectors.
        l2: weight of the penalty.
        seed: of the initial vectors, normal with standard deviation 0.1.
        embedding: the joint table; default: a row for each user and item.

    Rendle et al.: BPR, 2009. Differs from it: no biases, Adam in place of SGD.
    """

    capturable = True

    def __init__(
        self, train: sp.csr_array, dim: int, l2: float, seed: int,
        embedding: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__()
        self.n_users, self.n_items = train.shape
        self.dim, self.l2 = dim, l2
        if embedding is None:
            embedding = normal_table(sum(train.shape), dim, 0.1, seed)
        self.embedding = embedding

    def vectors(self) -> Tensor:
        """[U + I, d], users first: what scores are made of."""
        return table(self.embedding)

    def loss(self, batch: Tensor) -> Tensor:
        """batch: [2 + n, B], of `Pairs`."""
        own = lookup(self.embedding, pair_rows(batch, self.n_users))
        return self.ranking(own, batch) + self.penalty(own, batch.shape[1])

    def penalty(self, own: Tensor, batch: int) -> Tensor:
        """own: learned vectors, each as often as it occurs in the batch of B."""
        return self.l2 / (2 * batch) * own.square().sum()

    def ranking(self, vectors: Tensor, batch: Tensor) -> Tensor:
        """The loss without the penalty, for the vectors of the batch's rows.

        `split` and not indices: its gradient is put together in one pass.
        """
        parts = vectors.view(*batch.shape, -1).split([1, 1, len(batch) - 2])
        return bpr(*parts)

    def step_flops(self, batch: int, negatives: int, density: float) -> float:
        """Inner products: one forward, one for each side's gradient."""
        return 3 * 2 * batch * (1 + negatives) * self.dim * density

    def scorer(self) -> Scorer:
        with torch.no_grad():
            users, items = self.vectors().split([self.n_users, self.n_items])
        return lambda rows: users[rows] @ items.T

    @torch.no_grad()
    def fitted(self) -> Factors:
        """The vectors as they are now."""
        vectors = self.vectors().float().cpu().numpy().copy()
        return Factors(vectors[: self.n_users], vectors[self.n_users :])
