"""Rows as sums of a few atoms out of a dictionary that all rows share."""

from dataclasses import dataclass

import numpy as np

from apps.recsys.tables.stored import (
    MOST_COLUMNS,
    Compound,
    Index,
    Shape,
    Stored,
    Table,
    blocks,
    checked_index,
)

MOST_ATOMS = 2**16


@dataclass(frozen=True)
class Dictionary(Compound):
    """Row i is `sum_j weights[i, j] atoms[chosen[i, j]]`, j = 1 ... k.

    chosen: [n, k] uint8 for up to 256 atoms, else uint16; weights: [n, k] and atoms:
    [m, d], tables of any kind. `n k` bytes, or `2 n k`, and the two tables.

    Kasalický et al.: The future is sparse: embedding compression for scalable retrieval
    in recommender systems (CompresSAE), 2025.

    Differs from the paper: weights and atoms may be of few bits.
    """

    chosen: np.ndarray
    weights: Table
    atoms: Table

    @classmethod
    def of(cls, chosen: np.ndarray, weights: Table, atoms: Table) -> "Dictionary":
        """chosen: [n, k] integers below m, k at most m and `weights` of that shape."""
        chosen, m = np.asarray(chosen), atoms.shape[0]
        if chosen.shape != weights.shape or not np.issubdtype(chosen.dtype, np.integer):
            raise ValueError(
                f"chosen must be integers of the weights' shape {weights.shape}, got "
                f"{chosen.dtype} of shape {chosen.shape}"
            )
        checked_index(chosen.reshape(-1), min(m, MOST_ATOMS))
        return cls(chosen.astype(_index_type(m)), weights, atoms)

    @classmethod
    def read(cls, kind: str, shape: Shape, stored: Stored) -> "Dictionary":
        n, d = shape
        m = stored.integer("size", 1, MOST_ATOMS)
        k = stored.integer("active", 1, min(m, MOST_COLUMNS))
        chosen = stored.array("chosen", (_index_type(m),), (n, k))
        if int(chosen.max()) >= m:
            raise ValueError(f"atom {int(chosen.max())} is outside 0 ... {m - 1}")
        weights = stored.table("weights", (n, k))
        return cls(chosen, weights, stored.table("atoms", (m, d)))

    @property
    def kind(self) -> str:
        return "dictionary"

    @property
    def shape(self) -> Shape:
        return len(self.chosen), self.atoms.shape[1]

    @property
    def nbytes(self) -> int:
        return self.chosen.nbytes + super().nbytes

    def rows(self, index: Index) -> np.ndarray:
        chosen = self.chosen[checked_index(index, len(self.chosen))]
        atoms, weights = self.atoms.rows(slice(None)), self.weights.rows(index)
        result = np.zeros((len(chosen), atoms.shape[1]), np.float32)
        for j in range(chosen.shape[1]):  # one atom of every row: no [B, k, d]
            result += weights[:, j, None] * atoms[chosen[:, j]]
        return result

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """An atom meets each vector once, however many rows have it."""
        products = self.atoms.scores(vectors)
        result = np.zeros((len(vectors), len(self.chosen)), np.float32)
        for part in blocks(self):
            chosen, weights = self.chosen[part], self.weights.rows(part)
            for j in range(chosen.shape[1]):
                result[:, part] += products[:, chosen[:, j]] * weights[:, j]
        return result

    def parts(self) -> dict[str, Table]:
        return {"weights": self.weights, "atoms": self.atoms}

    def arrays(self) -> dict[str, np.ndarray]:
        return {"chosen": self.chosen} | super().arrays()

    def settings(self) -> dict[str, int | str]:
        own = {"size": self.atoms.shape[0], "active": self.chosen.shape[1]}
        return own | super().settings()


def _index_type(m: int) -> np.dtype:
    return np.dtype(np.uint8 if m <= 256 else "<u2")
