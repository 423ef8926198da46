"""Columns of different worth: 0 to 8 bits each, an offset and a step a column.

    x_ij ~ o_j + s_j (c_ij - (2^b_j - 1) / 2),   c_ij of b_j bits; 0 bits: x_ij ~ o_j

The bits of a row stand side by side, `n ceil(sum_j b_j / 8)` bytes, and 9 bytes a
column for its bits, offset and step. Made for tables rotated to their principal axes,
whose first columns matter most: `apps.recsys.compression`.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from apps.recsys.tables.integers import levels, quantised
from apps.recsys.tables.stored import (
    LARGEST,
    Index,
    Scored,
    Shape,
    Stored,
    blocks,
    checked_index,
    checked_matrix,
    stored_bytes,
)

# Shares of a column's largest magnitude that its outermost levels are chosen from.
SHARES = tuple(step / 32 for step in range(32, 1, -1))
F4, U1 = np.dtype("<f4"), np.dtype(np.uint8)


@dataclass(frozen=True)
class Columns(Scored):
    """codes: [n, ceil(sum(bits) / 8)], bits: [d], uint8; offsets, steps: [d] float32.

    >>> matrix = np.array([[1.0, 5.0], [4.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    >>> table = Columns.of(matrix, [2, 0])
    >>> table.rows(np.arange(4)).tolist(), table.nbytes
    ([[1.0, 5.0], [4.0, 5.0], [2.0, 5.0], [3.0, 5.0]], 22)
    """

    codes: np.ndarray
    bits: np.ndarray
    offsets: np.ndarray
    steps: np.ndarray

    @classmethod
    def of(cls, matrix: np.ndarray, bits: np.ndarray) -> "Columns":
        """matrix: [n, d] float; bits: [d] integers in 0 ... 8.

        The offset is the column's mean, the step the one of least squared error where
        the outermost levels are at a share, of SHARES, of the largest distance to it.

        Raises ValueError for NaN or infinity, and bits of another form.
        """
        matrix, bits = checked_matrix(matrix), np.asarray(bits)
        n, d = matrix.shape
        if (
            bits.shape != (d,)
            or bits.dtype.kind not in "iu"
            or ((bits < 0) | (bits > 8)).any()
        ):
            raise ValueError(f"bits must be {d} integers in 0 ... 8, got {bits}")
        offsets = matrix.mean(0, dtype=np.float64).astype(np.float32)
        codes, steps = np.zeros((n, d), np.uint8), np.zeros(d, np.float32)
        for j in np.flatnonzero(bits):
            column = matrix[:, j] - offsets[j]
            codes[:, j], steps[j] = _least_squares(column, int(bits[j]))
        return cls.of_codes(codes, bits, offsets, steps)

    @classmethod
    def of_codes(
        cls, codes: np.ndarray, bits: np.ndarray, offsets: np.ndarray, steps: np.ndarray
    ) -> "Columns":
        """codes: [n, d] uint8, below 2^bits of their column; offsets, steps: [d]."""
        parts = [
            np.unpackbits(codes[:, [j]], axis=1, count=int(bits[j]), bitorder="little")
            for j in np.flatnonzero(bits)
        ]
        spread = np.hstack(parts) if parts else np.zeros((len(codes), 0), np.uint8)
        packed = np.packbits(spread, axis=1, bitorder="little")
        return cls(packed, np.asarray(bits, np.uint8), offsets, steps)

    def codes_by_column(self) -> np.ndarray:
        """[n, d] uint8, as `of_codes` takes them."""
        return (self._spread(slice(None)) @ self._places).astype(np.uint8)

    @classmethod
    def read(cls, kind: str, shape: Shape, stored: Stored) -> "Columns":
        n, d = shape
        bits = stored.array("bits", (U1,), (d,))
        if int(bits.max()) > 8:
            raise ValueError(f"'{stored.prefix}bits' must be in 0 ... 8")
        total = int(bits.sum(dtype=np.int64))
        codes = stored.array("codes", (U1,), (n, (total + 7) // 8))
        if total % 8 and (codes[:, -1] >> total % 8).any():
            raise ValueError(f"'{stored.prefix}codes' go on after bit {total} of a row")
        offsets, steps = (
            stored.array(name, (F4,), (d,)) for name in ("offsets", "steps")
        )
        if max(float(np.abs(offsets).max()), float(np.abs(steps).max())) > LARGEST:
            raise ValueError(f"'{stored.prefix}offsets' and steps end at {LARGEST:g}")
        return cls(codes, bits, offsets, steps)

    @property
    def kind(self) -> str:
        return "columns"

    @property
    def shape(self) -> Shape:
        return len(self.codes), len(self.bits)

    @property
    def nbytes(self) -> int:
        return stored_bytes(self.arrays())

    def rows(self, index: Index) -> np.ndarray:
        base, weights = self._decoding
        return base + self._spread(index) @ weights

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """A row's bits times what each is worth to the vectors: nothing is decoded."""
        base, weights = self._decoding
        worth = (weights @ vectors.T).astype(np.float32)
        result = np.empty((len(vectors), len(self.codes)), np.float32)
        for part in blocks(self):
            result[:, part] = (self._spread(part) @ worth).T
        return result + (vectors @ base)[:, None]

    def arrays(self) -> dict[str, np.ndarray]:
        names = ("codes", "bits", "offsets", "steps")
        return {name: getattr(self, name) for name in names}

    def settings(self) -> dict[str, int | str]:
        return {}

    def _spread(self, index: Index) -> np.ndarray:
        """[B, total bits] float32, 0 or 1."""
        codes = self.codes[checked_index(index, len(self.codes))]
        total = len(self._decoding[1])
        spread = np.unpackbits(codes, axis=1, count=total, bitorder="little")
        return spread.astype(np.float32)

    @cached_property
    def _decoding(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers where all bits are 0, [d], and what each bit adds to them, [bits, d].

        A row is then its bits times a matrix, whatever the widths.
        """
        middles = (2.0 ** self.bits.astype(np.int64) - 1) / 2
        base = self.offsets - self.steps * middles.astype(np.float32)
        return base, self._places * self.steps

    @cached_property
    def _places(self) -> np.ndarray:
        """[bits, d] float32: what each bit adds to the code of its column."""
        bits, total = self.bits.astype(np.int64), int(self.bits.sum(dtype=np.int64))
        column = np.repeat(np.arange(len(bits)), bits)
        place = np.arange(total) - np.repeat(np.cumsum(bits) - bits, bits)
        places = np.zeros((total, len(bits)), np.float32)
        places[np.arange(total), column] = 2.0**place
        return places


def _least_squares(column: np.ndarray, bits: int) -> tuple[np.ndarray, np.float32]:
    """Codes [n] uint8 and the step of a column around 0."""
    largest = np.abs(column).max(keepdims=True)
    best, least = None, np.inf
    for share in SHARES:
        codes, steps = quantised(column[None], share * largest, bits, "float32")
        decoded = levels(codes, bits) * steps[:, None]
        error = float(((decoded - column) ** 2).sum(dtype=np.float64))
        if best is None or error < least:
            best, least = (codes[0], steps[0]), error
    return best
