"""Numbers of 1 to 8 bits and one scale a row: int8, int4, ...

Row i has 2^b levels at equal distances s_i, the outermost at plus and minus its largest
magnitude, and each number becomes the nearest one:

    s_i = 2 max_j |x_ij| / (2^b - 1)
    c_ij = round(x_ij / s_i + (2^b - 1) / 2)        stored, 0 ... 2^b - 1
    x_ij ~ s_i (c_ij - (2^b - 1) / 2)               error at most s_i / 2

`n ceil(d b / 8)` bytes of codes and 4 n (float32) or 2 n (float16) of scales.

Differs from the usual symmetric int8 in using all 2^b levels, none of which is 0 (rows
of zeros stay exact: their scale is 0): the distances are smaller by 1 / (2^b - 1),
which is a third at 2 bits.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from apps.recsys.tables import bits as packed_bits
from apps.recsys.tables.stored import (
    FLOATS,
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

KINDS = tuple(f"int{bits}" for bits in range(1, 9))
# Shares of the largest magnitude that the least-squares scale is chosen from.
SHARES = tuple(step / 20 for step in range(20, 3, -1))
Fit = Literal["largest", "squares"]


@dataclass(frozen=True)
class Integers(Scored):
    """codes: [n, ceil(d bits / 8)] uint8; scales: [n] float32 or float16; d; bits.

    >>> table = Integers.of(np.array([[3.0, -1.0, 0.9]]), "int2", "float32")
    >>> table.rows(np.array([0])).tolist(), table.nbytes
    ([[3.0, -1.0, 1.0]], 5)
    """

    codes: np.ndarray
    scales: np.ndarray
    d: int
    bits: int

    @classmethod
    def of(
        cls,
        matrix: np.ndarray,
        kind: str,
        scales: str = "float16",
        fit: Fit = "largest",
    ) -> "Integers":
        """matrix: [n, d] float. kind: "int1" ... "int8". scales: their dtype.

        fit: "largest" as above; "squares" takes the share of the largest magnitude, of
        those in SHARES, that has the least squared error of the row: few bits lose more
        by wide steps than by cutting off an outlier.

        Raises ValueError for NaN or infinity, and scales that float16 cannot hold.
        """
        matrix, bits = checked_matrix(matrix), n_bits(kind)
        if fit not in ("largest", "squares"):
            raise ValueError(f"fit must be largest or squares, got {fit!r}")
        largest = np.abs(matrix).max(1)
        best = quantised(matrix, largest, bits, scales)
        if fit == "squares":
            best = _least_squares(matrix, largest, bits, scales, best)
        return cls(packed_bits.pack(best[0], bits), best[1], matrix.shape[1], bits)

    @classmethod
    def read(cls, kind: str, shape: Shape, stored: Stored) -> "Integers":
        (n, d), bits = shape, n_bits(kind)
        size = (n, packed_bits.width(d, bits))
        codes = stored.array("codes", (np.dtype(np.uint8),), size)
        if not packed_bits.padding_is_zero(codes, d, bits):
            raise ValueError(f"{stored.prefix}codes go on after number {d} of a row")
        return cls(codes, read_scales(stored, n), d, bits)

    @property
    def kind(self) -> str:
        return f"int{self.bits}"

    @property
    def shape(self) -> Shape:
        return len(self.codes), self.d

    @property
    def nbytes(self) -> int:
        return stored_bytes(self.arrays())

    def rows(self, index: Index) -> np.ndarray:
        index = checked_index(index, len(self.codes))
        codes = packed_bits.unpack(self.codes[index], self.d, self.bits)
        return levels(codes, self.bits) * self.scales[index].astype(np.float32)[:, None]

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Products with the codes as they are; middle and scale follow once a row."""
        result = np.empty((len(vectors), len(self.codes)), np.float32)
        middle = np.float32((2**self.bits - 1) / 2) * vectors.sum(1, keepdims=True)
        for part in blocks(self):
            codes = packed_bits.unpack(self.codes[part], self.d, self.bits)
            products = vectors @ codes.astype(np.float32).T - middle
            result[:, part] = products * self.scales[part].astype(np.float32)
        return result

    def arrays(self) -> dict[str, np.ndarray]:
        return {"codes": self.codes, "scales": self.scales}

    def settings(self) -> dict[str, int | str]:
        return {}


def n_bits(kind: str) -> int:
    if kind not in KINDS:
        raise ValueError(f"integer kinds are {', '.join(KINDS)}, got {kind!r}")
    return int(kind.removeprefix("int"))


def levels(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes as multiples of the scale, float32: -(2^b - 1) / 2 ... (2^b - 1) / 2."""
    return codes.astype(np.float32) - np.float32((2**bits - 1) / 2)


def quantised(
    rows: np.ndarray, largest: np.ndarray, bits: int, scales: str
) -> tuple[np.ndarray, np.ndarray]:
    """Codes [n, d] uint8 and scales [n] whose outermost levels are at +-largest."""
    steps = steps_for(largest, bits, scales)
    return nearest(rows, steps[:, None], bits), steps


def steps_for(largest: np.ndarray, bits: int, kind: str) -> np.ndarray:
    """Scales of that float kind, rounded up: no level is inside the largest number.

    Raises ValueError if float16 cannot hold them.
    """
    if np.dtype(kind) not in FLOATS:
        raise ValueError(f"scales are float32 or float16, got {kind!r}")
    exact = 2 * largest.astype(np.float64) / (2**bits - 1)
    with np.errstate(over="ignore", under="ignore"):
        rounded = exact.astype(kind)
        low = rounded.astype(np.float64) < exact
        rounded[low] = np.nextafter(rounded[low], np.array(np.inf, kind))
    if not np.isfinite(rounded).all():
        raise ValueError(
            f"a scale of {exact.max():.4g} exceeds {kind}: scale the table down, or "
            "use float32 scales"
        )
    return rounded


def nearest(values: np.ndarray, steps: np.ndarray, bits: int) -> np.ndarray:
    """Codes, uint8, of the nearest levels. steps: as `values`, or to be broadcast."""
    divisors = np.where(steps > 0, steps, 1).astype(np.float64)
    codes = np.rint(values / divisors + (2**bits - 1) / 2)
    return codes.clip(0, 2**bits - 1).astype(np.uint8)


def read_scales(stored: Stored, n: int) -> np.ndarray:
    scales = stored.array("scales", FLOATS, (n,))
    if float(scales.min()) < 0 or float(scales.max()) > LARGEST:
        raise ValueError(f"'{stored.prefix}scales' must be in 0 ... {LARGEST:g}")
    return scales


def _least_squares(
    matrix: np.ndarray,
    largest: np.ndarray,
    bits: int,
    scales: str,
    first: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """The best of SHARES for each row; `first` belongs to the share 1."""

    def error(codes: np.ndarray, steps: np.ndarray) -> np.ndarray:
        decoded = levels(codes, bits) * steps.astype(np.float32)[:, None]
        return ((matrix - decoded).astype(np.float64) ** 2).sum(1)

    codes, steps = first[0].copy(), first[1].copy()
    least = error(codes, steps)
    for share in SHARES[1:]:
        tried = quantised(matrix, share * largest, bits, scales)
        errors = error(*tried)
        better = errors < least
        codes[better], steps[better] = tried[0][better], tried[1][better]
        least[better] = errors[better]
    return codes, steps
