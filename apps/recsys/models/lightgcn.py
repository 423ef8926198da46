"""A graph convolution without weights or nonlinearities: LightGCN."""

import warnings
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from apps.recsys.models.mf import MF
from apps.recsys.models.network import pair_rows, table


class LightGCN(MF):
    """Vectors of `MF`, averaged with those of their neighbours in the graph.

    `final = 1 / (L + 1) (E + A E + ... + A^L E)`, A the adjacency of users and items
    normalised on both sides: 1 / sqrt(degree(u) degree(i)) where u and i meet.
    `score(u, i) = <final_u, final_i>`, trained like MF; the penalty stays on E.

    Only E is learned, and only E can be sparse: the final vectors, which serve, are
    dense after one layer.

    Args:
        train: CSR [U, I], the graph.
        dim, l2, seed, embedding: as in MF.
        layers: L; 0 is MF.

    He et al.: LightGCN, 2020, eqs. 3, 4, 8 and 15, with equal weights of layers.
    """

    def __init__(
        self, train: sp.csr_array, dim: int, layers: int, l2: float, seed: int,
        embedding: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__(train, dim, l2, seed, embedding)
        self.layers = layers
        graph = normalised_adjacency(train)
        for name, array in (
            ("crow", graph.indptr), ("col", graph.indices), ("weight", graph.data),
        ):  # fmt: skip
            self.register_buffer(name, torch.from_numpy(array), persistent=False)
        with warnings.catch_warnings():  # torch says once that CSR may change
            warnings.simplefilter("ignore")
            _ = self.adjacency

    @property
    def adjacency(self) -> Tensor:
        """CSR [U + I, U + I] float32."""
        shape = (len(self.crow) - 1,) * 2
        return torch.sparse_csr_tensor(
            self.crow, self.col, self.weight, shape, check_invariants=False
        )

    def vectors(self) -> Tensor:
        return propagate(table(self.embedding), self.adjacency, self.layers)

    def loss(self, batch: Tensor) -> Tensor:
        """batch: [2 + n, B], of `Pairs`."""
        rows, own = pair_rows(batch, self.n_users), table(self.embedding)
        final = propagate(own, self.adjacency, self.layers)
        # The squares of all vectors, each as often as it is in the batch: there are
        # fewer than in the batch, or the products above cost far more.
        ones = torch.ones_like(rows, dtype=own.dtype)
        times = torch.zeros_like(own[:, 0]).index_add_(0, rows, ones)
        penalty = self.l2 / (2 * batch.shape[1]) * (times @ own.square().sum(1))
        return self.ranking(final.index_select(0, rows), batch) + penalty

    def step_flops(self, batch: int, negatives: int, density: float) -> float:
        """Of the products with A, only the first and the last meet the sparse table."""
        product = 2 * len(self.weight) * self.dim
        layers = max(0, self.layers - 1) + min(1, self.layers) * density
        scores = super().step_flops(batch, negatives, 1.0)
        return scores + 2 * layers * product


def propagate(x: Tensor, adjacency: Tensor, layers: int) -> Tensor:
    """`1 / (L + 1) sum_{l = 0 .. L} A^l x`, differentiable in x.

    x: [n, d]; adjacency: CSR [n, n], symmetric.

    By Horner's rule, `x + A (x + A (x + ...))`: L products that add x on the way. The
    map is its own transpose, so the gradient takes the same L products, and no
    transposed matrix is ever made. Products are torch's for CSR: MKL on Intel
    processors, cuSPARSE on a GPU.
    """
    return _Propagate.apply(x, adjacency, layers)


class _Propagate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, adjacency: Tensor, layers: int) -> Tensor:
        ctx.adjacency, ctx.layers = adjacency, layers
        total, share = x, 1 / (layers + 1)
        for _ in range(layers - 1):
            total = torch.addmm(x, adjacency, total)
        if layers:
            total = torch.addmm(x, adjacency, total, beta=share, alpha=share)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        grad = grad.contiguous()
        return _Propagate.apply(grad, ctx.adjacency, ctx.layers), None, None


def normalised_adjacency(train: sp.csr_array) -> sp.csr_array:
    """`D^(-1/2) [[0, R], [R', 0]] D^(-1/2)`, CSR [U + I, U + I] float32, int32 indices.

    Users and items without interactions have empty rows.

    >>> normalised_adjacency(sp.csr_array([[1, 1, 1, 1]])).toarray()[:2].tolist()
    [[0.0, 0.5, 0.5, 0.5, 0.5], [0.5, 0.0, 0.0, 0.0, 0.0]]
    """
    n_users, n_items = train.shape
    degree = np.concatenate(
        [np.diff(train.indptr), np.bincount(train.indices, minlength=n_items)]
    )
    users = np.repeat(np.arange(n_users), np.diff(train.indptr))
    items = train.indices.astype(np.int64) + n_users
    rows, columns = np.concatenate([[users, items], [items, users]], axis=1)
    values = (1 / np.sqrt(degree[rows] * degree[columns])).astype(np.float32)
    shape = (n_users + n_items,) * 2
    graph = sp.csr_array((values, (rows, columns)), shape=shape)
    graph.sort_indices()
    graph.indptr = graph.indptr.astype(np.int32)
    graph.indices = graph.indices.astype(np.int32)
    return graph
