"""Batch norm of blocked tensors against torch's in float64."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sparsekit.execution import norm as norms
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


def test_only_what_is_needed_gets_a_gradient():
    for relu in (True, False):
        for frozen in ("weight", "bias", "x", "residual"):
            norm = BlockedBatchNorm2d.from_dense(layer())
            x, residual = (to_blocked(torch.randn(3, CHANNELS, 4, 4)) for _ in range(2))
            leaves = {
                "weight": norm.weight, "bias": norm.bias, "x": x, "residual": residual,
            }  # fmt: skip
            for name, leaf in leaves.items():
                leaf.requires_grad_(name != frozen)
            norm(x, 3, residual, relu).square().sum().backward()
            without = {name for name, leaf in leaves.items() if leaf.grad is None}
            assert without == {frozen}


@pytest.mark.parametrize("x", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_gradients_that_nobody_wants_are_empty(x, residual):
    image = to_blocked(torch.randn(3, CHANNELS, 4, 6))
    out, stats = norms.norm(image, image, None, None, None, 3, 1e-5, True)
    arguments = (image, out, image, None, None, stats, 3, 1e-5, True, True, x, residual)
    made = norms.norm_backward(*arguments)
    shapes = [tuple(t.shape) for t in made]
    whole, nothing = tuple(image.shape), (0,)
    assert shapes == [
        whole if x else nothing, whole if residual else nothing, (5,), (5,),
    ]  # fmt: skip
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a
                 for a in arguments]  # fmt: skip
        told = torch.ops.sparsekit.norm_backward(*fakes)
    assert [tuple(t.shape) for t in told] == shapes


def test_statistics_have_no_gradient():
    x = to_blocked(torch.randn(3, CHANNELS, 4, 6)).requires_grad_()
    for apply in (norms._norm, norms._direct):
        y, stats = apply(x, None, None, None, None, 3, 1e-5, False)
        assert y.requires_grad
        assert not stats.requires_grad
        assert stats.dtype == torch.float64


class Stop(torch.autograd.Function):
    """Passes nothing back."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


def test_where_no_gradient_comes_from_none_goes_on():
    norm = BlockedBatchNorm2d.from_dense(layer())
    x = to_blocked(torch.randn(3, CHANNELS, 4, 4)).requires_grad_()
    Stop.apply(norm(x, 3)).sum().backward()
    assert x.grad is None
    assert norm.weight.grad is None


def test_sizes_channels_and_single_values_are_named():
    norm = BlockedBatchNorm2d.from_dense(layer())
    x = to_blocked(torch.randn(17, CHANNELS, 4, 4))
    for batch in (None, 16, 33):
        with pytest.raises(ValueError, match=f"does not hold batch={batch} images"):
            norm(x, batch)
    with pytest.raises(ValueError, match=r"got 4 channels in \(2, 4, 6, 6, 16\)"):
        norm(x[:, :4], 17)
    with pytest.raises(ValueError, match="expected a blocked tensor"):
        norm(x[None], 17)
    one = to_blocked(torch.randn(1, CHANNELS, 1, 1))
    with pytest.raises(ValueError, match=r"more than one value a channel.*\(3, 3\)"):
        norm(one, 1)
    for shape in ((2, CHANNELS, 1, 1), (1, CHANNELS, 2, 1), (1, CHANNELS, 1, 2)):
        assert norm(to_blocked(torch.randn(shape)), shape[0]).isfinite().all()
    assert norm.eval()(one, 1).isfinite().all()


@pytest.mark.parametrize("relu", [True, False])
def test_images_and_residuals_of_one_pixel(relu):
    """They are broadcast, as torch does."""
    torch.manual_seed(0)
    norm = BlockedBatchNorm2d.from_dense(layer()).eval()
    x, pixel = torch.randn(18, CHANNELS, 4, 3), torch.randn(18, CHANNELS, 1, 1)
    expected = nn.BatchNorm2d.forward(norm, x) + pixel
    expected = F.relu(expected) if relu else expected
    found = norm(to_blocked(x), 18, to_blocked(pixel), relu)
    torch.testing.assert_close(from_blocked(found, 18), expected)
    assert_near(norm(x, None, pixel, relu), expected)
    plain = norm(x, relu=relu)
    expected = nn.BatchNorm2d.forward(norm, x)
    assert_near(plain, F.relu(expected) if relu else expected)
    assert torch.equal(norm(x), norm(x, relu=False))


def test_any_layout_of_input_residual_and_gradient():
    norm = BlockedBatchNorm2d.from_dense(layer())
    other = copy.deepcopy(norm)
    x, residual, grad = (to_blocked(torch.randn(18, CHANNELS, 4, 6)) for _ in range(3))
    found = []
    for made, turned in ((norm, True), (other, False)):
        leaves = [
            (t.transpose(2, 3).contiguous().transpose(2, 3) if turned else t.clone())
            .requires_grad_() for t in (x, residual)
        ]  # fmt: skip
        given = grad.transpose(2, 3).contiguous().transpose(2, 3) if turned else grad
        y = made(leaves[0], 18, leaves[1], True)
        y.backward(given)
        found.append([y, *(t.grad for t in leaves), made.weight.grad])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_running_statistics_are_followed(momentum, dtype):
    """In float64, or as a mean of all batches, they go another way."""
    ours = BlockedBatchNorm2d.from_dense(layer(momentum=momentum))
    exact = copy.deepcopy(ours).double()
    ours.running_mean = ours.running_mean.to(dtype)
    ours.running_var = ours.running_var.to(dtype)
    for n in (18, 3, 17):
        x = torch.randn(n, CHANNELS, 4, 6) + 2
        nn.BatchNorm2d.forward(exact, x.double())
        ours(to_blocked(x), n)
        for a, b in zip(exact.buffers(), ours.buffers(), strict=True):
            assert_near(b, a)
    assert ours.running_mean.dtype == dtype
    assert ours.num_batches_tracked == 3


def test_one_value_has_no_unbiased_variance():
    norm = BlockedBatchNorm2d.from_dense(layer())
    before = norm.running_var.clone()
    norm.follow(torch.ones(2, CHANNELS, dtype=torch.float64), 1)
    torch.testing.assert_close(norm.running_var, 0.9 * before + 0.1)
