"""Where memory is taken from: which slab, which part of it, what goes back."""

import gc

import numpy as np
import pytest

from sparsekit.execution.kernels import buffers
from sparsekit.execution.kernels.buffers import lend
from tests.sparsekit.execution.kernels.guarded import Room

ONE = 16 * 3 * 3  # floats of an array with one pixel


@pytest.fixture(autouse=True)
def nothing_idle():
    gc.collect()
    buffers.release()
    assert not buffers._slabs
    yield
    buffers.release()


def sizes() -> list[int]:
    return sorted(slab.size for slab in buffers._slabs.values())


def idle() -> list[int]:
    return [size for size, *_ in buffers._idle]


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 2), (3, 4), (3, 3)])
@pytest.mark.parametrize("planes", [1, 3])
def test_border(shape: tuple[int, int], planes: int) -> None:
    height, width = shape
    room = Room()
    array = room.array(planes, height + 2, width + 2, 16, fill=7.0)
    buffers._clear_border(array.ctypes.data, planes, height + 2, width + 2)
    expected = np.zeros_like(array)
    expected[:, 1:-1, 1:-1] = 7
    np.testing.assert_array_equal(array, expected)
    room.check()


def test_the_smallest_idle_piece_that_is_large_enough() -> None:
    arrays = [lend(1, n, 1, 1) for n in (4, 2, 3)]
    places = {n: array.ctypes.data for n, array in zip((4, 2, 3), arrays, strict=True)}
    assert sizes() == [2 * ONE, 3 * ONE, 4 * ONE]
    del arrays
    for n in (3, 2, 4):
        array = lend(1, n, 1, 1)
        assert array.ctypes.data == places[n]
        del array
    held = lend(1, 2, 1, 1)
    second = lend(1, 2, 1, 1)  # of the piece of three, whose rest stays
    assert held.ctypes.data == places[2]
    assert second.ctypes.data == places[3]
    assert idle() == [ONE, 4 * ONE]
    assert sizes() == [2 * ONE, 3 * ONE, 4 * ONE]


def test_what_fits_to_the_last_float_leaves_nothing() -> None:
    array = lend(2, 3, 4, 5)
    assert (sizes(), idle()) == ([2 * 3 * 6 * 7 * 16], [])
    del array
    array = lend(3, 2, 5, 4)
    assert (sizes(), idle()) == ([2 * 3 * 6 * 7 * 16], [])
    buffers.release()  # it is lent: it stays
    assert sizes() == [array.size]
    del array
    buffers.release()
    assert (sizes(), idle()) == ([], [])


@pytest.mark.parametrize(
    "order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1), (2, 0, 1)]
)
def test_pieces_grow_together_in_any_order(order: tuple[int, ...]) -> None:
    whole = lend(1, 6, 1, 1)
    del whole
    parts = dict(enumerate(lend(1, n, 1, 1) for n in (1, 2, 3)))
    assert (sizes(), idle()) == ([6 * ONE], [])
    for k in order:
        del parts[k]
    again = lend(1, 6, 1, 1)
    assert (sizes(), idle()) == ([6 * ONE], [])
    assert again.shape == (1, 6, 3, 3, 16)


def test_growing_gives_back_as_much_as_it_takes_large_slabs_first() -> None:
    kept = lend(1, 9, 1, 1)
    small = [lend(1, n, 1, 1) for n in (1, 2, 3, 5)]
    del small
    large = lend(1, 7, 1, 1)  # 5 and 3 go: together they are as much
    assert sizes() == [ONE, 2 * ONE, 7 * ONE, 9 * ONE]
    del large
    another = lend(1, 8, 1, 1)  # 7 and 2
    assert sizes() == [ONE, 8 * ONE, 9 * ONE]
    assert idle() == [ONE]
    del another
    lend(1, 8, 1, 1)
    assert sizes() == [ONE, 8 * ONE, 9 * ONE]
    assert kept.shape == (1, 9, 3, 3, 16)


def test_exactly_as_much_as_is_needed_goes_back() -> None:
    small = [lend(1, n, 1, 1) for n in (1, 2, 4)]
    del small
    large = lend(1, 6, 1, 1)
    assert sizes() == [ONE, 6 * ONE]
    assert large.size == 6 * ONE


def cleared(monkeypatch) -> list[int]:
    """Addresses of arrays whose border is written."""
    found: list[int] = []
    clear = buffers._clear_border

    def noted(x: int, *sizes: int) -> None:
        found.append(x)
        clear(x, *sizes)

    monkeypatch.setattr(buffers, "_clear_border", noted)
    return found


def test_a_border_is_written_once_for_a_shape(monkeypatch) -> None:
    found = cleared(monkeypatch)
    for _ in range(3):
        array = lend(1, 2, 3, 4)
        array[:, :, 1:-1, 1:-1] = 1
        del array
    assert len(found) == 1
    lend(1, 2, 4, 3)  # as large, of another shape
    lend(1, 2, 4, 3)
    assert len(found) == 2
    lend(1, 2, 3, 4)
    assert len(found) == 3
    array = lend(1, 2, 3, 4)
    array += 1  # the border too
    del array
    lend(1, 2, 3, 4)
    assert len(found) == 4


def test_a_part_that_was_lent_in_between_is_written_again(monkeypatch) -> None:
    """Not what lies beside it."""
    found = cleared(monkeypatch)
    whole = lend(1, 4, 1, 1)
    begin = whole.ctypes.data
    del whole
    parts = [lend(1, 1, 1, 1) for _ in range(4)]
    for part in parts:
        part[:, :, 1:-1, 1:-1] = 9
    addresses = [begin + 4 * ONE * k for k in range(4)]
    assert found == [begin, *addresses]
    del part, parts
    del found[:]
    parts = [lend(1, 2, 1, 1) for _ in range(2)]
    assert found == addresses[::2]
    del parts
    del found[:]
    first = lend(1, 1, 1, 1)
    second = lend(1, 1, 1, 1)
    assert found == addresses[:2]  # the third and fourth are known as a pair
    del found[:]
    pair = lend(1, 2, 1, 1)
    assert pair.ctypes.data == addresses[2]
    assert found == []
    assert first.size == second.size


def test_views_of_views_return_nothing() -> None:
    array = lend(1, 1, 4, 4)
    view = array[0][0]
    del view
    assert not buffers._returned
    assert array[0].place is None
    del array
    assert len(buffers._returned) == 1
