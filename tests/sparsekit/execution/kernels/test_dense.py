"""Dense convolutions of few channels, against torch."""

import pytest
import torch
import torch.nn.functional as F

from sparsekit.execution.kernels import pixels
from sparsekit.execution.kernels.pixels import Window
from sparsekit.execution.kernels.vectors import VECTORS
from tests.sparsekit.execution.kernels import planes


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("window", planes.SMALL)
@pytest.mark.parametrize("outputs", [1, 16, 17, 35])
def test_dense(window: Window, outputs: int) -> None:
    case = planes.Case(window, 3, outputs, ending=outputs % 3)
    weight = planes.kernel_of(outputs, 3, *window.kernel)
    call = pixels.dense(case.x, weight, case.y, window, case.to)
    expected = F.conv2d(
        planes.padded(case.images, window), torch.from_numpy(weight).double(),
        stride=window.stride,
    )  # fmt: skip
    planes.check_zeros(call, window.width)
    case.check(call, expected, 2 * -(-outputs // min(outputs, VECTORS)))
    row = window.out[0] * planes.floats_of(window.out[1])
    assert planes.guess(call) == 2 * weight.size * 2 * row
