"""What the trained models have in common."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.recsys.models.closed_form import Model
from apps.recsys.sampling import Pairs, Users
from apps.recsys.topk_torch import top_k

Scorer = Callable[[Tensor], Tensor]  # users [B] -> scores [B, I], on one device


class Network(nn.Module):
    """A model that is trained by mini-batches. `train` is CSR [U, I] throughout.

    Embedding tables are `nn.Embedding`, a `SharedRows`, or in values mode a
    `SparseEmbedding`.
    """

    sparse_names: tuple[str, ...] = ("embedding.weight",)
    """Parameters that a sparsity method masks unless told otherwise."""

    row_axes: tuple[tuple[str, int, str], ...] = (("embedding.weight", 0, "both"),)
    """Tensors with an axis that runs over "users", "items" or "both", users first, and
    that axis: what goes when one of them is forgotten."""

    capturable = False
    """Whether `loss` can be recorded as a CUDA graph: no choices, nothing from the
    host, no random numbers."""

    progress = 0.0
    """Share of the training that is done; the loop sets it before each step."""

    def loss(self, batch: Tensor) -> Tensor:
        """Mean loss of a batch of `sampler`."""
        raise NotImplementedError

    def scorer(self) -> Scorer:
        """The scores of users, with all that they share computed once."""
        raise NotImplementedError

    def sampler(
        self, train: sp.csr_array, batch: int, negatives: int, power: float,
        device: str | torch.device, by_user: bool = False,
    ) -> Pairs | Users:  # fmt: skip
        """What gives the batches of an epoch."""
        return Pairs(train, batch, negatives, power, device, by_user)

    def step_flops(self, batch: int, negatives: int, density: float) -> float:
        """Of the forward and backward pass of a batch, a multiply-add counted as two.

        density: of the masked parameters; what is absent is not counted, as if no
        kernel touched it.
        """
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def on_device(self) -> "OnDevice":
        """A fitted model that scores and ranks where the network is."""
        self.eval()
        return OnDevice(self.scorer(), self.device)

    def fitted(self) -> Model:
        """A fitted model; it follows later changes of the network."""
        return self.on_device()


@dataclass(frozen=True)
class OnDevice:
    """A `Model` by a scorer: the results are numpy's, the work is done on `device`."""

    scorer: Scorer
    device: torch.device

    @torch.no_grad()
    def scores(self, users: np.ndarray) -> np.ndarray:
        rows = torch.from_numpy(np.asarray(users, np.int64)).to(self.device)
        return self.scorer(rows).float().cpu().numpy()

    def best(self, users: np.ndarray, k: int, known: sp.csr_array) -> np.ndarray:
        return top_k(self.scorer, k, known, users, self.device)


def lookup(embedding: nn.Module, rows: Tensor) -> Tensor:
    """Rows of a table of any kind: [n] -> [n, d].

    The gradient of `index_select` is three times faster on a CPU than that of an
    embedding, and on a GPU it does not sort.
    """
    if isinstance(embedding, nn.Embedding):
        return embedding.weight.index_select(0, rows)
    return embedding(rows)


def table(embedding: nn.Module) -> Tensor:
    """All rows of a table, [n, d], with a gradient."""
    if isinstance(embedding, nn.Embedding):
        return embedding.weight
    rows, _ = embedding.dense_shape
    device = next(embedding.parameters()).device
    return embedding(torch.arange(rows, device=device))


def bpr(users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """`mean(softplus(<u, j> - <u, i>))`, i preferred to j: Bayesian pairwise ranking.

    users, positives: [1, B, d]; negatives: [n, B, d].

    >>> u, i, j = torch.full((3, 1, 1, 1), 2.0)  # of equal items
    >>> round(bpr(u, i, j).item(), 4)  # undecided: log 2
    0.6931

    Rendle et al.: BPR, Bayesian personalized ranking from implicit feedback, 2009.
    """
    return F.softplus((users * (negatives - positives)).sum(-1)).mean()


def pair_rows(batch: Tensor, n_users: int) -> Tensor:
    """Rows of a joint table, items after users, for a batch of `Pairs`, flat."""
    return torch.cat([batch[:1], batch[1:] + n_users]).flatten()


def normal_table(rows: int, dim: int, std: float, seed: int) -> nn.Embedding:
    """A table of independent normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, dim, generator=generator) * std
    return nn.Embedding(rows, dim, _weight=weight)
