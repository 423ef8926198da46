"""The blocked layout against indexing by hand."""

import pytest
import torch

from sparsekit.execution.blocked import chunks, from_blocked, new, to_blocked
from sparsekit.execution.kernels import buffers


def by_hand(x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.shape
    out = torch.zeros((n + 15) // 16, c, h + 2, w + 2, 16)
    for i in range(n):
        out[i // 16, :, 1:-1, 1:-1, i % 16] = x[i]
    return out


@pytest.mark.parametrize("batch", [0, 1, 16, 17, 37])
@pytest.mark.parametrize("form", ["contiguous", "channels last", "sliced", "expanded"])
def test_against_indexing(batch, form):
    x = torch.randn(batch, 3, 5, 7)
    if form == "channels last":
        x = x.to(memory_format=torch.channels_last)
    elif form == "sliced":
        x = torch.randn(7, batch, 11, 6).transpose(0, 3)[1:4, :, ::3].transpose(0, 1)
    elif form == "expanded":
        x = torch.randn(batch, 3, 1, 1).expand(batch, 3, 5, 7)
    blocked = to_blocked(x)
    torch.testing.assert_close(blocked, by_hand(x), rtol=0, atol=0)
    torch.testing.assert_close(from_blocked(blocked, batch), x, rtol=0, atol=0)


def test_gradients_are_the_layout_of_the_gradient():
    x = torch.randn(19, 2, 3, 5, requires_grad=True)
    weight = torch.randn(2, 2, 5, 7, 16)
    (to_blocked(x) * weight).sum().backward()
    torch.testing.assert_close(x.grad, from_blocked(weight, 19), rtol=0, atol=0)

    y = by_hand(torch.randn(19, 2, 3, 5)).requires_grad_()
    gradient = torch.randn(19, 2, 3, 5)
    from_blocked(y, 19).backward(gradient.to(memory_format=torch.channels_last))
    torch.testing.assert_close(y.grad, by_hand(gradient), rtol=0, atol=0)


def test_compiles_for_any_batch():
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def twice(x):
        return from_blocked(to_blocked(x) * 2, x.shape[0])

    for batch in (3, 16, 33):
        x = torch.randn(batch, 2, 3, 5, requires_grad=True)
        y = twice(x)
        torch.testing.assert_close(y, 2 * x, rtol=0, atol=0)
        y.sum().backward()
        torch.testing.assert_close(x.grad, torch.full_like(x, 2), rtol=0, atol=0)


def test_says_what_it_expects():
    with pytest.raises(ValueError, match=r"\[N, C, H, W\], float32"):
        to_blocked(torch.randn(3, 5, 7))
    with pytest.raises(ValueError, match=r"float32 on the CPU, got .* torch.float64"):
        to_blocked(torch.randn(2, 3, 5, 7).double())
    with pytest.raises(ValueError, match="blocked tensor"):
        from_blocked(torch.randn(2, 3, 5, 7), 2)
    with pytest.raises(ValueError, match="17 images lie in 2 chunks of 16, got 1"):
        from_blocked(to_blocked(torch.randn(2, 3, 5, 7)), 17)


def test_memory_is_used_again_with_its_zero_border():
    buffers.release()
    first = new(2, 3, 5, 7)
    first[:, :, 1:-1, 1:-1] = 8.0
    place = first.data_ptr()
    assert new(2, 3, 5, 7).data_ptr() != place
    view = first[1]
    del first
    assert new(2, 3, 5, 7).data_ptr() != place  # a view keeps it
    del view
    again = new(2, 3, 5, 7)
    assert again.data_ptr() == place
    again[:, :, 1:-1, 1:-1] = 0.0
    assert again.count_nonzero() == 0


def test_a_spoilt_border_is_cleaned():
    buffers.release()
    x = new(1, 2, 3, 5)
    place = x.data_ptr()
    x.add_(1)
    del x
    again = new(1, 2, 3, 5)
    assert again.data_ptr() == place
    again[:, :, 1:-1, 1:-1] = 0.0
    assert again.count_nonzero() == 0


def test_images_without_pixels_and_without_channels():
    for shape in ((3, 2, 0, 5), (3, 2, 5, 0), (3, 0, 4, 5)):
        x = torch.zeros(shape)
        assert from_blocked(to_blocked(x), 3).shape == shape


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(1, 3, 5, 16), torch.zeros(1, 3, 5, 7, 15),
        torch.zeros(1, 3, 1, 7, 16), torch.zeros(1, 3, 5, 1, 16),
        torch.zeros(1, 3, 5, 7, 16).double(), torch.zeros(1, 3, 5, 7, 16).half(),
        torch.zeros(1, 3, 5, 7, 16, device="meta"),
    ],
)  # fmt: skip
def test_what_is_not_blocked(x):
    with pytest.raises(ValueError, match=r"expected a blocked tensor \[G, C, H \+ 2"):
        from_blocked(x, 3)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(3, 5, 7), torch.zeros(1, 3, 5, 7, 16),
        torch.zeros(2, 3, 5, 7).half(), torch.zeros(2, 3, 5, 7, device="meta"),
    ],
)  # fmt: skip
def test_what_is_no_image(x):
    with pytest.raises(ValueError, match=r"expected images \[N, C, H, W\], float32"):
        to_blocked(x)


def test_a_gradient_of_any_layout():
    x = torch.randn(19, 2, 5, 3, requires_grad=True)
    grad = torch.randn(2, 2, 7, 5, 16).permute(0, 1, 3, 2, 4)
    to_blocked(x.transpose(2, 3)).backward(grad)
    expected = from_blocked(grad, 19).transpose(2, 3)
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("batch", "n"), [(0, 0), (1, 1), (16, 1), (17, 2), (32, 2)])
def test_chunks(batch, n):
    assert chunks(batch) == n
