"""Pooling of blocked tensors against torch's."""

import pytest
import torch
import torch.nn.functional as F

from sparsekit.execution.blocked import from_blocked, to_blocked
from sparsekit.execution.pool import average_pool, global_mean, max_pool

BATCH = 19


def pairs(values="random"):
    x = torch.randn(BATCH, 3, 7, 11)
    if values == "ties":
        x = x.round()
    inside = to_blocked(x)
    inside[-1, :, 1:-1, 1:-1, BATCH % 16 :] = 9.0  # images that do not exist
    return x.requires_grad_(), inside.requires_grad_()


def assert_same_gradient(x, inside):
    torch.testing.assert_close(from_blocked(inside.grad, BATCH), x.grad)
    again = to_blocked(from_blocked(inside.grad, BATCH))
    assert torch.equal(again, inside.grad)  # border and spare lanes are 0


@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (3, 3, 0)])
@pytest.mark.parametrize("values", ["random", "ties"])
def test_maximum(window, values):
    x, inside = pairs(values)
    y, z = F.max_pool2d(x, *window), max_pool(inside, *window)
    grad = torch.randn_like(y)
    y.backward(grad)
    z.backward(to_blocked(grad))
    torch.testing.assert_close(from_blocked(z, BATCH), y, rtol=0, atol=0)
    assert_same_gradient(x, inside)


def test_maximum_of_nan_and_infinity():
    x = torch.full((2, 1, 4, 4), -torch.inf)
    x[0, 0, 1, 1] = torch.nan
    y = from_blocked(max_pool(to_blocked(x), 2, 2), 2)
    torch.testing.assert_close(y, F.max_pool2d(x, 2), equal_nan=True)


@pytest.mark.parametrize("window", [(2, 2), (3, 2)])
def test_average(window):
    x, inside = pairs()
    y, z = F.avg_pool2d(x, *window), average_pool(inside, *window)
    grad = torch.randn_like(y)
    y.backward(grad)
    z.backward(to_blocked(grad))
    torch.testing.assert_close(from_blocked(z, BATCH), y)
    assert_same_gradient(x, inside)


def test_global_mean():
    x, inside = pairs()
    y, z = x.mean((2, 3)), global_mean(inside, BATCH)
    grad = torch.randn_like(y)
    y.backward(grad)
    z.backward(grad)
    torch.testing.assert_close(z, y)
    assert_same_gradient(x, inside)


CALLS = {
    "maximum": (lambda x: max_pool(x, 3, 2, 1), lambda x: F.max_pool2d(x, 3, 2, 1)),
    "average": (lambda x: average_pool(x, 2, 1), lambda x: F.avg_pool2d(x, 2, 1)),
    "mean": (lambda x: global_mean(x, BATCH), lambda x: x.mean((2, 3))),
}


@pytest.mark.parametrize("name", CALLS)
def test_any_layout_of_input_and_gradient(name):
    """Rows and columns changed places, and the gradient's numbers are not in a row."""
    ours, theirs = CALLS[name]
    x, inside = pairs()
    y, z = theirs(x.transpose(2, 3)), ours(inside.transpose(2, 3))
    shown = z if name == "mean" else from_blocked(z, BATCH)
    torch.testing.assert_close(shown, y)
    grad = torch.randn(y.flip(0).t().shape if y.dim() == 2 else y.shape)
    if y.dim() == 2:
        y.backward(grad.t())
        z.backward(grad.t())
    else:
        y.backward(grad)
        other = to_blocked(grad.transpose(2, 3)).transpose(2, 3)
        assert not other.is_contiguous()
        z.backward(other)
    assert_same_gradient(x, inside)


def test_the_places_of_the_maximum_have_no_gradient():
    *_, inside = pairs()
    y, places = torch.ops.sparsekit.max_pool(inside, 2, 2, 0)
    assert y.requires_grad
    assert not places.requires_grad


def test_padding_is_none_unless_it_is_given():
    x = to_blocked(torch.randn(3, 2, 4, 4))
    assert torch.equal(max_pool(x, 2, 2), max_pool(x, 2, 2, 0))
