"""Inference with pixels innermost: geometry, sizes and every loop, guarded.

Memory around planes is NaN, what lies behind the pixels of a plane is anything.
"""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sparsekit.execution.kernels import depthwise as depthwise_blocks
from sparsekit.execution.kernels import pixels
from sparsekit.execution.kernels.pixels import Finish, Window
from sparsekit.execution.kernels.vectors import VECTORS
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


windows = st.builds(
    Window, st.integers(5, 12), st.integers(5, 40),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(*[st.integers(0, 3)] * 4),
)  # fmt: skip


def padded(x: torch.Tensor, window: Window) -> torch.Tensor:
    top, left, bottom, right = window.padding
    return F.pad(x.double(), (left, right, top, bottom))


@given(windows)
def test_geometry(window: Window) -> None:
    """Phase plane (a, b) is every s-th pixel from (a, b) on; so taps find theirs."""
    image = torch.arange(window.height * window.width, dtype=torch.float32) + 1
    image = padded(image.view(1, 1, window.height, window.width), window)[0, 0].numpy()
    (down, across), (rows, columns) = window.stride, window.phase
    y = F.conv2d(torch.zeros(1, 1, *image.shape), torch.zeros(1, 1, *window.kernel),
                 stride=window.stride)  # fmt: skip
    assert window.out == tuple(y.shape[2:])
    phases = np.zeros((down, across, rows, columns))
    for a, b in np.ndindex(down, across):
        part = image[a::down, b::across][:rows, :columns]
        phases[a, b, : part.shape[0], : part.shape[1]] = part
    assert window.copy_floats == phases.size
    assert window.spare == 16 * (2 + cut(window.out[1])[0])
    taps = window.taps()
    assert taps.dtype == np.int32
    for k, (kh, kw) in enumerate(np.ndindex(window.kernel)):
        for h, w in ((0, 0), (window.out[0] - 1, window.out[1] - 1)):
            place = taps[k] + h * columns + w
            assert phases.flat[place] == image[h * down + kh, w * across + kw]

    room, copies = Room(), 2
    x = room.array(1, copies, window.height * window.width)
    x[0] = np.arange(x[0].size).reshape(copies, -1) + 1
    out = room.array(1, copies * window.copy_floats)
    call = pixels.pad_phases(x, window, out)
    in_parts(call._run.args[0], copies, *call._run.args[2:])
    assert call._run.args[1] == copies
    first, second = out.reshape(copies, *phases.shape)
    np.testing.assert_array_equal(first, phases)
    inside = phases > 0
    np.testing.assert_array_equal(second[inside], phases[inside] + x[0, 0].size)
    assert not second[~inside].any()
    room.check()


@pytest.mark.parametrize("vectors", [16, 4])
@pytest.mark.parametrize("height", [1, 2, 7, 32])
@pytest.mark.parametrize("width", [1, 15, 16, 17, 32, 33, 250, 256, 257, 700])
def test_room_of_a_plane(monkeypatch, vectors: int, height: int, width: int) -> None:
    monkeypatch.setattr(pixels, "VECTORS", vectors)
    assert pixels._tiles(width) == cut(width)
    room = pixels.plane_floats(height, width)
    whole, by_rows = floats_of(height * width), cut(width)[0] + 1
    by_rows = 16 * (-(-height * width // 16) + by_rows)
    least = max(whole, by_rows)
    assert room == (least if least % 512 else least + 16)
    window = Window(height, width, (1, 1), (1, 1), (0, 0, 0, 0))
    columns = cut(width)[1]
    assert pixels._tile(window) == (max(1, min(vectors // columns, height)), columns)
    assert pixels._rows(window) == (height, width, width, height, cut(width)[0])
    assert pixels._row_floats(window) == floats_of(width)


@given(st.integers(0, 3000), st.integers(1, 60), st.integers(1, 200),
       st.integers(0, 60))  # fmt: skip
def test_width_of_blocks(nnz: int, rows: int, channels: int, near: int) -> None:
    """As many channels as are near, more if a row has not 28 non-zeros in them."""
    few = 28 * rows * channels // max(1, nnz)
    most = min(channels, max(1, near, few))
    blocks = max(1, round(channels / most))
    width = pixels.block_width(nnz, rows, channels, near)
    assert width == -(-channels // blocks)


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


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks of few channels; every call says how long it takes."""
    monkeypatch.setattr(pixels, "NEAR", 4096)
    monkeypatch.setattr(pixels, "NONZEROS", 2)
    monkeypatch.setattr(pixels, "WORTH", 0)


def guess(call: pixels.Call) -> float:
    """Operations; a processor is said to do 100 of them in a nanosecond."""
    return round(100 * call._run.keywords["nanoseconds"])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4), (1, 17), (9, 29), (3, 130)])
@pytest.mark.parametrize("outputs", [1, 7, 8, 17, 37])
@pytest.mark.parametrize("ending", [0, 1, 2])
def test_pointwise(size: tuple[int, int], outputs: int, ending: int) -> None:
    images = 1 + outputs % 2
    case = Case(Window(*size, (1, 1), (1, 1), (0,) * 4), 23, outputs, images, ending)
    pixels_ = size[0] * size[1]
    weight = kernel_of(outputs, 23, density=0.6)
    rows = pixels.pointwise_weight(*sparse(weight), 23, pixels_)
    tiles, vectors = cut(pixels_)
    nnz = np.count_nonzero(weight)
    width = pixels.block_width(nnz, outputs, 23, 4096 // (64 * vectors))
    assert rows.starts.shape == (-(-23 // width) + 1, outputs)
    call = pixels.pointwise(case.x, rows, case.y, pixels_, case.to)
    parts = max(1, min(outputs // 8, 8 // (images * tiles)))
    expected = torch.einsum("oc,nchw->nohw", torch.from_numpy(weight).double(),
                            case.images.double())  # fmt: skip
    case.check(call, expected, images * tiles * parts)
    assert guess(call) == 2 * nnz * images * floats_of(pixels_)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("outputs", [3, 17, 26])
@pytest.mark.parametrize("ending", [0, 1, 2])
def test_direct(window: Window, outputs: int, ending: int) -> None:
    images, channels = 1 + outputs % 2, 11
    case = Case(window, channels, outputs, images, ending)
    weight = kernel_of(outputs, channels, *window.kernel, density=0.5)
    rows = pixels.direct_weight(*sparse(weight), channels, window)
    tall, wide = pixels._tile(window)
    nnz = np.count_nonzero(weight)
    near = 4096 // (4 * (tall + 2) * (16 * wide + 2))
    width = pixels.block_width(nnz, outputs, channels, near)
    assert rows.starts.shape == (-(-channels // width) + 1, outputs)
    copy = case.room.array(images, channels * window.copy_floats + window.spare)
    pad, conv = pixels.direct(case.x, rows, case.y, window, copy, case.to)
    pad()
    expected = F.conv2d(
        padded(case.images, window), torch.from_numpy(weight).double(),
        stride=window.stride,
    )  # fmt: skip
    parts = max(1, min(outputs // 8, 8 // images))
    case.check(conv, expected, images * parts)
    assert guess(pad) == images * channels * window.copy_floats
    row = window.out[0] * floats_of(window.out[1])
    assert guess(conv) == 2 * nnz * images * row


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("ending", [0, 1, 2])
def test_depthwise(window: Window, ending: int) -> None:
    case = Case(window, 5, 5, ending=ending)
    weight = kernel_of(5, 1, *window.kernel, density=0.6)
    rows = pixels.depthwise_weight(*sparse(weight), window)
    call = pixels.depthwise(case.x, rows, case.y, window, case.to)
    image = padded(case.images, window)
    kernels = torch.from_numpy(weight).double()
    expected = F.conv2d(image, kernels, stride=window.stride, groups=5)
    case.check(call, expected, 2 * 5)
    row = window.out[0] * floats_of(window.out[1])
    assert guess(call) == 2 * np.count_nonzero(weight) * 2 * row


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("window", SMALL)
@pytest.mark.parametrize("ending", [0, 1, 2])
def test_small_depthwise(window: Window, ending: int) -> None:
    case = Case(window, 5, 5, ending=ending)
    weight = case.room.copy(kernel_of(5, 1, *window.kernel))
    flat = weight.reshape(5, -1)
    call = pixels.small_depthwise(case.x, flat, case.y, window, case.to)
    image = padded(case.images, window)
    kernels = torch.from_numpy(weight).double()
    expected = F.conv2d(image, kernels, stride=window.stride, groups=5)
    case.check(call, expected, 2 * 5)
    row = window.out[0] * floats_of(window.out[1])
    assert guess(call) == 2 * weight.size * 2 * row


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("window", SMALL)
@pytest.mark.parametrize("outputs", [1, 16, 17, 35])
def test_dense(window: Window, outputs: int) -> None:
    case = Case(window, 3, outputs, ending=outputs % 3)
    weight = kernel_of(outputs, 3, *window.kernel)
    call = pixels.dense(case.x, weight, case.y, window, case.to)
    expected = F.conv2d(
        padded(case.images, window), torch.from_numpy(weight).double(),
        stride=window.stride,
    )  # fmt: skip
    case.check(call, expected, 2 * -(-outputs // min(outputs, VECTORS)))
    row = window.out[0] * floats_of(window.out[1])
    assert guess(call) == 2 * weight.size * 2 * row


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("window", SMALL)
@pytest.mark.parametrize("ending", [0, 1, 2])
def test_expanded_depthwise(window: Window, ending: int) -> None:
    case = Case(window, 7, 5, ending=ending)
    matrix = kernel_of(5, 7, density=0.6, seed=2)
    inner = Finish(case.room.copy(np.linspace(-1, 1, 5, dtype=np.float32)), None,
                   (-0.25, 6.0))  # fmt: skip
    weight = case.room.copy(kernel_of(5, 1, *window.kernel))
    flat = weight.reshape(5, -1)
    call = pixels.expanded_depthwise(
        case.x, sparse(matrix), inner, flat, case.y, window, case.to
    )
    between = torch.einsum("oc,nchw->nohw", torch.from_numpy(matrix).double(),
                           case.images.double())  # fmt: skip
    between = between + torch.from_numpy(inner.bias).view(-1, 1, 1)
    image = padded(between.clamp(*inner.clip), window)
    kernels = torch.from_numpy(weight).double()
    expected = F.conv2d(image, kernels, stride=window.stride, groups=5)
    case.check(call, expected, 2 * 5)
    row = window.out[0] * floats_of(window.out[1])
    inside = np.count_nonzero(matrix) * floats_of(window.height * window.width)
    assert guess(call) == 2 * 2 * (weight.size * row + inside)


@pytest.mark.parametrize("window", WINDOWS)
def test_small_windows(window: Window) -> None:
    (rows, columns), (down, across) = window.kernel, window.stride
    small = rows == columns and rows in (3, 5) and down == across and down in (1, 2)
    assert pixels.is_small(window) is small
    assert pixels.is_small(window._replace(stride=(3, 3))) is False
    assert pixels.is_small(window._replace(kernel=(7, 7))) is False


def test_short_calls_stay_on_their_thread(monkeypatch) -> None:
    monkeypatch.setattr(pixels, "WORTH", 100_000)
    for nanoseconds, said in ((99_999, 0), (100_000, 100_000), (300_000, 300_000)):
        call = pixels.Call(print, 3, work=100.0 * nanoseconds, keep=None)
        assert call._run.args == (print, 3)
        assert call._run.keywords == {"nanoseconds": said}


@pytest.mark.parametrize("height", range(1, 40))
def test_rows_of_a_block(height: int) -> None:
    most = min(14, VECTORS)
    count = next(n for n in itertools.count(1) if -(-height // n) <= most)
    assert depthwise_blocks.rows_of_block(height) == -(-height // count)
