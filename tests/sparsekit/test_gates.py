"""Gates against `torch.where`, bit for bit, NaN and infinity included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekit.gates import Gate

VALUES = [0.0, -0.0, 1.5, -2.0, float("nan"), float("inf"), float("-inf"), 1e-40]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@given(
    st.lists(
        st.tuples(st.sampled_from(VALUES), st.booleans()), min_size=1, max_size=23
    ),
    st.sampled_from(DTYPES),
)
@settings(max_examples=100, deadline=None)
def test_equals_where(pairs: list, dtype: torch.dtype) -> None:
    values, alive = zip(*pairs, strict=True)
    tensor = torch.tensor(values, dtype=dtype)
    mask = torch.tensor(alive)
    expected = torch.where(mask, tensor, torch.zeros_like(tensor))
    Gate(mask).apply(tensor)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    assert torch.equal(tensor.view(bits), expected.view(bits))


def test_a_product_would_keep_nan() -> None:
    tensor = torch.tensor([float("nan"), 1.0])
    mask = torch.tensor([False, True])
    assert (tensor * mask).isnan().any()
    Gate(mask).apply(tensor)
    assert tensor.tolist() == [0.0, 1.0]


def test_follows_a_mask_that_is_changed_in_place() -> None:
    mask = torch.tensor([True, False, True])
    gate = Gate(mask)
    for alive in ([True, False, True], [False, True, True], [False, False, False]):
        mask.copy_(torch.tensor(alive))
        for dtype in DTYPES:  # the words of every width are made anew
            tensor = torch.ones(3, dtype=dtype)
            gate.apply(tensor)
            assert tensor.bool().tolist() == alive
    view = mask[1:]
    view.fill_(True)
    tensor = torch.ones(3)
    gate.apply(tensor)
    assert tensor.tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("layout", ["transposed", "channels last", "strided"])
def test_other_memory_layouts(layout: str) -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = {
        "transposed": torch.randn(5, 7, generator=generator).T,
        "channels last": torch.randn(2, 3, 5, 7, generator=generator).to(
            memory_format=torch.channels_last
        ),
        "strided": torch.randn(11, 13, generator=generator)[::2, ::3],
    }[layout]
    mask = torch.rand(tensor.shape, generator=generator) < 0.5
    expected = tensor * mask
    Gate(mask).apply(tensor)
    assert torch.equal(tensor, expected)


def test_parameters_are_gated_without_autograd() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    version = parameter._version
    Gate(torch.tensor([True, False, True])).apply(parameter)
    assert parameter.tolist() == [1.0, 0.0, 1.0]
    assert parameter.is_leaf
    assert parameter._version > version  # autograd notices
