"""The samples of a batch side by side, in tiles that fit the registers."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsekit.execution import threads
from sparsekit.execution.kernels.memory import floats, scratch
from sparsekit.execution.kernels.vectors import LANES, VECTORS

Floats = NDArray[np.float32]

FEW = 4  # samples that fit a short vector
SIZES = tuple(n for n in (1, 2, 3, 4, 6, 8, 12, 16) if n <= VECTORS)


class Tiles:
    """A batch cut into tiles of `vectors` vectors of `lanes` samples.

    Attributes:
        count: of tiles; the last may hold samples that do not exist.
    """

    def __init__(self, batch: int):
        self.batch = batch
        self.lanes = FEW if batch <= FEW else LANES
        needed = -(-batch // self.lanes)
        # a vector more costs less than a tile more, whose non-zeros are read again
        self.vectors = min(SIZES, key=lambda size: -(-needed // size) * (size + 1.5))
        self.count = -(-needed // self.vectors)
        self.samples = self.lanes * self.vectors

    def fits(self, x: Floats) -> bool:
        """Does a kernel read and write it where it is?"""
        return x.strides[0] == 4 and self.batch == self.samples

    def read(self, x: Floats, name: str) -> tuple[int, int, int]:
        """Address, bytes to the next tile, bytes to the next feature.

        name: of the memory for a packed copy.
        """
        if self.fits(x):
            return x.ctypes.data, 0, x.strides[1]
        place = self.scratch(x.shape[1], name)
        sample, feature = (stride // 4 for stride in x.strides)
        pack = _copy_in if sample == 1 else _transpose_in
        tasks = self.count * -(-x.shape[1] // LANES)
        threads.run(
            pack, tasks, x.ctypes.data, *x.shape, sample, feature, self.samples,
            place[0], nanoseconds=x.size / 2,
        )  # fmt: skip
        return place

    def write(self, y: Floats, name: str) -> "_Target":
        if self.fits(y):
            return _Target(self, y, (y.ctypes.data, 0, y.strides[1]), False)
        return _Target(self, y, self.scratch(y.shape[1], name), True)

    def scratch(self, features: int, name: str) -> tuple[int, int, int]:
        row = 4 * self.samples
        return scratch(name, self.count * features * row), features * row, row


class _Target:
    """Where a kernel writes, and how it gets from there to where it belongs."""

    def __init__(
        self, tiles: Tiles, y: Floats, place: tuple[int, int, int], packed: bool
    ):
        self.tiles, self.y, self.place, self.packed = tiles, y, place, packed

    def finish(self) -> None:
        if self.packed:
            threads.run(
                _copy_out, self.y.shape[1], self.place[0], *self.y.shape,
                self.tiles.samples, self.y.ctypes.data, nanoseconds=self.y.size / 2,
            )  # fmt: skip


@njit(nogil=True, cache=True)
def _copy_in(begin, end, x, batch, features, per_sample, per_feature, samples, out):  # type: ignore[no-untyped-def]
    """Tiles of samples that lie side by side; those that do not exist are 0."""
    parts = (features + LANES - 1) // LANES
    for task in range(begin, end):
        tile = task // parts
        first = (task - tile * parts) * LANES
        count = min(samples, batch - tile * samples)
        for f in range(first, min(features, first + LANES)):
            source = floats(x + 4 * (f * per_feature + tile * samples), count)
            target = floats(out + 4 * samples * (tile * features + f), samples)
            target[:count] = source
            target[count:] = 0


@njit(nogil=True, cache=True)
def _transpose_in(  # type: ignore[no-untyped-def]
    begin, end, x, batch, features, per_sample, per_feature, samples, out
):  # fmt: skip
    """Tiles of an array of any strides."""
    parts = (features + LANES - 1) // LANES
    for task in range(begin, end):
        tile = task // parts
        first = (task - tile * parts) * LANES
        width = min(LANES, features - first)
        count = min(samples, batch - tile * samples)
        target = floats(out + 4 * samples * (tile * features + first), width * samples)
        if count < samples:
            target[:] = 0
        for s in range(count):
            place = x + 4 * ((tile * samples + s) * per_sample + first * per_feature)
            source = floats(place, (width - 1) * per_feature + 1)
            for f in range(width):
                target[f * samples + s] = source[f * per_feature]


@njit(nogil=True, cache=True)
def _copy_out(begin, end, y, batch, features, samples, out):  # type: ignore[no-untyped-def]
    for f in range(begin, end):
        target = floats(out + 4 * f * batch, batch)
        for tile in range((batch + samples - 1) // samples):
            count = min(samples, batch - tile * samples)
            source = floats(y + 4 * samples * (tile * features + f), count)
            target[tile * samples : tile * samples + count] = source
