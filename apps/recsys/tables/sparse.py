"""Rows that keep some of their numbers, and where those stand.

    values     nnz float32 (4 bytes), float16 (2), int8 (1) or int4 (1/2); integers as
               in `integers`, with one scale a row
    structure  columns: a byte an entry (two if d > 256), and the number of entries of
               each row (a byte, two if d > 255); or bits: one a number of the table,
               ceil(d / 8) bytes a row. What is smaller is taken: up to d = 256 the bits
               from about one kept number in 8, beyond from one in 16.

With v bytes a value, density p = nnz / (n d) and s bytes of scale a row (0 for floats):

    columns    n d p (v + 1) + n + s n              d < 256
    bits       n d p v + n ceil(d / 8) + s n
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from apps.recsys.tables import bits as packed_bits
from apps.recsys.tables.dense import KINDS as FLOAT_KINDS
from apps.recsys.tables.dense import as_float32, to_float
from apps.recsys.tables.integers import levels, nearest, read_scales, steps_for
from apps.recsys.tables.stored import (
    Index,
    Scored,
    Shape,
    Stored,
    blocks,
    checked_matrix,
    checked_shape,
    numbered,
    stored_bytes,
)

VALUES = (*FLOAT_KINDS, "int8", "int4")
BYTE = (np.dtype(np.uint8),)


@dataclass(frozen=True)
class Sparse(Scored):
    """Entries row by row, columns rising within a row. d: numbers of a row.

    values: [nnz] float32 or float16; for "int8" [nnz] and "int4" [ceil(nnz / 2)] uint8
    codes, and scales: [n]. bits: [n, ceil(d / 8)] uint8, or counts: [n] and columns:
    [nnz], uint8 or uint16.

    >>> matrix = np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
    >>> table = Sparse.of(matrix, matrix != 0, "float16")
    >>> table.rows(np.array([1, 0])).tolist(), table.nbytes
    ([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]], 6)
    """

    d: int
    value_kind: str
    values: np.ndarray
    scales: np.ndarray | None = None
    bits: np.ndarray | None = None
    counts: np.ndarray | None = None
    columns: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        matrix: np.ndarray,
        mask: np.ndarray,
        values: str = "float32",
        scales: str = "float16",
    ) -> "Sparse":
        """matrix: [n, d] float; mask: [n, d] bool, what is kept, zeros included.

        values: one of VALUES. scales: dtype of the scales of integers.

        Raises ValueError for NaN or infinity, and shapes that differ.
        """
        matrix, mask = checked_matrix(matrix), np.asarray(mask)
        if mask.dtype != bool or mask.shape != matrix.shape:
            raise ValueError(
                f"mask must be bool of shape {matrix.shape}, got {mask.dtype} of shape "
                f"{mask.shape}"
            )
        return cls.of_entries(
            matrix.shape, mask.sum(1), np.nonzero(mask)[1], matrix[mask], values, scales
        )

    @classmethod
    def of_entries(
        cls,
        shape: Shape,
        counts: np.ndarray,
        columns: np.ndarray,
        entries: np.ndarray,
        values: str = "float32",
        scales: str = "float16",
    ) -> "Sparse":
        """`of` for a table that is never dense, such as the weights between all items.

        counts: [n], entries of each row; columns: [nnz] integers, rising within a row;
        entries: [nnz] float.
        """
        (n, d), nnz = checked_shape(shape), len(entries)
        if values not in VALUES:
            raise ValueError(f"values must be one of {VALUES}, got {values!r}")
        counts, columns = np.asarray(counts, np.int64), np.asarray(columns, np.int64)
        if counts.shape != (n,) or columns.shape != (nnz,) or counts.sum() != nnz:
            raise ValueError(
                f"{n} counts must sum to the number of columns and entries, got "
                f"{len(counts)} with sum {counts.sum()}, {len(columns)} and {nnz}"
            )
        _check_columns(columns, counts, d)
        entries = checked_matrix(entries[:, None])[:, 0] if nnz else np.zeros(0, "f4")
        structure = _structure(n, d, counts, columns)
        if values in FLOAT_KINDS:
            return cls(d, values, to_float(entries, values), **structure)
        width, filled = int(values.removeprefix("int")), counts > 0
        largest = np.zeros(n, np.float32)
        starts = (np.cumsum(counts) - counts)[filled]
        largest[filled] = np.maximum.reduceat(np.abs(entries), starts) if nnz else 0
        steps = steps_for(largest, width, scales)
        codes = nearest(entries, np.repeat(steps, counts), width)
        flat = packed_bits.pack(codes[None], width)[0]
        return cls(d, values, flat, steps, **structure)

    @classmethod
    def read(cls, kind: str, shape: Shape, stored: Stored) -> "Sparse":
        n, d = shape
        values = stored.choice("values", VALUES)
        scales = None if values in FLOAT_KINDS else read_scales(stored, n)
        bits = counts = columns = None
        if stored.has("bits"):
            bits = stored.array("bits", BYTE, (n, packed_bits.width(d, 1)))
            if not packed_bits.padding_is_zero(bits, d, 1):
                raise ValueError(f"{stored.prefix}bits go on after number {d} of a row")
            nnz = int(np.bitwise_count(bits).sum(dtype=np.int64))
        else:
            counts = stored.array("counts", (_smallest(d),), (n,))
            nnz = int(counts.sum(dtype=np.int64))
            columns = stored.array("columns", (_smallest(d - 1),), (nnz,))
            _check_columns(columns, counts, d)
        if values in FLOAT_KINDS:
            flat = stored.array("values", (np.dtype(values),), (nnz,))
        else:
            width = int(values.removeprefix("int"))
            size = packed_bits.width(nnz, width)
            flat = stored.array("values", BYTE, (size,))
            if nnz and not packed_bits.padding_is_zero(flat[None], nnz, width):
                raise ValueError(f"{stored.prefix}values go on after number {nnz}")
        return cls(d, values, flat, scales, bits, counts, columns)

    @property
    def kind(self) -> str:
        return "sparse"

    @property
    def shape(self) -> Shape:
        return len(self._starts) - 1, self.d

    @property
    def nnz(self) -> int:
        return int(self._starts[-1])

    @property
    def nbytes(self) -> int:
        return stored_bytes(self.arrays())

    def rows(self, index: Index) -> np.ndarray:
        index = numbered(index, self.shape[0])
        row, columns, values = self.entries(index)
        result = np.zeros((len(index), self.d), np.float32)
        result[row, columns] = values
        return result

    def total(self, index: Index) -> np.ndarray:
        """[d] float32: the sum of the rows, which are never dense."""
        _, columns, values = self.entries(numbered(index, self.shape[0]))
        return np.bincount(columns, values, self.d).astype(np.float32)

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        result = np.empty((len(vectors), self.shape[0]), np.float32)
        for part in blocks(self):
            row, columns, values = self.entries(numbered(part, self.shape[0]))
            for i, vector in enumerate(vectors):
                products = values * vector[columns]
                result[i, part] = np.bincount(row, products, part.stop - part.start)
        return result

    def entries(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Place in `index`, column and value (float32) of every entry of those rows."""
        first = self._starts[index]
        counts = self._starts[index + 1] - first
        row = np.repeat(np.arange(len(index)), counts)
        place = np.arange(len(row)) + (first - np.cumsum(counts) + counts)[row]
        values = self._values(place, index[row])
        if self.bits is None:
            return row, self.columns[place], values
        mask = np.unpackbits(self.bits[index], axis=1, count=self.d, bitorder="little")
        return row, np.nonzero(mask)[1], values

    def arrays(self) -> dict[str, np.ndarray]:
        names = ("values", "scales", "bits", "counts", "columns")
        found = {name: getattr(self, name) for name in names}
        return {name: array for name, array in found.items() if array is not None}

    def settings(self) -> dict[str, int | str]:
        return {"values": self.value_kind}

    @cached_property
    def _starts(self) -> np.ndarray:
        """Place of each row's first entry, [n + 1] int64."""
        if self.bits is not None:
            counts = np.bitwise_count(self.bits).sum(1, dtype=np.int64)
        else:
            counts = self.counts
        starts = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=starts[1:])
        return starts

    def _values(self, place: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Entries as float32. place: where they are stored; row: of the table."""
        if self.scales is None:
            return as_float32(self.values[place])
        if self.value_kind == "int8":
            codes = self.values[place]
            width = 8
        else:
            codes = self.values[place >> 1] >> (4 * (place & 1)).astype(np.uint8) & 15
            width = 4
        return levels(codes, width) * self.scales[row].astype(np.float32)


def structure_bytes(n: int, d: int, nnz: int) -> int:
    """Bytes that say where `nnz` kept numbers of an [n, d] table stand.

    >>> structure_bytes(1000, 64, 6400), structure_bytes(1000, 64, 32000)
    (7400, 8000)
    """
    by_bits = n * packed_bits.width(d, 1)
    return min(by_bits, nnz * _smallest(d - 1).itemsize + n * _smallest(d).itemsize)


def _structure(
    n: int, d: int, counts: np.ndarray, columns: np.ndarray
) -> dict[str, np.ndarray]:
    if structure_bytes(n, d, len(columns)) < n * packed_bits.width(d, 1):
        return {
            "counts": counts.astype(_smallest(d)),
            "columns": columns.astype(_smallest(d - 1)),
        }
    mask = np.zeros((n, d), bool)
    mask[np.repeat(np.arange(n), counts), columns] = True
    return {"bits": np.packbits(mask, axis=1, bitorder="little")}


def _smallest(largest: int) -> np.dtype:
    """The type of one or two bytes that holds 0 ... largest; four for a whole 2^16."""
    return np.dtype("u1" if largest < 2**8 else "<u2" if largest < 2**16 else "<u4")


def _check_columns(columns: np.ndarray, counts: np.ndarray, d: int) -> None:
    if columns.size == 0:
        return
    for column in (int(columns.min()), int(columns.max())):
        if not 0 <= column < d:
            raise ValueError(f"column {column} is outside 0 ... {d - 1}")
    rising = columns[1:] > columns[:-1]
    first = np.cumsum(counts, dtype=np.int64)
    first = first[(first > 0) & (first < len(columns))]
    rising[first - 1] = True  # a new row may begin anywhere
    if not rising.all():
        raise ValueError("columns must rise within each row")
