"""What tests of kernels with pixels innermost have in common.

Memory around planes is NaN, what lies behind the pixels of a plane is anything.
"""

import numpy as np
import torch
import torch.nn.functional as F

from sparsekit.execution.kernels import pixels
from sparsekit.execution.kernels.pixels import Finish, Window
from tests.sparsekit.execution.kernels.guarded import Room, in_parts

WINDOWS = [
    Window(7, 9, (3, 3), (1, 1), (1, 1, 1, 1)),
    Window(9, 18, (3, 3), (2, 2), (1, 1, 1, 1)),
    Window(8, 17, (3, 3), (2, 2), (0, 0, 1, 1)),
    Window(6, 40, (5, 5), (1, 1), (2, 2, 2, 2)),
    Window(11, 35, (5, 5), (2, 2), (2, 1, 0, 2)),
    Window(31, 5, (3, 3), (1, 1), (0, 1, 2, 0)),
    Window(5, 300, (3, 3), (1, 1), (1, 1, 1, 1)),
    Window(9, 16, (1, 4), (1, 2), (0, 3, 0, 0)),
    Window(10, 15, (4, 2), (3, 1), (3, 0, 1, 1)),
    Window(3, 3, (3, 3), (1, 1), (0, 0, 0, 0)),
    Window(12, 20, (2, 2), (2, 3), (0, 1, 1, 0)),
]
SMALL = [w for w in WINDOWS if w.kernel[0] in (3, 5) and w.stride[0] == w.stride[1]]
CLIPS = [(-0.5, 1.25), (-np.inf, np.inf)]


def cut(length: int) -> tuple[int, int]:
    """(tiles, vectors of each) for so many pixels: as few tiles as registers allow."""
    vectors = -(-length // 16)
    tiles = next(n for n in range(1, 999) if -(-vectors // n) <= pixels.VECTORS)
    return tiles, -(-vectors // tiles)


def floats_of(length: int) -> int:
    tiles, vectors = cut(length)
    return tiles * vectors * 16


def padded(x: torch.Tensor, window: Window) -> torch.Tensor:
    top, left, bottom, right = window.padding
    return F.pad(x.double(), (left, right, top, bottom))


def sparse(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    flat = weight.reshape(len(weight), -1)
    crow = np.r_[0, (flat != 0).sum(1).cumsum()].astype(np.int32)
    rows, col = flat.nonzero()
    return flat[rows, col], crow, col.astype(np.int32)


def kernel_of(*shape: int, density: float = 1.0, seed: int = 1) -> np.ndarray:
    """An empty row among them, if there are several."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(shape).astype(np.float32)
    weight *= rng.random(shape) < density
    if len(weight) > 2 and density < 1:
        weight[1] = 0
    return weight


class Case:
    """Input planes, room for the output, and how a layer ends."""

    def __init__(
        self, window: Window, channels: int, outputs: int, images: int = 2,
        ending: int = 0,
    ):  # fmt: skip
        torch.manual_seed(0)
        self.room, self.window, self.outputs = Room(), window, outputs
        self.images = torch.randn(images, channels, window.height, window.width)
        self.x = self.planes(self.images)
        residual = torch.randn(images, outputs, *window.out) if ending != 1 else None
        bias = torch.randn(outputs).numpy()
        self.to = Finish(
            self.room.copy(bias), None if residual is None else self.planes(residual),
            CLIPS[ending % 2],
        )  # fmt: skip
        self.residual = 0 if residual is None else residual
        size = pixels.plane_floats(*window.out)
        self.y = self.room.array(images, outputs, size)

    def planes(self, images: torch.Tensor) -> np.ndarray:
        n, c, h, w = images.shape
        planes = self.room.array(n, c, pixels.plane_floats(h, w))
        planes[:, :, : h * w] = images.reshape(n, c, -1).numpy()
        return planes

    def check(self, call: pixels.Call, expected: torch.Tensor, tasks: int) -> None:
        """Also if threads take any parts of it."""
        kernel, found, *arguments = call._run.args
        assert found == tasks
        expected = expected + torch.from_numpy(self.to.bias).view(-1, 1, 1)
        expected = (expected + self.residual).clamp(*self.to.clip)
        for run in (call, lambda: in_parts(kernel, tasks, *arguments)):
            self.y[:] = np.nan
            run()
            n, o, h, w = expected.shape
            y = self.y[:, :, : h * w].reshape(n, o, h, w)
            np.testing.assert_allclose(y, expected, rtol=1e-4, atol=2e-5)
        self.room.check()


def guess(call: pixels.Call) -> float:
    """Operations; a processor is said to do 100 of them in a nanosecond."""
    return round(100 * call._run.keywords["nanoseconds"])


def check_zeros(call: pixels.Call, width: int) -> None:
    """What rows outside of the image are read from: a vector more on either side."""
    zeros = call._keep[-1]
    assert zeros.size == 16 + width + 16
    assert not zeros.any()
    assert zeros.ctypes.data + 64 in call._run.args
