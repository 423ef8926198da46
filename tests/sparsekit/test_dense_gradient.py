"""The factor between two gradients: exact if it is a scaler's, measured if not."""

import math

import pytest
import torch
from torch import nn

from sparsekit.dense_gradient import DenseGradient, _power_of_two, collect
from sparsekit.execution.linear import SparseLinear


@pytest.mark.parametrize("exponent", [-20, -1, 0, 1, 16])
@pytest.mark.parametrize("off", [0.0, 9e-4, -9e-4, 2e-3, -2e-3, 0.3, -0.3])
def test_powers_of_two(exponent: int, off: float) -> None:
    ratio = 2.0**exponent * (1 + off)
    expected = 2.0**exponent if abs(off) < 1e-3 else ratio
    assert _power_of_two(ratio) == expected


def watched(seed: int = 0) -> tuple[SparseLinear, DenseGradient, torch.Tensor]:
    torch.manual_seed(seed)
    layer = SparseLinear.from_dense(nn.Linear(7, 5), torch.rand(5, 7) < 0.4)
    return layer, DenseGradient("layer", layer), torch.randn(3, 7)


@pytest.mark.parametrize("factor", [1.0, 2.0**-16, 3.0, 0.7])
def test_a_scale_of_the_values_is_found(factor: float) -> None:
    layer, gradient, x = watched()
    layer(x).square().sum().backward()
    layer.values.grad.mul_(factor)  # a GradScaler, or clipping
    collect([gradient])
    assert gradient.scale == pytest.approx(1 / factor, rel=1e-5)
    if math.log2(factor).is_integer():
        assert gradient.scale == 1 / factor


def test_no_gradient_is_scale_one_and_a_missing_one_is_named() -> None:
    _, gradient, _ = watched()
    collect([gradient])
    assert gradient.scale == 1.0
    layer, gradient, x = watched()
    (layer(x) * 0).sum().backward()
    collect([gradient])
    assert gradient.scale == 1.0
    layer, gradient, x = watched()
    layer(x).sum().backward()
    gradient.probe.grad = None
    with pytest.raises(RuntimeError, match="absent weights of 'layer' was not collec"):
        collect([gradient])


def test_after_the_end_nothing_is_followed() -> None:
    layer, gradient, x = watched()
    layer(x).sum().backward()
    seen = gradient._seen
    gradient.end()
    assert layer.probe is None
    layer.values.grad = None
    layer(x).sum().backward()
    assert gradient._seen is seen
    gradient.end()  # again is no error
