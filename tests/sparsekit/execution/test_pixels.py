"""Kernels with pixels innermost, against torch in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparsekit.execution.kernels import pixels
from sparsekit.execution.kernels.memory import zeros
from sparsekit.execution.kernels.pixels import Finish, Window

CASES = [
    (kernel, stride, size)
    for kernel in ((3, 3), (5, 5))
    for stride in (1, 2)
    for size in ((7, 7), (13, 19), (31, 37))
] + [((7, 5), 3, (23, 29)), ((1, 4), 2, (5, 11)), ((3, 3), 1, (1, 1))]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def planes(images):
    """[N, C, H, W] tensor -> [N, C, plane]; the spare room holds anything."""
    n, c, h, w = images.shape
    x = zeros((n, c, pixels.plane_floats(h, w)))
    x[:] = 7e9
    x[:, :, : h * w] = images.reshape(n, c, -1)
    return x


def case(kernel, stride, size, images=2):
    """Window, padded by nearly half, an input of 5 channels, room for the output."""
    pads = (kernel[0] - 1) // 2, (kernel[1] - 1) // 2
    after = kernel[0] // 2, kernel[1] // 2
    window = Window(*size, kernel, (stride, stride), (*pads, *after))
    x = torch.randn(images, 5, *size)
    padded = F.pad(x, (pads[1], after[1], pads[0], after[0])).double()
    return window, x, padded


def check(y, expected, residual, to):
    expected = expected + torch.tensor(to.bias)[:, None, None] + residual
    n, c, h, w = expected.shape
    expected = expected.clamp(*to.clip).numpy()
    found = y[:, :, : h * w].reshape(n, c, h, w)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def finish(outputs, window, images=2):
    residual = torch.randn(images, outputs, *window.out)
    bias = torch.randn(outputs).numpy()
    return residual, Finish(bias, planes(residual), (-0.5, 1.5))


def sparse(weight):
    mask = weight.flatten(1) != 0
    crow = np.r_[0, mask.sum(1).cumsum(0).numpy()].astype(np.int32)
    col = mask.nonzero()[:, 1].numpy().astype(np.int32)
    return weight.flatten(1)[mask].numpy(), crow, col


@pytest.mark.parametrize("case_", CASES)
def test_depthwise(case_):
    kernel, stride, _ = case_
    window, x, padded = case(*case_)
    weight = torch.randn(5, 1, *kernel)
    residual, to = finish(5, window)
    y = zeros(to.residual.shape)
    expected = F.conv2d(padded, weight.double(), stride=stride, groups=5)
    calls = [pixels.depthwise(
        planes(x), pixels.depthwise_weight(*sparse(weight), window), y, window, to
    )]  # fmt: skip
    if kernel[0] == kernel[1]:
        assert pixels.is_small(window)
        flat = weight.flatten(1).numpy()
        calls.append(pixels.small_depthwise(planes(x), flat, y, window, to))
    for call in calls:
        y[:] = np.nan
        call()
        check(y, expected, residual, to)


@pytest.mark.parametrize("case_", CASES)
@pytest.mark.parametrize("outputs", [3, 37])
def test_direct_and_dense(case_, outputs):
    _, stride, _ = case_
    window, x, padded = case(*case_)
    weight = torch.randn(outputs, 5, *window.kernel)
    residual, to = finish(outputs, window)
    y = zeros(to.residual.shape)
    if pixels.is_small(window):
        pixels.dense(planes(x), weight.numpy(), y, window, to)()
        expected = F.conv2d(padded, weight.double(), stride=stride)
        check(y, expected, residual, to)
    weight *= torch.rand_like(weight) < 0.3
    copy = zeros((2, 5 * window.copy_floats + window.spare))
    for call in pixels.direct(
        planes(x), pixels.direct_weight(*sparse(weight), 5, window), y, window, copy, to
    ):
        call()
    expected = F.conv2d(padded, weight.double(), stride=stride)
    check(y, expected, residual, to)


@pytest.mark.parametrize("case_", [c for c in CASES if c[0][0] == c[0][1]])
def test_expansion_is_that_of_two_layers(case_):
    _, stride, _ = case_
    window, x, _ = case(*case_)
    matrix = torch.randn(11, 5, 1, 1) * (torch.rand(11, 5, 1, 1) < 0.5)
    weight = torch.randn(11, 1, *window.kernel)
    inner = Finish(torch.randn(11).numpy(), None, (0.0, 6.0))
    residual, to = finish(11, window)
    y = zeros(to.residual.shape)
    pixels.expanded_depthwise(
        planes(x), sparse(matrix), inner, weight.flatten(1).numpy(), y, window, to
    )()
    top, left, bottom, right = window.padding
    between = F.conv2d(x.double(), matrix.double(), torch.tensor(inner.bias).double())
    padded = F.pad(between.clamp(0, 6), (left, right, top, bottom))
    expected = F.conv2d(padded, weight.double(), stride=stride, groups=11)
    check(y, expected, residual, to)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7), (17, 31), (3, 257)])
def test_pointwise_of_many_blocks(size):
    channels, outputs = 521, 11
    x = torch.randn(2, channels, *size)
    weight = torch.randn(outputs, channels) * (torch.rand(outputs, channels) < 0.4)
    weight[3] = 0
    window = Window(*size, (1, 1), (1, 1), (0, 0, 0, 0))
    residual, to = finish(outputs, window)
    y = zeros(to.residual.shape)
    rows = pixels.pointwise_weight(*sparse(weight), channels, size[0] * size[1])
    assert len(rows.starts) > 2 or size[0] * size[1] < 16
    pixels.pointwise(planes(x), rows, y, size[0] * size[1], to)()
    expected = torch.einsum("oc,nchw->nohw", weight.double(), x.double())
    check(y, expected, residual, to)
