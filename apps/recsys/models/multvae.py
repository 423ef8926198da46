"""A variational autoencoder of users' histories with a multinomial likelihood."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.common.seeds import seeded
from apps.recsys.models.network import Network, OnDevice, Scorer
from apps.recsys.sampling import Users


class MultVAE(Network):
    """Mult-VAE: items of a user as draws from `softmax(decoder(z))`.

    `x` the history as 0 and 1, `x / |x|` encoded through one tanh layer to the mean and
    log variance of z; z decoded through one tanh layer to a logit for each item.

    loss = mean over users of `- sum_i x_i log softmax_i + w KL(q(z|x) || N(0, I))`,
    with w rising from 0 to `kl` over the first `anneal` of the training. Scores are
    logits for the mean z, without noise and dropout.

    Args:
        train: CSR [U, I]; kept, as the histories.
        dim: of z.
        hidden: units of either tanh layer.
        dropout: of the normalised history.
        kl, anneal: see above.
        seed: of the initial weights, Xavier's.

    Liang et al.: Variational autoencoders for collaborative filtering, 2018. Differs
    from it: the annealing is a share of the training, not 200,000 steps.
    """

    sparse_names = ("encoder.weight", "code.weight", "decoder.weight", "output.weight")
    row_axes = (
        ("encoder.weight", 1, "items"),
        ("output.weight", 0, "items"),
        ("output.bias", 0, "items"),
    )

    def __init__(
        self, train: sp.csr_array, dim: int, hidden: int, dropout: float, kl: float,
        anneal: float, seed: int,
    ):  # fmt: skip
        super().__init__()
        self.histories = train
        self.kl, self.anneal = kl, anneal
        n_items = train.shape[1]
        self.dropout = nn.Dropout(dropout)
        with seeded(seed):
            self.encoder = nn.Linear(n_items, hidden)
            self.code = nn.Linear(hidden, 2 * dim)
            self.decoder = nn.Linear(dim, hidden)
            self.output = nn.Linear(hidden, n_items)
            for layer in (self.encoder, self.code, self.decoder, self.output):
                nn.init.xavier_normal_(layer.weight)
                nn.init.normal_(layer.bias, std=0.001)

    def sampler(
        self, train: sp.csr_array, batch: int, negatives: int, power: float,
        device: str | torch.device, by_user: bool = False,
    ) -> Users:  # fmt: skip
        """Batches of users, each once: there are no negatives."""
        return Users(train, batch, device)

    def loss(self, batch: Tensor) -> Tensor:
        """batch: [B] users."""
        x = self.rows(self.histories, batch)
        mean, log_variance = self.encode(x)
        # Not randn_like: layers in values mode have another order of strides.
        noise = torch.randn(mean.shape, device=x.device) if self.training else 0.0
        logits = self.decode(mean + noise * (0.5 * log_variance).exp())
        fit = -(F.log_softmax(logits, 1) * x).sum(1).mean()
        gap = log_variance.exp() + mean.square() - 1 - log_variance
        risen = min(1.0, self.progress / self.anneal) if self.anneal else 1.0
        return fit + self.kl * risen * 0.5 * gap.sum(1).mean()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, I] of 0 and 1 -> mean and log variance of z, [B, dim] each."""
        hidden = torch.tanh(self.encoder(self.dropout(F.normalize(x))))
        mean, log_variance = self.code(hidden).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        """[B, dim] -> logits [B, I]."""
        return self.output(torch.tanh(self.decoder(z)))

    def rows(self, histories: sp.csr_array, users: Tensor) -> Tensor:
        """[B, I] float32 of 0 and 1, where the network is."""
        dense = histories[users.cpu().numpy()].toarray() != 0
        return torch.from_numpy(dense).to(self.device, torch.float32)

    def scorer(self) -> Scorer:
        return lambda users: self.decode(
            self.encode(self.rows(self.histories, users))[0]
        )

    def fitted(self) -> "Autoencoder":
        self.eval()
        return Autoencoder(self.scorer(), self.device, self)

    def step_flops(self, batch: int, negatives: int, density: float) -> float:
        """Three products a layer: forward, and the gradients of input and weight."""
        weights = sum(p.numel() for n, p in self.named_parameters() if "weight" in n)
        return 3 * 2 * batch * weights * density


@dataclass(frozen=True)
class Autoencoder(OnDevice):
    """A fitted `MultVAE`, which also scores users whom it has never seen."""

    network: MultVAE

    @torch.no_grad()
    def fold_in(self, histories: sp.csr_array) -> np.ndarray:
        """Scores [B, I] for new users: CSR [B, I], what is not 0 is in a history."""
        everyone = torch.arange(histories.shape[0])
        mean, _ = self.network.encode(self.network.rows(histories, everyone))
        return self.network.decode(mean).float().cpu().numpy()
