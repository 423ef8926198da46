"""A batch in tiles: every sample once, absent ones 0, nothing beyond the ends."""

import numpy as np
import pytest

from sparsekit.execution.kernels import samples
from sparsekit.execution.kernels.samples import Tiles
from sparsekit.execution.kernels.vectors import VECTORS
from tests.sparsekit.execution.kernels.guarded import Room, in_parts, runs

BATCHES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 48, 64, 100, 129, 250, 257]
FEATURES = 21  # more than one vector, no multiple of one


@pytest.mark.parametrize("batch", [*BATCHES, 500, 1000])
def test_tiles_are_the_cheapest(batch: int) -> None:
    """Each reads all non-zeros, which takes as long as one and a half vectors."""
    tiles = Tiles(batch)
    assert tiles.lanes == (4 if batch <= 4 else 16)
    sizes = {n for n in (1, 2, 3, 4, 6, 8, 12, 16) if n <= VECTORS}
    assert set(samples.SIZES) == sizes
    needed = -(-batch // tiles.lanes)
    cost = {n: -(-needed // n) * (n + 1.5) for n in sizes}
    assert cost[tiles.vectors] == min(cost.values())
    assert tiles.samples == tiles.lanes * tiles.vectors
    assert tiles.count == -(-needed // tiles.vectors)


def test_a_few_batches() -> None:
    found = {n: (Tiles(n).lanes, Tiles(n).vectors, Tiles(n).count)
             for n in (1, 4, 5, 16, 17, 64, 80)}  # fmt: skip
    assert found == {
        1: (4, 1, 1), 4: (4, 1, 1), 5: (16, 1, 1), 16: (16, 1, 1), 17: (16, 2, 1),
        64: (16, 4, 1), 80: (16, 6, 1) if VECTORS > 4 else (16, 3, 2),
    }  # fmt: skip


def layouts(x: np.ndarray, room: Room) -> dict[str, np.ndarray]:
    """Arrays of the same content, in memory that is guarded."""
    batch, features = x.shape
    wide = room.array(batch, 3 * features)
    wide[:, ::3] = x
    gaps = room.array(features, batch + 2)
    gaps[:, :batch] = x.T
    return {
        "rows": room.copy(x), "features": room.copy(x.T).T, "every third": wide[:, ::3],
        "features with gaps": gaps.T[:batch],
    }  # fmt: skip


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("features", [1, 15, 16, 17, FEATURES])
def test_read(batch: int, features: int) -> None:
    x = np.random.default_rng(0).standard_normal((batch, features)).astype(np.float32)
    tiles, room = Tiles(batch), Room()
    for array in layouts(x, room).values():
        beside = array.strides[0] == 4  # samples
        in_place = beside and batch == tiles.samples
        assert tiles.fits(array) is in_place
        with runs() as made:
            address, per_tile, per_feature = tiles.read(array, "test")
        expected = np.zeros((tiles.count * tiles.samples, features), np.float32)
        expected[:batch] = x
        for tile in range(tiles.count):
            for f in range(features):
                place = address + tile * per_tile + f * per_feature
                first = tile * tiles.samples
                part = expected[first : first + tiles.samples, f]
                np.testing.assert_array_equal(seen(place, tiles.samples), part)
        if in_place:
            assert (address, made) == (array.ctypes.data, [])
        else:
            assert address % 64 == 0
            ((kernel, tasks, options),) = made
            assert kernel == ("_copy_in" if beside else "_transpose_in")
            assert tasks == tiles.count * -(-features // 16)
            assert options == {"nanoseconds": batch * features / 2}
    room.check()


def seen(address: int, n: int) -> np.ndarray:
    """What lies there, copied."""
    from ctypes import c_float

    return np.array((c_float * n).from_address(address), np.float32)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("features", [1, 16, FEATURES])
def test_write(batch: int, features: int) -> None:
    tiles, room = Tiles(batch), Room()
    y = room.array(features, batch).T
    target = tiles.write(y, "test")
    address, per_tile, per_feature = target.place
    value = np.random.default_rng(0).standard_normal((batch, features))
    value = value.astype(np.float32)
    assert target.packed is (batch != tiles.samples)
    for s, f in np.ndindex(value.shape):
        tile, lane = divmod(s, tiles.samples)
        place = address + tile * per_tile + f * per_feature + 4 * lane
        put(place, value[s, f])
    with runs() as made:
        target.finish()
    np.testing.assert_array_equal(y, value)
    if target.packed:
        assert address % 64 == 0
        work = {"nanoseconds": batch * features / 2}
        assert made == [("_copy_out", features, work)]
    else:
        assert made == []
    room.check()


def put(address: int, value: float) -> None:
    from ctypes import c_float

    c_float.from_address(address).value = value


@pytest.mark.parametrize("batch", [9, 40])
@pytest.mark.parametrize("kernel", ["copy", "transpose", "out"])
def test_tasks_in_any_parts(batch: int, kernel: str) -> None:
    """Threads take them so; the packed copy is guarded too."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, FEATURES)).astype(np.float32)
    per_tile, count, room = 32, -(-batch // 32), Room()
    packed = np.zeros((count, FEATURES, per_tile), np.float32)
    for s in range(batch):
        packed[s // per_tile, :, s % per_tile] = x[s]
    parts = -(-FEATURES // 16)
    if kernel == "out":
        source, y = room.copy(packed), room.array(FEATURES, batch)
        addresses = source.ctypes.data, batch, FEATURES, per_tile, y.ctypes.data
        in_parts(samples._copy_out, FEATURES, *addresses)
        np.testing.assert_array_equal(y.T, x)
    else:
        feature_major = kernel == "copy"
        source = room.copy(x.T if feature_major else x)
        out = room.array(count, FEATURES, per_tile)
        strides = (1, batch) if feature_major else (FEATURES, 1)
        pack = samples._copy_in if feature_major else samples._transpose_in
        in_parts(
            pack, count * parts, source.ctypes.data, batch, FEATURES, *strides,
            per_tile, out.ctypes.data,
        )  # fmt: skip
        np.testing.assert_array_equal(out, packed)
    room.check()


def test_memory_of_two_names_is_not_shared() -> None:
    tiles = Tiles(5)
    x, y = np.ones((5, 3), np.float32), np.full((5, 3), 2, np.float32)
    first, second = tiles.read(x, "x"), tiles.read(y, "y")
    assert seen(first[0], 5).tolist() == [1] * 5
    assert seen(second[0], 5).tolist() == [2] * 5
