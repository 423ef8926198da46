"""Geometry and sizes of images with pixels innermost, and their padded copies."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sparsekit.execution.kernels import pixels
from sparsekit.execution.kernels.pixels import Window
from tests.sparsekit.execution.kernels.guarded import Room, in_parts
from tests.sparsekit.execution.kernels.planes import WINDOWS, cut, floats_of, padded

windows = st.builds(
    Window, st.integers(5, 12), st.integers(5, 40),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(*[st.integers(0, 3)] * 4),
)  # fmt: skip


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
