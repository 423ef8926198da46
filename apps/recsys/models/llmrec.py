"""A graph convolution with features from text and triplets from elsewhere: LLMRec."""

import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.common.seeds import seeded
from apps.recsys.augmentation import Augmentation, Features, LLMRecSettings
from apps.recsys.language.pruning import keep
from apps.recsys.models.lightgcn import LightGCN, propagate
from apps.recsys.models.network import lookup, pair_rows

HOPS = 2  # of features: from items to users and back, or from users to items


class LLMRec(LightGCN):
    """Vectors of `LightGCN` plus those of features; batches plus given triplets.

    `h = e + sum_k w_k f_k / |f_k|`, e the final vectors of LightGCN, f_k a feature
    through a matrix of its own and over the graph: an item feature starts at the items
    and reaches users, a user feature starts at the users and reaches items.

    `loss = mean over kept triplets of softplus(s_neg - s_pos) + penalty
            + alone sum_k ranking loss of f_k + restored L`,

    the triplets are the batch's and, for the first `edges` of its users, the given
    ones; noise pruning keeps some of both. L restores features that were masked: for
    nodes V, `1/|V| sum_v (1 - cos(decoded_v, feature_v))^gamma`, where a masked
    feature was replaced by a learned token before it went over the graph.

    Only the table e starts from can be sparse. Features are read once and not learned.

    Args:
        train, dim, layers, l2, seed: as in LightGCN.
        augmentation: triplets and features.
        settings: weights w_k, and the rest.

    Wei et al.: LLMRec, 2024, eqs. 6 to 13. Differs from the paper: vectors of ids are
    LightGCN's, normalised on both sides, without a softmax on the last hop; pruning may
    keep the easy triplets; restoration is trained, for users and items, and masks
    nothing for good; the penalty is the squared norm, not its reciprocal.
    """

    capturable = False  # masks are drawn, and pruning sorts

    def __init__(
        self, train: sp.csr_array, dim: int, layers: int, l2: float, seed: int,
        augmentation: Augmentation, settings: LLMRecSettings,
    ):  # fmt: skip
        super().__init__(train, dim, layers, l2, seed)
        augmentation.for_training(train)
        self.settings = settings
        self.starts: dict[str, slice] = {}  # rows of the joint table, of each feature
        self.weights: dict[str, float] = {}  # w_k
        with seeded(seed + 1):
            self.project, self.decode = nn.ModuleDict(), nn.ModuleDict()
            self.token = nn.ParameterDict()
            items, users = slice(self.n_users, None), slice(0, self.n_users)
            self._add(augmentation.item_features, items, settings.items)
            self._add(augmentation.user_features, users, settings.users)
        given = torch.full((2, self.n_users), -1, dtype=torch.int64)  # of each user
        users = torch.from_numpy(augmentation.users).long()
        given[0, users] = torch.from_numpy(augmentation.liked).long()
        given[1, users] = torch.from_numpy(augmentation.disliked).long()
        self.register_buffer("given", given, persistent=False)

    def _add(self, features: Features, rows: slice, weight: float) -> None:
        for name, array in features.items():
            self.starts[name], self.weights[name] = rows, weight
            width = array.shape[1]
            self.register_buffer(
                f"feature_{name}", torch.from_numpy(array), persistent=False
            )
            self.project[name] = nn.Linear(width, self.dim, bias=False)
            if self.settings.restored:
                self.decode[name] = nn.Linear(self.dim, width)
                self.token[name] = nn.Parameter(torch.zeros(width))

    def vectors(self) -> Tensor:
        """[U + I, d] with all features, none of them masked."""
        parts = {name: self.part(name, self.feature(name)) for name in self.starts}
        return self.joined(parts)

    def feature(self, name: str) -> Tensor:
        """[U or I, width], as it was given."""
        return getattr(self, f"feature_{name}")

    def part(self, name: str, feature: Tensor) -> Tensor:
        """[U + I, d]: a feature, projected and carried over the graph."""
        start = feature.new_zeros(len(self.crow) - 1, self.dim)
        start[self.starts[name]] = self.project[name](feature)
        return propagate(start, self.adjacency, HOPS)

    def joined(self, parts: dict[str, Tensor]) -> Tensor:
        """Vectors of ids plus weighted features, each of length 1."""
        total = super().vectors()
        for name, part in parts.items():
            total = total + self.weights[name] * F.normalize(part, dim=1)
        return total

    def loss(self, batch: Tensor) -> Tensor:
        """batch: [2 + n, B], of `Pairs`."""
        masked = {name: self.masked(name) for name in self.starts}
        parts = {name: self.part(name, x) for name, (x, _) in masked.items()}
        triplets = self.triplets(batch)
        losses = ranking_losses(self.joined(parts), triplets, self.n_users)
        kept = keep(losses, self.settings.dropped, self.settings.keep)
        own = lookup(self.embedding, pair_rows(batch, self.n_users))
        loss = losses[kept].mean() + self.penalty(own, batch.shape[1])
        for name, part in parts.items():
            if self.settings.alone:
                alone = ranking_losses(part, triplets, self.n_users)
                loss = loss + self.settings.alone * alone.mean()
            if self.settings.restored:
                error = self.restoration(name, part, masked[name][1])
                loss = loss + self.settings.restored * error
        return loss

    def triplets(self, batch: Tensor) -> Tensor:
        """[3, m]: users, positives, negatives of the batch, then the given ones."""
        users, positives, *negatives = batch
        rows = [torch.stack([users, positives, other]) for other in negatives]
        asked = users[: round(self.settings.edges * len(users))]
        given = torch.cat([asked[None], self.given[:, asked]])
        return torch.cat([*rows, given[:, given[1] >= 0]], 1)

    def masked(self, name: str) -> tuple[Tensor, Tensor | None]:
        """A feature with some rows replaced by its token, and which [n] bool.

        Only rows that hold something are masked. Drawn on the CPU: the same on every
        device.
        """
        feature = self.feature(name)
        if not self.settings.restored:
            return feature, None
        drawn = torch.rand(len(feature)) < self.settings.masked
        rows = drawn.to(feature.device) & feature.any(1)
        return torch.where(rows[:, None], self.token[name], feature), rows

    def restoration(self, name: str, part: Tensor, rows: Tensor | None) -> Tensor:
        """Mean error of the decoded features of the masked nodes; 0 without any."""
        wanted = self.feature(name)[rows]
        decoded = self.decode[name](part[self.starts[name]][rows])
        near = F.cosine_similarity(decoded, wanted, dim=1)
        error = (1 - near).clamp_min(1e-8) ** self.settings.gamma
        return error.sum() / max(1, len(wanted))

    def step_flops(self, batch: int, negatives: int, density: float) -> float:
        """As LightGCN, and for each feature its matrix and its way over the graph."""
        total = super().step_flops(batch, negatives, density)
        for name in self.starts:
            feature = self.feature(name)
            total += 2 * 2 * feature.numel() * self.dim  # forward, and its gradient
            total += 2 * HOPS * 2 * len(self.weight) * self.dim
        return total


def ranking_losses(vectors: Tensor, triplets: Tensor, n_users: int) -> Tensor:
    """[m]: `softplus(s_neg - s_pos)` of each triplet, users, positives, negatives."""
    users, positives, negatives = triplets
    rows = torch.cat([users, positives + n_users, negatives + n_users])
    u, i, j = vectors.index_select(0, rows).view(3, len(users), -1)
    return F.softplus((u * (j - i)).sum(1))
