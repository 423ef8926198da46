"""Neural matrix factorisation: an inner product and a small network side by side."""

from itertools import pairwise

import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.common.seeds import seeded
from apps.recsys.models.network import Network, Scorer, lookup, pair_rows, table

CELLS = 2**22  # scores whose hidden units are held at once


class NeuMF(Network):
    """NeuMF: `score(u, i) = w . [g_u * g_i ; tower([t_u ; t_i])]`, a logit.

    g and t are vectors from two tables of their own; the tower's layers are linear and
    ReLU, with 2 dim units in the first, half as many in each that follows.

    loss = mean binary cross-entropy of positives and negatives
    + l2 / (2 B) sum of |g|^2 + |t|^2 over the batch's vectors.

    Args:
        train: CSR [U, I].
        dim: of the vectors in either table.
        layers: of the tower, at least 1.
        dropout: of the tower's input.
        l2: weight of the penalty.
        seed: of the initial weights: vectors normal with 0.01, layers Xavier's.

    He et al.: Neural collaborative filtering, 2017. Differs from it: trained at once,
    without pre-training of the two parts.
    """

    sparse_names = ("tower_vectors.weight",)
    row_axes = (
        ("product_vectors.weight", 0, "both"),
        ("tower_vectors.weight", 0, "both"),
    )

    def __init__(
        self, train: sp.csr_array, dim: int, layers: int, dropout: float, l2: float,
        seed: int,
    ):  # fmt: skip
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers of neumf must be at least 1, got {layers}")
        self.n_users, self.n_items = train.shape
        self.l2 = l2
        sizes = [2 * dim] + [max(1, 2 * dim // 2**level) for level in range(layers)]
        with seeded(seed):
            self.product_vectors = nn.Embedding(sum(train.shape), dim)
            self.tower_vectors = nn.Embedding(sum(train.shape), dim)
            self.dropout = nn.Dropout(dropout)
            self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(sizes))
            self.output = nn.Linear(dim + sizes[-1], 1)
            for vectors in (self.product_vectors, self.tower_vectors):
                nn.init.normal_(vectors.weight, std=0.01)
            for layer in (*self.layers, self.output):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def loss(self, batch: Tensor) -> Tensor:
        """batch: [2 + n, B], of `Pairs`."""
        rows = pair_rows(batch, self.n_users)
        product, tower = (
            lookup(vectors, rows).view(*batch.shape, -1)
            for vectors in (self.product_vectors, self.tower_vectors)
        )
        users = tower[:1].expand(len(batch) - 1, -1, -1)
        hidden = F.relu(self.layers[0](self.dropout(torch.cat([users, tower[1:]], -1))))
        logits = self.logits(product[:1] * product[1:], hidden)
        wanted = torch.zeros_like(logits)
        wanted[0] = 1
        loss = F.binary_cross_entropy_with_logits(logits, wanted)
        squares = product.square().sum() + tower.square().sum()
        return loss + self.l2 / (2 * batch.shape[1]) * squares

    def logits(self, product: Tensor, hidden: Tensor) -> Tensor:
        """(..., dim) products and (..., 2 dim) units of the first layer -> (...)."""
        for layer in self.layers[1:]:
            hidden = F.relu(layer(hidden))
        return self.output(torch.cat([product, hidden], -1)).squeeze(-1)

    def scorer(self) -> Scorer:
        """The first layer is linear in users and items: each half is computed once."""
        sizes = [self.n_users, self.n_items]
        with torch.no_grad():
            users, items = table(self.product_vectors).split(sizes)
            own, others = table(self.tower_vectors).split(sizes)
            by_user, by_item = self.layers[0].weight.chunk(2, dim=1)
            own = F.linear(own, by_user, self.layers[0].bias)
            others = F.linear(others, by_item)

        def scores(rows: Tensor) -> Tensor:
            parts = rows.split(max(1, CELLS // self.n_items))
            return torch.cat([of_few(part) for part in parts])

        def of_few(rows: Tensor) -> Tensor:
            hidden = F.relu(own[rows][:, None] + others)
            return self.logits(users[rows][:, None] * items, hidden)

        return scores

    def step_flops(self, batch: int, negatives: int, density: float) -> float:
        """Three products a layer; what is absent of the vectors saves none."""
        layers = sum(layer.weight.numel() for layer in (*self.layers, self.output))
        return 3 * 2 * batch * (1 + negatives) * layers
