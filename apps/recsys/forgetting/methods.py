"""Ways to forget: settings with `run(problem) -> (network of those who stay, FLOPs)`.

    Drop()                       their rows and edges go, nothing else: the naive way
    FineTune(epochs=5)           ... then training goes on without them
    Ascent(epochs=20, repair=3)  first their interactions' loss is raised, to a bound
    RandomItems(epochs=5)        first they are taught random items

`retrain`, the gold standard, is `train` with `without` and not here. A sparse table
keeps its mask. Each depends on its seed alone, and leaves the given network as it is.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from apps.recsys import networks
from apps.recsys.config import Config
from apps.recsys.forgetting.rows import kept, moved
from apps.recsys.gradients import eager
from apps.recsys.models.mf import MF
from apps.recsys.models.multvae import MultVAE
from apps.recsys.models.network import Network, pair_rows
from apps.recsys.train import seeded
from sparsekit import fixed
from sparsekit.masks import density
from sparsekit.spelling import choice


@dataclass(frozen=True)
class Problem:
    """A trained network, and what it learned from before and may know after.

    config: of the training; its seed decides all that is random here. network, masks:
    as trained on `before`. before, after: CSR, training interactions with and without
    what is forgotten; users, items: the indices in `before` of those that `after` has,
    rising. held_out: CSR like `before`, interactions that nothing was trained on; maybe
    empty.
    """

    config: Config
    network: Network
    masks: Mapping[str, Tensor]
    before: sp.csr_array
    after: sp.csr_array
    users: np.ndarray
    items: np.ndarray
    held_out: sp.csr_array

    @property
    def forgotten(self) -> np.ndarray:
        """Keys `user * I + item` in `before` of the interactions that go, rising."""
        stays = self.after.tocoo()
        rows, columns = self.users[stays.row], self.items[stays.col]
        width = self.before.shape[1]
        return np.setdiff1d(keys(self.before), rows.astype(np.int64) * width + columns)

    def staying(self, network: Network) -> Network:
        """`network` for those who stay, on the graph that stays."""
        new = networks.build(self.config, self.after)
        return moved(network, new, self.before.shape, self.users, self.items)

    @property
    def staying_masks(self) -> dict[str, Tensor]:
        """Masks of such a network."""
        return {
            name: kept(
                self.network, name, mask, self.before.shape, self.users, self.items
            )
            for name, mask in self.masks.items()
        }


class Method(Protocol):
    """Settings of a way to forget: a frozen dataclass."""

    def run(self, problem: Problem) -> tuple[Network, float]:
        """The network of those who stay, and the FLOPs it took."""


@dataclass(frozen=True)
class Drop:
    """Removes the rows of users and items, and the edges of the graph.

    What is gone has no vector and is in no list. What others learned from it stays.
    """

    def run(self, problem: Problem) -> tuple[Network, float]:
        return problem.staying(problem.network), 0.0


@dataclass(frozen=True)
class FineTune:
    """`Drop`, then more epochs of the same training on what stays.

    epochs: number of them. lr: learning rate; default: that of the training.
    """

    epochs: int = 5
    lr: float | None = None

    def __post_init__(self) -> None:
        _check_counts(self)

    def run(self, problem: Problem) -> tuple[Network, float]:
        network, masks = problem.staying(problem.network), problem.staying_masks
        spent = go_on(
            network, masks, problem.after, problem.config, self.epochs, self.lr
        )
        return network, spent


@dataclass(frozen=True)
class Ascent:
    """Raises the ranking loss of what is forgotten, then `FineTune`.

    At most `epochs` steps up, each on all forgotten interactions with fresh negatives;
    the last is the first after which their mean loss is `bound` or more. Without a
    bound ascent has no end: it makes what is forgotten conspicuous.

    epochs: steps of ascent, at most. lr: theirs; default: that of the training. bound:
    a loss; default: that of held-out interactions. repair: epochs of fine-tuning
    afterwards. For mf and lightgcn.
    """

    epochs: int = 20
    lr: float | None = None
    bound: float | None = None
    repair: int = 3

    def __post_init__(self) -> None:
        _check_counts(self)

    def run(self, problem: Problem) -> tuple[Network, float]:
        raised, spent = self.raised(problem)
        network, masks = problem.staying(raised), problem.staying_masks
        spent += go_on(network, masks, problem.after, problem.config, self.repair)
        return network, spent

    def raised(self, problem: Problem) -> tuple[MF, float]:
        """The network after the ascent, of everybody still, and its FLOPs."""
        network = copy.deepcopy(problem.network)
        if not isinstance(network, MF):
            raise ValueError("ascent needs mf or lightgcn: use finetune or retrain")
        rate = self.lr or problem.config.lr
        optimizer = torch.optim.Adam(network.parameters(), lr=rate)
        fixed.keep(network, optimizer, problem.masks)
        draws = torch.Generator().manual_seed(problem.config.seed)
        users, items = np.divmod(problem.forgotten, problem.before.shape[1])
        bound, spent = self.bound, 0.0
        if bound is None:
            bound = self._held_out_loss(problem, network, draws)
        for _ in range(self.epochs):
            loss = ranking_loss(network, problem.before, users, items, draws)
            if float(loss.detach()) >= bound:
                break
            optimizer.zero_grad()
            (-loss).backward()
            optimizer.step()
            spent += network.step_flops(len(users), 1, density(problem.masks))
        return network, spent

    def _held_out_loss(
        self, problem: Problem, network: MF, draws: torch.Generator
    ) -> float:
        if problem.held_out.nnz == 0:
            raise ValueError(
                "ascent stops at the loss of held-out interactions, and there is no "
                f"validation part: give bound, as {math.log(2):.2f} for chance"
            )
        users, items = np.divmod(keys(problem.held_out), problem.before.shape[1])
        with torch.no_grad():
            return float(ranking_loss(network, problem.before, users, items, draws))


@dataclass(frozen=True)
class RandomItems:
    """Training goes on with random items in the place of those to be forgotten.

    The analogue of random labels: each forgotten interaction (u, i) becomes (u, j), j
    an item that u does not have, drawn once; the others stay. Then the rows go.

    epochs, lr: as `FineTune`. Not for multvae, which reads whole histories.
    """

    epochs: int = 5
    lr: float | None = None

    def __post_init__(self) -> None:
        _check_counts(self)

    def run(self, problem: Problem) -> tuple[Network, float]:
        if isinstance(problem.network, MultVAE):
            raise ValueError("random_items cannot change the histories of multvae")
        network = copy.deepcopy(problem.network)
        taught = with_random_items(
            problem.before, problem.forgotten, problem.config.seed
        )
        spent = go_on(
            network, problem.masks, taught, problem.config, self.epochs, self.lr
        )
        return problem.staying(network), spent


METHODS: dict[str, type[Any]] = {
    "drop": Drop, "finetune": FineTune, "ascent": Ascent, "random_items": RandomItems,
}  # fmt: skip


def build(name: str, options: Mapping[str, Any]) -> Method:
    """A method by its name; ValueError that lists what there is."""
    if name not in METHODS:
        known = ("retrain", *METHODS)
        raise ValueError(choice(f"method {name!r} is unknown", name, known))
    names = [f.name for f in fields(METHODS[name])]
    unknown = sorted(set(options) - set(names))
    if unknown:
        refused = f"method {name!r} has no option {unknown[0]!r}"
        raise ValueError(choice(refused, unknown[0], names, "it has"))
    return METHODS[name](**options)


def go_on(
    network: Network, masks: Mapping[str, Tensor], train: sp.csr_array, config: Config,
    epochs: int, lr: float | None = None,
) -> float:  # fmt: skip
    """More epochs of the training of `config`, with new moments, in place; the FLOPs.

    The batches are those of the epochs that would have followed; at a constant learning
    rate. A batch is never larger than what there is.
    """
    if epochs == 0:
        return 0.0
    sampler = network.sampler(
        train, min(config.batch, _examples(network, train)), config.negatives,
        config.negative_power, config.device, config.draw == "users",
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), lr=lr or config.lr, fused=True)
    fixed.keep(network, optimizer, masks)
    gradients = eager(network, optimizer)
    network.train()
    network.progress = 1.0
    for epoch in range(config.epochs, config.epochs + epochs):
        with seeded(config, epoch) as generator:
            for batch in sampler.epoch(generator):
                gradients(batch)
                optimizer.step()
    network.eval()
    each = network.step_flops(sampler.batch, config.negatives, density(masks))
    return epochs * sampler.steps * each


def ranking_loss(
    network: MF, train: sp.csr_array, users: np.ndarray, items: np.ndarray,
    draws: torch.Generator,
) -> Tensor:  # fmt: skip
    """Mean BPR loss of interactions, each against an item that its user lacks."""
    negatives = lacked(train, users, np.random.default_rng(_number(draws)))
    rows = [
        torch.from_numpy(np.asarray(r, np.int64)) for r in (users, items, negatives)
    ]
    batch = torch.stack(rows).to(network.device)
    vectors = network.vectors()[pair_rows(batch, network.n_users)]
    return network.ranking(vectors, batch)


def lacked(
    train: sp.csr_array, users: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """[n] items, each drawn uniformly from those that its user does not have."""
    n_items, known = train.shape[1], keys(train)
    if (np.diff(train.indptr)[users] == n_items).any():
        raise ValueError("a user has every item: there is no other to draw")
    items = rng.integers(n_items, size=len(users))
    while True:
        (again,) = np.nonzero(np.isin(users * n_items + items, known))
        if len(again) == 0:
            return items
        items[again] = rng.integers(n_items, size=len(again))


def with_random_items(
    train: sp.csr_array, forgotten: np.ndarray, seed: int
) -> sp.csr_array:
    """`train` with each forgotten key moved to an item that the user lacks.

    Two of a user's may be moved to the same item and are one then.
    """
    users = forgotten // train.shape[1]
    items = lacked(train, users, np.random.default_rng(seed))
    moved_keys = users * train.shape[1] + items
    whole = np.union1d(np.setdiff1d(keys(train), forgotten), moved_keys)
    rows, columns = np.divmod(whole, train.shape[1])
    ones = np.ones(len(whole), np.float32)
    return sp.csr_array((ones, (rows, columns)), shape=train.shape)


def keys(matrix: sp.csr_array) -> np.ndarray:
    """`row * columns + column` of the stored entries, int64."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return rows * matrix.shape[1] + matrix.indices.astype(np.int64)


def _number(draws: torch.Generator) -> int:
    return int(torch.randint(2**31, (), generator=draws))


def _examples(network: Network, train: sp.csr_array) -> int:
    if isinstance(network, MultVAE):
        return int((np.diff(train.indptr) > 0).sum())
    return train.nnz


def _check_counts(method: Any) -> None:
    for name in ("epochs", "repair"):
        value = getattr(method, name, 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{name} must be a whole number from 0 on, got {value!r}")
    for name in ("lr", "bound"):
        value = getattr(method, name, None)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value < math.inf):
            raise ValueError(f"{name} must be a positive number, got {value!r}")
