"""A convolution and what follows it in one operation, against torch in float64."""

import copy
import gc
import itertools
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from apps.common.classifiers import ResNet18
from sparsekit.execution import conv_norm as conv_norm_module
from sparsekit.execution import convert
from sparsekit.execution.blocked import from_blocked, to_blocked
from sparsekit.execution.conv import SparseConv2d
from sparsekit.execution.conv_norm import conv_norm
from sparsekit.execution.kernels import buffers
from sparsekit.execution.norm import BlockedBatchNorm2d

INPUTS, OUTPUTS = 5, 11
KINDS = list(itertools.product((3, 1), (1, 2)))


def subject(side=3, stride=1, bias=False, density=0.3, **options):
    """A dense pair, its absent weights at zero, and the sparse one."""
    torch.manual_seed(0)
    conv = nn.Conv2d(INPUTS, OUTPUTS, side, stride, side // 2, bias=bias)
    conv.weight.data *= torch.rand(conv.weight.shape) < density
    norm = nn.BatchNorm2d(OUTPUTS, **options)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    sparse = SparseConv2d.from_dense(conv)
    return conv, norm, sparse, BlockedBatchNorm2d.from_dense(copy.deepcopy(norm))


def assert_near(got, answer, what):
    got, answer = got.double(), answer.double()
    error = (got - answer).norm()
    assert error <= 3e-6 * answer.norm() + 2e-5, (what, error, answer.norm())


def assert_like_torch(pair, batch=17, size=(7, 5), with_residual=True, relu=True):
    """Outputs, all gradients and running statistics; x is read a second time."""
    conv, norm, sparse, blocked_norm = pair
    x = torch.randn(batch, INPUTS, *size)
    residual = torch.randn_like(conv(x)) if with_residual else None
    grad, again = torch.randn_like(conv(x)), torch.randn_like(x)
    wide_conv, wide_norm = conv.double(), norm.double()
    wide = [None if t is None else t.double() for t in (x, residual)]
    ours = [None if t is None else to_blocked(t) for t in (x, residual)]
    for leaf in [*wide, *ours]:
        if leaf is not None:
            leaf.requires_grad_()
    y = wide_norm(wide_conv(wide[0]))
    y = y if residual is None else y + wide[1]
    y = F.relu(y) if relu else y
    torch.autograd.backward([y, wide[0] * 1], [grad.double(), again.double()])

    z, other, _ = conv_norm(
        sparse, blocked_norm, ours[0], batch, ours[1], relu, fork=True
    )
    torch.autograd.backward([z, other], [to_blocked(grad), to_blocked(again)])
    assert_near(from_blocked(z, batch), y, "output")
    for name, a, b in zip(("x", "residual"), wide, ours, strict=True):
        if a is not None:
            assert_near(from_blocked(b.grad, batch), a.grad, name)
            outside = b.grad - to_blocked(from_blocked(b.grad, batch))
            assert outside.count_nonzero() == 0  # border and spare lanes
    kept = wide_conv.weight.grad[sparse.mask()]
    assert_near(sparse.values.grad, kept, "values")
    if sparse.bias is not None:
        assert sparse.bias.grad.abs().max() < 1e-2  # the norm takes it out: 0
    for a, b in zip(wide_norm.parameters(), blocked_norm.parameters(), strict=True):
        assert_near(b.grad, a.grad, "affine")
    for a, b in zip(wide_norm.buffers(), blocked_norm.buffers(), strict=True):
        assert_near(b, a, "statistics")


@pytest.mark.parametrize(("side", "stride"), KINDS)
@pytest.mark.parametrize(
    ("with_residual", "relu"), list(itertools.product([0, 1], [0, 1]))
)
def test_like_torch(side, stride, with_residual, relu):
    pair = subject(side, stride, bias=True)
    assert_like_torch(pair, with_residual=bool(with_residual), relu=bool(relu))


@pytest.mark.parametrize(("side", "stride"), KINDS)
@pytest.mark.parametrize("batch", [1, 16, 33])
@pytest.mark.parametrize("size", [(6, 8), (2, 1)])
def test_sizes(side, stride, batch, size):
    if batch > 1 or size != (2, 1):  # else one value a channel
        assert_like_torch(subject(side, stride), batch, size)


@pytest.mark.parametrize(
    "options",
    [
        {"affine": False}, {"momentum": None}, {"momentum": 0.0},
        {"track_running_stats": False}, {"eps": 0.1},
    ],
)  # fmt: skip
def test_options_of_the_norm(options):
    assert_like_torch(subject(**options))


def test_no_weights_and_all_of_them():
    for density in (0, 1):
        assert_like_torch(subject(density=density), relu=False)


def test_without_the_second_reader():
    """Its gradient is absent, or the output's; what needs no gradient has none."""
    *_, conv, norm = subject()
    x = to_blocked(torch.randn(3, INPUTS, 7, 5)).requires_grad_()
    y, other, _ = conv_norm(conv, norm, x, 3, fork=True)
    grad = torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0]
    plain, same, _ = conv_norm(conv, norm, x, 3)
    assert same is x
    assert torch.equal(torch.autograd.grad(plain.square().sum(), x)[0], grad)
    (ones,) = torch.autograd.grad(other.sum(), x)
    assert torch.equal(ones, torch.ones_like(x))
    inside = x.detach()
    y, other, _ = conv_norm(conv, norm, inside, 3, fork=True)
    assert other is inside
    y.sum().backward()
    assert conv.values.grad is not None
    with torch.no_grad():
        assert not conv_norm(conv, norm, x, 3, fork=True)[0].requires_grad


def test_the_dense_gradient():
    conv, norm, sparse, blocked_norm = subject()
    sparse.watch_dense_gradient()
    x = torch.randn(3, INPUTS, 7, 5)
    y, *_ = conv_norm(sparse, blocked_norm, to_blocked(x), 3)
    grad = torch.randn_like(conv(x))
    y.backward(to_blocked(grad))
    norm.double()(conv.double()(x.double())).backward(grad.double())
    assert_near(sparse.take_dense_gradient(), conv.weight.grad, "probe")


def results(pair, x, batch):
    """Output and all gradients."""
    _, _, conv, norm = pair
    leaf = x.detach().requires_grad_()
    y, other, _ = conv_norm(conv, norm, leaf, batch, relu=True, fork=True)
    wanted = leaf, conv.values, norm.weight, norm.bias
    loss = sum(from_blocked(t, batch).square().sum() for t in (y, other))
    return [from_blocked(y, batch), *torch.autograd.grad(loss, wanted)]


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function.name())
        return function(*args, **(kwargs or {}))


def test_the_layers_one_by_one_give_the_same():
    """Whoever watches operations, or hooks a layer, sees both layers."""
    pair, x = subject(), to_blocked(torch.randn(17, INPUTS, 7, 5))
    together = results(pair, x, 17)
    with Names() as names:
        watched = results(pair, x, 17)
    assert {"sparsekit::conv", "sparsekit::norm"} <= set(names.seen)
    seen = []
    handle = pair[3].register_forward_hook(lambda *_: seen.append("hook"))
    hooked = results(pair, x, 17)
    handle.remove()
    assert seen == ["hook"]
    for one, two, three in zip(together, watched, hooked, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(three, one, rtol=1e-5, atol=1e-5)


def test_runs_and_threads_give_the_same_bits():
    pair, x = subject(), to_blocked(torch.randn(33, INPUTS, 32, 32))
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 1, 2):
            torch.set_num_threads(threads)
            runs.append(results(pair, x, 33))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        for one, other in zip(runs[0], run, strict=True):
            assert torch.equal(one, other)


def test_evaluation_and_wrong_inputs():
    conv, norm, sparse, blocked_norm = subject()
    x = torch.randn(3, INPUTS, 7, 5)
    norm.eval()
    blocked_norm.eval()
    y, *_ = conv_norm(sparse, blocked_norm, to_blocked(x), 3, relu=True)
    torch.testing.assert_close(from_blocked(y, 3), F.relu(norm(conv(x))))
    blocked_norm.train()
    with pytest.raises(ValueError, match="takes 5 channels"):
        conv_norm(sparse, blocked_norm, to_blocked(torch.randn(3, 6, 7, 5)), 3)
    with pytest.raises(ValueError, match="does not hold batch=17"):
        conv_norm(sparse, blocked_norm, to_blocked(x), 17)


def test_second_derivatives_are_refused():
    *_, conv, norm = subject()
    x = to_blocked(torch.randn(3, INPUTS, 7, 5)).requires_grad_()
    y, *_ = conv_norm(conv, norm, x, 3)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        grad.sum().backward()


def test_not_a_number_stays_one():
    *_, conv, norm = subject(density=1)
    x = torch.randn(3, INPUTS, 7, 5).requires_grad_()
    y, other, _ = conv_norm(conv, norm, to_blocked(x), 3, fork=True)
    grad = torch.zeros_like(y)
    grad[0, 2, 1, 1, 0] = torch.nan
    torch.autograd.backward([y, other], [grad, torch.ones_like(other)])
    assert x.grad[0, :, 0, 0].isnan().all()


@pytest.mark.parametrize("fewer", [False, True])
def test_connections_that_move_before_the_backward_pass_are_refused(fewer):
    *_, conv, norm = subject()
    x = to_blocked(torch.randn(3, INPUTS, 7, 5)).requires_grad_()
    losses = [conv_norm(conv, norm, x, 3)[0].sum(), conv(x).sum()]
    new = conv.mask().flatten().roll(1).view(conv.dense_shape)
    conv.move(new & (torch.arange(OUTPUTS) > 3).view(-1, 1, 1, 1) if fewer else new)
    for loss in losses:
        with pytest.raises(RuntimeError, match=r"went forward|modified by an inplace"):
            loss.backward()


def lent() -> int:
    """Floats of blocked tensors that somebody holds."""
    gc.collect()
    buffers.release()
    idle = sum(size for size, *_ in buffers._idle)
    return sum(slab.size for slab in buffers._slabs.values()) - idle


def two_in_a_row(again, batch=17, **options):
    """Result and all gradients; floats kept for them; floats in the middle."""
    _, _, first, norm = subject(**options)
    weight = torch.randn(4, OUTPUTS, 3, 3, requires_grad=True)
    second, last = SparseConv2d(weight, weight > 0), BlockedBatchNorm2d(4)
    leaf = to_blocked(torch.randn(batch, INPUTS, 7, 5)).requires_grad_()
    before = lent()
    y, _, origin = conv_norm(first, norm, leaf, batch, relu=True)
    assert torch.equal(origin.again(), y)
    z, other, none = conv_norm(
        second, last, y, batch, torch.zeros(2, 4, 9, 7, 16), fork=True,
        origin=origin if again else None,
    )  # fmt: skip
    assert none is None  # with a residual it would take more than its own output
    size = y.numel()
    del y, other, origin
    held = lent() - before
    z.square().sum().backward()
    parameters = [*first.parameters(), *norm.parameters(), *second.parameters()]
    return [z.detach(), leaf.grad, *(p.grad for p in parameters)], held, size


@pytest.mark.parametrize("options", [{}, {"affine": False}])
def test_what_is_made_again_is_not_kept(options):
    """The input of the second convolution; every gradient has the same bits."""
    kept, floats, _ = two_in_a_row(False, **options)
    made, fewer, size = two_in_a_row(True, **options)
    for one, other in zip(kept, made, strict=True):
        assert torch.equal(one, other)
    assert fewer == floats - size


def test_a_network_keeps_less_and_learns_the_same(monkeypatch):
    x, y = torch.randn(20, 3, 8, 8), torch.arange(20) % 10
    runs, held = [], []
    for kept in (False, True):
        if kept:
            module = sys.modules[conv_norm.__module__]
            monkeypatch.setattr(module, "_split", lambda x, origin: ((x,), ()))
        torch.manual_seed(2)
        model = convert(ResNet18(4, 10), to="values", where="all")
        before = lent()
        loss = F.cross_entropy(model(x), y)
        held.append(lent() - before)
        loss.backward()
        runs.append([loss.detach(), *(p.grad for p in model.parameters())])
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)
    assert held[0] < 0.78 * held[1]


# ---- when the layers run one by one --------------------------------------------------


def plain(sparse, norm, x, batch=3, residual=None):
    return conv_norm_module._is_plain_training(sparse, norm, x, batch, residual)


def blocked_input(channels=INPUTS, batch=3, size=(7, 5)):
    return to_blocked(torch.randn(batch, channels, *size))


def test_what_is_joined():
    for stride in (1, 2):
        *_, sparse, norm = subject(stride=stride)
        residual = sparse(blocked_input())
        assert plain(sparse, norm, blocked_input()) is True
        assert plain(sparse, norm, blocked_input(), residual=residual) is True
        assert plain(sparse, norm, blocked_input(batch=17), 17) is True


class Other(SparseConv2d):
    pass


class OtherNorm(BlockedBatchNorm2d):
    pass


def evaluation(sparse, norm):
    norm.eval()


def other_conv(sparse, norm):
    sparse.__class__ = Other


def other_norm(sparse, norm):
    norm.__class__ = OtherNorm


def averages(sparse, norm):
    norm.momentum = None


def no_statistics(sparse, norm):
    norm.running_mean = None


def other_channels(sparse, norm):
    norm.num_features = OUTPUTS + 1


def wide_statistics(sparse, norm):
    norm.double()


def wide_values(sparse, norm):
    sparse.double()


def hook(kind, which):
    def register(*layers):
        name = f"register_{kind}_hook"
        getattr(layers[which], name)(lambda *arguments: None)

    return register


@pytest.mark.parametrize(
    "change",
    [
        evaluation, other_conv, other_norm, averages, no_statistics, other_channels,
        wide_statistics, wide_values,
        *(hook(kind, which) for which in (0, 1)
          for kind in ("forward", "forward_pre", "full_backward",
                       "full_backward_pre")),
    ],
)  # fmt: skip
def test_layers_that_are_watched_or_different_run_one_by_one(change):
    *_, sparse, norm = subject()
    change(sparse, norm)
    assert plain(sparse, norm, blocked_input()) is False


def test_a_global_hook_sees_both_layers():
    *_, sparse, norm = subject()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *rest: seen.append(type(module))
    )
    try:
        conv_norm(sparse, norm, blocked_input(), 3)
    finally:
        handle.remove()
    assert seen == [SparseConv2d, BlockedBatchNorm2d]


@pytest.mark.parametrize(
    ("make", "batch"),
    [
        (lambda: torch.randn(3, INPUTS, 7, 5), 3),
        (blocked_input, 17),
        (lambda: blocked_input(batch=17), 3),
        (lambda: blocked_input(INPUTS + 1), 3),
        (lambda: blocked_input().double(), 3),
        (lambda: blocked_input()[..., :8], 3),
        (lambda: blocked_input().transpose(2, 3), 3),
        (lambda: blocked_input(batch=1, size=(1, 1)), 1),
    ],
)
def test_inputs_that_do_not_fit_run_one_by_one(make, batch):
    *_, sparse, norm = subject()
    assert plain(sparse, norm, make(), batch) is False


def test_sizes_of_one_value_are_told_by_what_comes_out():
    *_, sparse, norm = subject(stride=2)
    assert plain(sparse, norm, blocked_input(batch=1, size=(2, 2)), 1) is False
    assert plain(sparse, norm, blocked_input(batch=1, size=(3, 2)), 1) is True
    assert plain(sparse, norm, blocked_input(batch=1, size=(2, 3)), 1) is True
    assert plain(sparse, norm, blocked_input(batch=2, size=(1, 1)), 2) is True


def test_residuals_that_do_not_fit_run_one_by_one():
    *_, sparse, norm = subject()
    residual = sparse(blocked_input())
    for other in (
        residual[:, :1], residual.transpose(2, 3), residual[:, :, 1:-1],
        torch.cat([residual, residual]),
    ):  # fmt: skip
        assert plain(sparse, norm, blocked_input(), residual=other) is False


def test_under_a_mode_that_counts_operations_both_are_seen():
    *_, sparse, norm = subject()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    x = blocked_input()
    with Watch():
        assert plain(sparse, norm, x) is False
    assert plain(sparse, norm, x) is True


def test_the_origin_makes_a_result_again_and_keeps_less():
    *_, sparse, norm = subject()
    x = blocked_input().requires_grad_()
    for relu in (True, False):
        y, same, origin = conv_norm(sparse, norm, x, 3, relu=relu)
        assert same is x
        assert torch.equal(origin.again(), y)
    residual = torch.randn_like(y)
    assert conv_norm(sparse, norm, x, 3, residual)[2] is None
    with torch.no_grad():
        assert conv_norm(sparse, norm, x, 3)[2] is None
    assert conv_norm(sparse, norm.eval(), x, 3)[2] is None


def test_frozen_parts_get_no_gradient():
    for frozen in range(4):
        *_, sparse, norm = subject(bias=True)
        leaves = [sparse.values, sparse.bias, norm.weight, norm.bias]
        leaves[frozen].requires_grad_(False)
        x = blocked_input()
        conv_norm(sparse, norm, x, 3, relu=True)[0].square().sum().backward()
        assert [p.grad is None for p in leaves] == [i == frozen for i in range(4)]
        assert x.grad is None
    *_, sparse, norm = subject()
    for p in (sparse.values, norm.weight, norm.bias):
        p.requires_grad_(False)
    residual = sparse(blocked_input()).requires_grad_()
    conv_norm(sparse, norm, blocked_input(), 3, residual)[0].sum().backward()
    assert torch.equal(residual.grad, torch.ones_like(residual))


def test_gradients_of_any_layout():
    found = []
    *_, sparse, norm = subject(bias=True)
    x = blocked_input().requires_grad_()
    y, other, _ = conv_norm(sparse, norm, x, 3, fork=True)
    grads = [torch.randn_like(t).transpose(2, 3).contiguous() for t in (y, x)]
    for turned in (True, False):
        given = [g.transpose(2, 3) for g in grads]
        given = given if turned else [g.contiguous() for g in given]
        leaves = x, sparse.values, norm.weight
        found.append(torch.autograd.grad((y, other), leaves, given, retain_graph=True))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
