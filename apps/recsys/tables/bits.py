"""Numbers of 1 to 8 bits, packed without gaps; each row begins with a new byte."""

import numpy as np


def width(d: int, bits: int) -> int:
    """Bytes of a row of d numbers."""
    return (d * bits + 7) // 8


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """codes: [n, d] uint8 below 2^bits -> [n, ceil(d bits / 8)] uint8.

    The lowest bit comes first: number j of a row takes its bits j*bits and following.

    >>> pack(np.array([[1, 2, 3]], np.uint8), 4).tolist()
    [[33, 3]]
    """
    if bits == 8:
        return np.ascontiguousarray(codes)
    n, d = codes.shape
    if bits == 4:
        padded = np.zeros((n, d + d % 2), np.uint8)
        padded[:, :d] = codes
        return padded[:, ::2] | padded[:, 1::2] << 4
    expanded = np.unpackbits(codes[:, :, None], axis=2, count=bits, bitorder="little")
    return np.packbits(expanded.reshape(n, d * bits), axis=1, bitorder="little")


def unpack(packed: np.ndarray, d: int, bits: int) -> np.ndarray:
    """The [n, d] uint8 that were packed.

    >>> unpack(np.array([[33, 3]], np.uint8), 3, 4).tolist()
    [[1, 2, 3]]
    """
    if bits == 8:
        return packed
    n = len(packed)
    if bits == 4:
        codes = np.empty((n, 2 * packed.shape[1]), np.uint8)
        codes[:, ::2] = packed & 15
        codes[:, 1::2] = packed >> 4
        return codes[:, :d]
    spread = np.unpackbits(packed, axis=1, count=d * bits, bitorder="little")
    spread = spread.reshape(n, d, bits)
    codes = spread[:, :, 0].copy()
    for place in range(1, bits):
        codes |= spread[:, :, place] << place
    return codes


def padding_is_zero(packed: np.ndarray, d: int, bits: int) -> bool:
    """Whether the bits after the last number of each row are 0."""
    used = d * bits % 8
    return used == 0 or not (packed[:, -1] >> used).any()
