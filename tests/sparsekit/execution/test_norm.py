"""Batch norm of blocked tensors against torch's in float64."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsekit.execution.blocked import from_blocked, to_blocked
from sparsekit.execution.norm import BlockedBatchNorm2d

CHANNELS = 5
OPTIONS = {
    "plain": {},
    "cumulative": {"momentum": None},
    "without momentum": {"momentum": 0.0},
    "without affine": {"affine": False},
    "without tracking": {"track_running_stats": False},
}


def layer(**options):
    norm = nn.BatchNorm2d(CHANNELS, eps=1e-3, **options)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    if norm.running_mean is not None:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return norm


def spoil_spare_lanes(x, batch):
    """What a layer may leave in the lanes of images that do not exist."""
    x = x.clone()
    if batch % 16:
        x[-1, :, 1:-1, 1:-1, batch % 16 :] = 100.0
    return x


def assert_near(got, answer, tolerance=1e-6):
    got, answer = got.double(), answer.double()
    error = (got - answer).norm()
    assert error <= tolerance * answer.norm() + 1e-12, (error, answer.norm())


@pytest.mark.parametrize("batch", [2, 16, 37])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("training", [True, False])
def test_like_torch(batch, option, training):
    torch.manual_seed(0)
    exact = layer(**OPTIONS[option]).train(training).double()
    ours = BlockedBatchNorm2d.from_dense(copy.deepcopy(exact).float())
    for with_residual, relu in itertools.product([False, True], repeat=2):
        x = torch.randn(batch, CHANNELS, 3, 7) * 3 + 1
        residual = torch.randn_like(x) if with_residual else None
        grad = torch.randn_like(x)
        wide = [None if t is None else t.double() for t in (x, residual)]
        inside = [
            None if t is None else spoil_spare_lanes(to_blocked(t), batch)
            for t in (x, residual)
        ]
        leaves = [t for t in wide + inside if t is not None]
        for leaf in leaves:
            leaf.requires_grad_()
        exact.zero_grad()
        ours.zero_grad()
        y = exact(wide[0])
        y = y if residual is None else y + wide[1]
        y = F.relu(y) if relu else y
        y.backward(grad.double())
        z = ours(inside[0], batch, inside[1], relu)
        z.backward(to_blocked(grad))

        assert_near(from_blocked(z, batch), y)
        for a, b in zip(wide, inside, strict=True):
            if a is not None:
                assert_near(from_blocked(b.grad, batch), a.grad)
                outside = b.grad - to_blocked(from_blocked(b.grad, batch))
                assert outside.count_nonzero() == 0  # border and spare lanes
        for a, b in zip(exact.parameters(), ours.parameters(), strict=True):
            assert_near(b.grad, a.grad)
        for a, b in zip(exact.buffers(), ours.buffers(), strict=True):
            assert_near(b, a)


def test_where_relu_let_through_is_computed_again_to_the_bit():
    """With a residual it is read from the result: zeros must change nothing."""
    torch.manual_seed(0)
    x = spoil_spare_lanes(to_blocked(torch.randn(37, CHANNELS, 11, 13) + 5), 37)
    grad = to_blocked(torch.randn(37, CHANNELS, 11, 13))
    found = []
    for residual in (None, torch.zeros_like(x).requires_grad_()):
        norm = BlockedBatchNorm2d.from_dense(layer())
        leaf = x.clone().requires_grad_()
        norm.bias.data.fill_(0.25)
        norm.weight.data.copy_(torch.tensor([1.0, -2, 0, 1e-3, 3]))
        norm(leaf, 37, residual, relu=True).backward(grad)
        found.append((leaf.grad, norm.weight.grad, norm.bias.grad))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("mean", [1e4, -1e6])
def test_a_large_mean_costs_no_digits(mean):
    torch.manual_seed(0)
    exact, x = layer().double(), torch.randn(21, CHANNELS, 5, 7) + mean
    ours = BlockedBatchNorm2d.from_dense(copy.deepcopy(exact).float())
    wide, inside = x.double().requires_grad_(), to_blocked(x).requires_grad_()
    grad = torch.randn_like(x)
    y, z = exact(wide), ours(inside, 21)
    y.backward(grad.double())
    z.backward(to_blocked(grad))
    assert_near(from_blocked(z, 21), y)
    assert_near(from_blocked(inside.grad, 21), wide.grad)
    assert_near(ours.weight.grad, exact.weight.grad)
    assert_near(ours.running_var, exact.running_var)


def test_images_behave_as_before_and_state_is_the_same():
    norm = layer()
    ours = BlockedBatchNorm2d.from_dense(norm)
    x = torch.randn(3, CHANNELS, 5, 7)
    torch.testing.assert_close(ours(x), copy.deepcopy(norm)(x), rtol=0, atol=0)
    assert list(ours.state_dict()) == list(norm.state_dict())
    assert copy.deepcopy(ours).weight is not ours.weight


def test_not_a_number_stays_one():
    x = torch.randn(4, CHANNELS, 3, 5)
    x[1, 2, 0, 0] = float("nan")
    y = BlockedBatchNorm2d(CHANNELS)(to_blocked(x), 4, relu=True)
    assert from_blocked(y, 4)[:, 2].isnan().all()
    assert not from_blocked(y, 4)[:, [0, 1, 3, 4]].isnan().any()


def test_a_residual_that_is_broadcast():
    x, residual = torch.randn(3, CHANNELS, 5, 7), torch.randn(3, CHANNELS, 1, 1)
    norm = BlockedBatchNorm2d(CHANNELS)
    y = norm(to_blocked(x), 3, to_blocked(residual), True)
    expected = F.relu(F.batch_norm(x, None, None, training=True) + residual)
    torch.testing.assert_close(from_blocked(y, 3), expected)


def test_an_empty_batch_and_a_single_value():
    norm = BlockedBatchNorm2d(CHANNELS).eval()
    x = torch.zeros(0, CHANNELS, 5, 7)
    assert norm(to_blocked(x), 0).shape == (0, CHANNELS, 7, 9, 16)
    with pytest.raises(ValueError, match="more than one value a channel"):
        norm.train()(to_blocked(torch.randn(1, CHANNELS, 1, 1)), 1)
    with pytest.raises(ValueError, match="does not hold batch=17 images"):
        norm(to_blocked(torch.randn(3, CHANNELS, 1, 1)), 17)
    with pytest.raises(ValueError, match="got 2 channels"):
        norm(to_blocked(torch.randn(3, 2, 1, 1)), 3)
