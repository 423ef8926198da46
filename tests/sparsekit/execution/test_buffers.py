"""Memory of blocked arrays: never in two hands, border zero, used again."""

import gc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekit.execution.kernels import buffers
from sparsekit.execution.kernels.buffers import lend

SHAPES = [(1, 1, 1, 1), (1, 3, 4, 5), (2, 3, 4, 5), (1, 2, 2, 2), (2, 5, 7, 3)]


@pytest.fixture(autouse=True)
def nothing_idle():
    buffers.release()
    yield
    buffers.release()


def held() -> int:
    """Floats that were taken from the system."""
    return sum(slab.size for slab in buffers._slabs.values())


def inside(array: np.ndarray) -> np.ndarray:
    return array[:, :, 1:-1, 1:-1]


def border_is_zero(array: np.ndarray) -> bool:
    copy = np.array(array)
    inside(copy)[:] = 0
    return not copy.any()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SHAPES), st.integers(0, 5)), max_size=60))
def test_whoever_holds_an_array_holds_it_alone(calls) -> None:
    mine: dict[int, tuple[np.ndarray, int]] = {}
    for number, (shape, gone) in enumerate(calls, 1):
        array = lend(*shape)
        assert array.shape == (*shape[:2], shape[2] + 2, shape[3] + 2, 16)
        assert array.ctypes.data % 64 == 0
        assert border_is_zero(array)
        inside(array)[:] = number
        mine[number] = array, number
        mine.pop(number - gone, None)
        for other, value in mine.values():
            assert (inside(other) == value).all()
            assert border_is_zero(other)


def test_the_same_calls_again_take_nothing_from_the_system() -> None:
    def step() -> None:
        early = [lend(1, 8, 16, 16) for _ in range(4)]
        late = [lend(1, 16, 8, 8) for _ in range(6)]
        late += [lend(1, 32, 4, 4) for _ in range(6)]
        del late
        gradients = [lend(1, 8, 16, 16) for _ in range(3)]
        del early, gradients

    step()
    step()
    first, sizes = held(), [16 * 8 * 18**2, 16 * 16 * 10**2, 16 * 32 * 6**2]
    alive = 4 * sizes[0] + 6 * sizes[1] + 6 * sizes[2]  # before the gradients
    assert alive <= first < 1.15 * alive  # the gradients lie where the late ones were
    for _ in range(3):
        step()
    assert held() == first


def test_a_large_array_is_cut_for_small_ones_which_grow_together() -> None:
    large = lend(1, 4, 30, 30)
    address, room = large.ctypes.data, held()
    large += 1  # the border too: whoever does that harms nobody later
    del large
    small = [lend(1, 1, 30, 30) for _ in range(4)]
    assert held() == room
    assert all(border_is_zero(array) for array in small)
    assert {array.ctypes.data for array in small} == {
        address + 4 * 32 * 32 * 16 * k for k in range(4)
    }
    del small[1], small[0], small[1], small[0]
    again = lend(1, 4, 30, 30)
    assert (again.ctypes.data, held()) == (address, room)
    assert border_is_zero(again)


def test_memory_of_another_shape_goes_back() -> None:
    """A network with larger arrays does not hold the small ones of the one before."""
    small = [lend(1, 1, 6, 6) for _ in range(8)]
    del small
    large = lend(1, 8, 6, 6)
    assert held() == large.size


def test_views_keep_the_memory() -> None:
    view = lend(1, 2, 3, 3)[0, 1]
    view[1:-1, 1:-1] = 7
    other = lend(1, 2, 3, 3)
    inside(other)[:] = 0
    assert (view[1:-1, 1:-1] == 7).all()
    del view, other
    gc.collect()
    buffers.release()
    assert held() == 0


def test_nothing_is_lent_for_no_images() -> None:
    assert lend(0, 3, 4, 4).shape == (0, 3, 6, 6, 16)
