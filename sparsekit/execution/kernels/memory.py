"""Arrays over memory that is given by its address, and memory that suits vectors.

Kernels take addresses: an integer costs a call 0.1 us, an array 1 us. A vector that
does not begin at a multiple of 64 bytes crosses cache lines.
"""

import math
import threading
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray


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


@njit(inline="always")
def aligned(address: int) -> int:
    """The first multiple of 64 from an address on."""
    return (address + 63) & ~63


def zeros(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """float32 that begin at a multiple of 64 bytes, so that vectors stay whole."""
    size = math.prod(shape)
    memory = np.zeros(size + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    return memory[first : first + size].reshape(shape)


_kept = threading.local()


def scratch(name: str, size: int) -> int:
    """Address of `size` bytes, a multiple of 64: this thread's memory of that name.

    It holds anything, and is used again: fresh pages cost more than a copy.
    """
    array, address = getattr(_kept, name, (b"", 0))
    if len(array) < size + 64:
        array = np.empty(size + 64, np.uint8)
        address = array.ctypes.data + -array.ctypes.data % 64
        setattr(_kept, name, (array, address))
    return address
