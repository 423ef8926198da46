"""Rows that share numbers with other rows, by their index alone."""

from dataclasses import dataclass

import numpy as np

from apps.recsys.tables.stored import (
    MOST_ROWS,
    Compound,
    Index,
    Shape,
    Stored,
    Table,
    numbered,
)

HOW = ("product", "sum")


@dataclass(frozen=True)
class Hashed(Compound):
    """Row x is row `x mod m` of a smaller table. n: rows; shared: [m, d] of any kind.

    Weinberger et al.: Feature hashing for large scale multitask learning, 2009.

    Differs from the paper: no signs, and the hash is the remainder, so that which rows
    collide is known.
    """

    n: int
    shared: Table

    @classmethod
    def read(cls, kind: str, shape: Shape, stored: Stored) -> "Hashed":
        size = stored.integer("size", 1, MOST_ROWS)
        return cls(shape[0], stored.table("shared", (size, shape[1])))

    @property
    def kind(self) -> str:
        return "hashed"

    @property
    def shape(self) -> Shape:
        return self.n, self.shared.shape[1]

    def rows(self, index: Index) -> np.ndarray:
        return self.shared.rows(numbered(index, self.n) % self.shared.shape[0])

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        shared = self.shared.scores(vectors)
        return shared[:, np.arange(self.n) % shared.shape[1]]

    def parts(self) -> dict[str, Table]:
        return {"shared": self.shared}

    def settings(self) -> dict[str, int | str]:
        return {"size": self.shared.shape[0]} | super().settings()


@dataclass(frozen=True)
class QuotientRemainder(Compound):
    """Row x is `quotient[x div m]` times, or plus, `remainder[x mod m]`.

    n: rows; quotient: [ceil(n / m), d], remainder: [m, d]; how: "product" or "sum".
    No two rows share both parts, so no two need be equal.

    Shi et al.: Compositional embeddings using complementary partitions, 2020.
    """

    n: int
    quotient: Table
    remainder: Table
    how: str = "product"

    def __post_init__(self) -> None:
        m = self.remainder.shape[0]
        if self.quotient.shape != (-(-self.n // m), self.remainder.shape[1]):
            raise ValueError(
                f"{self.n} rows with a remainder table {self.remainder.shape} need a "
                f"quotient table of {-(-self.n // m)} rows, got {self.quotient.shape}"
            )
        if self.how not in HOW:
            raise ValueError(f"how must be one of {HOW}, got {self.how!r}")

    @classmethod
    def read(cls, kind: str, shape: Shape, stored: Stored) -> "QuotientRemainder":
        n, d = shape
        size, how = stored.integer("size", 1, MOST_ROWS), stored.choice("how", HOW)
        quotient = stored.table("quotient", (-(-n // size), d))
        return cls(n, quotient, stored.table("remainder", (size, d)), how)

    @property
    def kind(self) -> str:
        return "quotient_remainder"

    @property
    def shape(self) -> Shape:
        return self.n, self.remainder.shape[1]

    def rows(self, index: Index) -> np.ndarray:
        index, m = numbered(index, self.n), self.remainder.shape[0]
        quotient, remainder = self.quotient.rows(index // m), self.remainder
        if self.how == "product":
            return quotient * remainder.rows(index % m)
        return quotient + remainder.rows(index % m)

    def parts(self) -> dict[str, Table]:
        return {"quotient": self.quotient, "remainder": self.remainder}

    def settings(self) -> dict[str, int | str]:
        own: dict[str, int | str] = {"size": self.remainder.shape[0], "how": self.how}
        return own | super().settings()
