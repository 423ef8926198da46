"""Memory that suits vectors, and arrays at addresses."""

import threading

import numpy as np
import pytest
from numba import njit

from sparsekit.execution.kernels import memory


@njit
def first_multiple(address):
    return memory.aligned(address)


def test_the_first_multiple_of_64() -> None:
    for address in [*range(130), 2**40 - 1, 2**40, 2**40 + 1]:
        assert first_multiple(address) == -(-address // 64) * 64


@pytest.mark.parametrize("shape", [(1,), (3, 5), (16,), (2, 1, 4), (1000, 17)])
def test_zeros(shape: tuple[int, ...]) -> None:
    for _ in range(20):
        array = memory.zeros(shape)
        assert (array.shape, array.dtype) == (shape, np.float32)
        assert array.flags.c_contiguous
        assert array.ctypes.data % 64 == 0
        assert not array.any()
        before = array.base.ctypes.data
        after = before + array.base.nbytes
        assert before <= array.ctypes.data
        assert array.ctypes.data + array.nbytes <= after
        array[...] = 1


def test_scratch_is_used_again_and_grows() -> None:
    name = "test of memory"
    address = memory.scratch(name, 1000)
    assert address % 64 == 0
    room, known = getattr(memory._kept, name)
    assert known == address
    begin = room.ctypes.data
    assert begin <= address
    assert address + 1000 <= begin + len(room) <= begin + 1064
    for size in (0, 1, 999, 1000):
        assert memory.scratch(name, size) == address
    for size in (1001, 1063, 1064, 1065, 50_000, 3_000_000):
        address = memory.scratch(name, size)
        room, _ = getattr(memory._kept, name)
        assert address % 64 == 0
        assert room.ctypes.data <= address
        assert address + size <= room.ctypes.data + len(room)
        assert len(room) <= size + 64
        assert memory.scratch(name, size) == address
    assert memory.scratch("another test of memory", 1000) != address


def test_scratch_of_another_thread_is_another() -> None:
    mine = memory.scratch("test", 100)
    found: list[int] = []
    other = threading.Thread(target=lambda: found.append(memory.scratch("test", 100)))
    other.start()
    other.join()
    assert found != [mine]
    assert memory.scratch("test", 100) == mine


@pytest.mark.parametrize(("view", "kind"), [
    ("floats", np.float32), ("integers", np.int32), ("doubles", np.float64),
    ("small_integers", np.int8), ("long_integers", np.int64),
])  # fmt: skip
def test_arrays_at_addresses(view: str, kind: type) -> None:
    at = getattr(memory, view)

    @njit
    def change(address, n):
        array = at(address, n)
        array[1] = array[2]
        return len(array)

    array = np.arange(5).astype(kind)
    assert change(array.ctypes.data, 4) == 4
    assert array.tolist() == [0, 2, 2, 3, 4]
    assert change(array[1:].ctypes.data, 3) == 3
    assert array.tolist() == [0, 2, 3, 3, 4]
