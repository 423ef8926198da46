"""Depthwise convolutions without a padded copy, against torch."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparsekit.execution.kernels import depthwise as depthwise_blocks
from sparsekit.execution.kernels import pixels
from sparsekit.execution.kernels.pixels import Finish, Window
from sparsekit.execution.kernels.vectors import VECTORS
from tests.sparsekit.execution.kernels import planes


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("window", planes.SMALL)
@pytest.mark.parametrize("ending", [0, 1, 2])
def test_small_depthwise(window: Window, ending: int) -> None:
    case = planes.Case(window, 5, 5, ending=ending)
    weight = case.room.copy(planes.kernel_of(5, 1, *window.kernel))
    flat = weight.reshape(5, -1)
    call = pixels.small_depthwise(case.x, flat, case.y, window, case.to)
    image = planes.padded(case.images, window)
    kernels = torch.from_numpy(weight).double()
    expected = F.conv2d(image, kernels, stride=window.stride, groups=5)
    planes.check_zeros(call, window.width)
    case.check(call, expected, 2 * 5)
    row = window.out[0] * planes.floats_of(window.out[1])
    assert planes.guess(call) == 2 * weight.size * 2 * row


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("window", planes.SMALL)
@pytest.mark.parametrize("ending", [0, 1, 2])
def test_expanded_depthwise(window: Window, ending: int) -> None:
    case = planes.Case(window, 7, 5, ending=ending)
    matrix = planes.kernel_of(5, 7, density=0.6, seed=2)
    inner = Finish(case.room.copy(np.linspace(-1, 1, 5, dtype=np.float32)), None,
                   (-0.25, 6.0))  # fmt: skip
    weight = case.room.copy(planes.kernel_of(5, 1, *window.kernel))
    flat = weight.reshape(5, -1)
    call = pixels.expanded_depthwise(
        case.x, planes.sparse(matrix), inner, flat, case.y, window, case.to
    )
    between = torch.einsum("oc,nchw->nohw", torch.from_numpy(matrix).double(),
                           case.images.double())  # fmt: skip
    between = between + torch.from_numpy(inner.bias).view(-1, 1, 1)
    image = planes.padded(between.clamp(*inner.clip), window)
    kernels = torch.from_numpy(weight).double()
    expected = F.conv2d(image, kernels, stride=window.stride, groups=5)
    planes.check_zeros(call, window.width)
    case.check(call, expected, 2 * 5)
    row = window.out[0] * planes.floats_of(window.out[1])
    inside = np.count_nonzero(matrix) * planes.floats_of(window.height * window.width)
    assert planes.guess(call) == 2 * 2 * (weight.size * row + inside)


@pytest.mark.parametrize("height", range(1, 40))
def test_rows_of_a_block(height: int) -> None:
    most = min(14, VECTORS)
    count = next(n for n in itertools.count(1) if -(-height // n) <= most)
    assert depthwise_blocks.rows_of_block(height) == -(-height // count)
