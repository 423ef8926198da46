"""Arrays over memory that somebody else owns, given by its address.

Kernels take addresses: an integer costs a call 0.1 us, an array 1 us.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic


@intrinsic
def _pointer(context: Any, address: Any) -> Any:
    """int64 -> void *"""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@njit(inline="always")
def floats(address: int, n: int) -> Any:
    """(n,) float32 at an address; nothing is checked."""
    return carray(_pointer(address), (n,), np.float32)


@njit(inline="always")
def integers(address: int, n: int) -> Any:
    """(n,) int32 at an address; nothing is checked."""
    return carray(_pointer(address), (n,), np.int32)


@njit(inline="always")
def doubles(address: int, n: int) -> Any:
    """(n,) float64 at an address; nothing is checked."""
    return carray(_pointer(address), (n,), np.float64)


@njit(inline="always")
def small_integers(address: int, n: int) -> Any:
    """(n,) int8 at an address; nothing is checked."""
    return carray(_pointer(address), (n,), np.int8)


@njit(inline="always")
def long_integers(address: int, n: int) -> Any:
    """(n,) int64 at an address; nothing is checked."""
    return carray(_pointer(address), (n,), np.int64)
