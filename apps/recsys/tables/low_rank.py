"""A table as the product of two: n x r and r x d."""

from dataclasses import dataclass

import numpy as np

from apps.recsys.tables.stored import (
    MOST_COLUMNS,
    Compound,
    Index,
    Shape,
    Stored,
    Table,
)


@dataclass(frozen=True)
class LowRank(Compound):
    """rows = left @ right. left: [n, r], right: [r, d], tables of any kind.

    Where only inner products of two tables count, no `right` is needed: both can be
    rotated so that their first r numbers suffice.
    """

    left: Table
    right: Table

    def __post_init__(self) -> None:
        if self.left.shape[1] != self.right.shape[0]:
            raise ValueError(
                f"left {self.left.shape} and right {self.right.shape} do not multiply"
            )

    @classmethod
    def read(cls, kind: str, shape: Shape, stored: Stored) -> "LowRank":
        rank = stored.integer("rank", 1, MOST_COLUMNS)
        left = stored.table("left", (shape[0], rank))
        return cls(left, stored.table("right", (rank, shape[1])))

    @property
    def kind(self) -> str:
        return "low_rank"

    @property
    def shape(self) -> Shape:
        return self.left.shape[0], self.right.shape[1]

    def rows(self, index: Index) -> np.ndarray:
        return self.left.rows(index) @ self.right.rows(slice(None))

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        return self.left.scores(self.right.scores(vectors))

    def parts(self) -> dict[str, Table]:
        return {"left": self.left, "right": self.right}

    def settings(self) -> dict[str, int | str]:
        return {"rank": self.left.shape[1]} | super().settings()
