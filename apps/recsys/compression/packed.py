"""Recommenders in few bytes: packed tables, and what turns them into scores.

    packed = PackedFactors(users, items)              # a vector for each user and item
    packed = PackedFactors(None, items, FoldIn(...))  # users from their histories
    packed = PackedGraph(users, items, layers=3)      # LightGCN's learned tables
    packed = PackedAugmented(users, items, features, weight=0.3, layers=2)   # LLMRec's
    packed = PackedWeights(weights)                   # EASE, ItemKNN
    packed.nbytes, packed.model(data.train).scores(...)

Who is served needs the history of each user in any case, so that known items are not
recommended again. Its bytes are the same for all and are not counted here; what cannot
score without it says `needs_history`.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.sparse as sp

from apps.recsys.fold_in import folded
from apps.recsys.models.closed_form import Linear, Model
from apps.recsys.models.factors import Factors
from apps.recsys.scoring import FoldIn
from apps.recsys.tables import Dense, Table


class Packed(Protocol):
    """A recommender as it is stored."""

    @property
    def nbytes(self) -> int:
        """Of its tables."""

    @property
    def tables(self) -> dict[str, Table]: ...
    @property
    def needs_history(self) -> bool: ...
    def model(self, train: sp.csr_array) -> Model:
        """What it recommends. train: CSR [U, I], the histories."""


class _Tables:
    @property
    def nbytes(self: Packed) -> int:
        return sum(table.nbytes for table in self.tables.values())


@dataclass(frozen=True)
class PackedFactors(_Tables):
    """users: [U, d], or None and a `fold_in`; items: [I, d]."""

    users: Table | None
    items: Table
    fold_in: FoldIn | None = None

    def __post_init__(self) -> None:
        if (self.users is None) == (self.fold_in is None):
            raise ValueError("give a table of users or a fold_in, one of the two")

    @property
    def tables(self) -> dict[str, Table]:
        found = {"items": self.items}
        return found if self.users is None else {"users": self.users} | found

    @property
    def needs_history(self) -> bool:
        return self.users is None

    def model(self, train: sp.csr_array) -> Factors:
        items = self.items.rows(slice(None))
        if self.users is None:
            return Factors(folded(self.fold_in, train, items), items)
        return Factors(self.users.rows(slice(None)), items)


@dataclass(frozen=True)
class PackedGraph(_Tables):
    """LightGCN's learned tables, which the graph turns into vectors when it is loaded:
    the file is small, the vectors in memory are dense. users: [U, d], items: [I, d]."""

    users: Table
    items: Table
    layers: int

    @property
    def tables(self) -> dict[str, Table]:
        return {"users": self.users, "items": self.items}

    @property
    def needs_history(self) -> bool:
        return True

    def model(self, train: sp.csr_array) -> Factors:
        import torch

        from apps.recsys.models.lightgcn import LightGCN

        network = LightGCN(train, self.items.shape[1], self.layers, l2=0.0, seed=0)
        learned = np.concatenate(
            [table.rows(slice(None)) for table in self.tables.values()]
        )
        with torch.no_grad():
            network.embedding.weight.copy_(torch.from_numpy(learned))
        return network.fitted()


@dataclass(frozen=True)
class PackedAugmented(_Tables):
    """LLMRec's learned tables, and one feature of the items as it is projected.

    users: [U, d]; items, features: [I, d]. weight: of the feature in the vectors. The
    matrix that projects it, and the feature itself, serve nobody and are not stored.
    """

    users: Table
    items: Table
    features: Table
    weight: float
    layers: int

    @property
    def tables(self) -> dict[str, Table]:
        return {"users": self.users, "items": self.items, "features": self.features}

    @property
    def needs_history(self) -> bool:
        return True

    def model(self, train: sp.csr_array) -> Factors:
        from apps.recsys.models.llmrec import HOPS

        graph = PackedGraph(self.users, self.items, self.layers).model(train)
        nothing = Dense.of(np.zeros(self.users.shape, np.float32), "float32")
        part = PackedGraph(nothing, self.features, HOPS).model(train)
        parts = (graph.users, part.users), (graph.items, part.items)
        return Factors(*(own + self.weight * _unit(of) for own, of in parts))


def _unit(rows: np.ndarray) -> np.ndarray:
    """Each row scaled to length 1; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(lengths, 1e-12)


@dataclass(frozen=True)
class PackedWeights(_Tables):
    """weights: [I, I], row j: what item j of a history adds to the scores."""

    weights: Table

    @property
    def tables(self) -> dict[str, Table]:
        return {"weights": self.weights}

    @property
    def needs_history(self) -> bool:
        return True

    def model(self, train: sp.csr_array) -> Linear:
        n = self.weights.shape[0]
        parts = [
            sp.csr_array(self.weights.rows(slice(start, min(start + 1024, n))))
            for start in range(0, n, 1024)
        ]
        ones = sp.csr_array(train, dtype=np.float32, copy=True)
        ones.data[:] = 1
        return Linear(ones, sp.csr_array(sp.vstack(parts)))
