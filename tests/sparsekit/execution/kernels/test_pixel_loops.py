"""Loops with pixels innermost, in all parts of their tasks, against torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparsekit.execution.kernels import pixels
from sparsekit.execution.kernels.pixels import Window
from tests.sparsekit.execution.kernels import planes


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4), (1, 17), (9, 29), (3, 130)])
@pytest.mark.parametrize("outputs", [1, 7, 8, 17, 37])
@pytest.mark.parametrize("ending", [0, 1, 2])
def test_pointwise(size: tuple[int, int], outputs: int, ending: int) -> None:
    images = 1 + outputs % 2
    case = planes.Case(
        Window(*size, (1, 1), (1, 1), (0,) * 4), 23, outputs, images, ending
    )
    pixels_ = size[0] * size[1]
    weight = planes.kernel_of(outputs, 23, density=0.6)
    rows = pixels.pointwise_weight(*planes.sparse(weight), 23, pixels_)
    tiles, vectors = planes.cut(pixels_)
    nnz = np.count_nonzero(weight)
    width = pixels.block_width(nnz, outputs, 23, 4096 // (64 * vectors))
    assert rows.starts.shape == (-(-23 // width) + 1, outputs)
    call = pixels.pointwise(case.x, rows, case.y, pixels_, case.to)
    parts = max(1, min(outputs // 8, 8 // (images * tiles)))
    expected = torch.einsum("oc,nchw->nohw", torch.from_numpy(weight).double(),
                            case.images.double())  # fmt: skip
    case.check(call, expected, images * tiles * parts)
    assert planes.guess(call) == 2 * nnz * images * planes.floats_of(pixels_)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("window", planes.WINDOWS)
@pytest.mark.parametrize("outputs", [3, 17, 26])
@pytest.mark.parametrize("ending", [0, 1, 2])
def test_direct(window: Window, outputs: int, ending: int) -> None:
    images, channels = 1 + outputs % 2, 11
    case = planes.Case(window, channels, outputs, images, ending)
    weight = planes.kernel_of(outputs, channels, *window.kernel, density=0.5)
    rows = pixels.direct_weight(*planes.sparse(weight), channels, window)
    tall, wide = pixels._tile(window)
    nnz = np.count_nonzero(weight)
    near = 4096 // (4 * (tall + 2) * (16 * wide + 2))
    width = pixels.block_width(nnz, outputs, channels, near)
    assert rows.starts.shape == (-(-channels // width) + 1, outputs)
    copy = case.room.array(images, channels * window.copy_floats + window.spare)
    pad, conv = pixels.direct(case.x, rows, case.y, window, copy, case.to)
    pad()
    expected = F.conv2d(
        planes.padded(case.images, window), torch.from_numpy(weight).double(),
        stride=window.stride,
    )  # fmt: skip
    parts = max(1, min(outputs // 8, 8 // images))
    case.check(conv, expected, images * parts)
    assert planes.guess(pad) == images * channels * window.copy_floats
    row = window.out[0] * planes.floats_of(window.out[1])
    assert planes.guess(conv) == 2 * nnz * images * row


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("window", planes.WINDOWS)
@pytest.mark.parametrize("ending", [0, 1, 2])
def test_depthwise(window: Window, ending: int) -> None:
    case = planes.Case(window, 5, 5, ending=ending)
    weight = planes.kernel_of(5, 1, *window.kernel, density=0.6)
    rows = pixels.depthwise_weight(*planes.sparse(weight), window)
    call = pixels.depthwise(case.x, rows, case.y, window, case.to)
    image = planes.padded(case.images, window)
    kernels = torch.from_numpy(weight).double()
    expected = F.conv2d(image, kernels, stride=window.stride, groups=5)
    case.check(call, expected, 2 * 5)
    row = window.out[0] * planes.floats_of(window.out[1])
    assert planes.guess(call) == 2 * np.count_nonzero(weight) * 2 * row
