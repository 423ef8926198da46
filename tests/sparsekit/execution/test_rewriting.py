"""What stays in the blocked layout: conversions in the written code are counted."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsekit.execution.blocked import from_blocked, to_blocked
from sparsekit.execution.conv import SparseConv2d
from sparsekit.execution.network import BlockedNetwork, blocked_network
from sparsekit.execution.rewriting import add


def sparse(n_in, n_out, side=3, stride=1):
    conv = nn.Conv2d(n_in, n_out, side, stride, side // 2)
    mask = torch.rand(conv.weight.shape) < 0.5
    conv.weight.data *= mask
    return SparseConv2d.from_dense(conv, mask)


class Between(nn.Module):
    """Something between two convolutions, as a module or as a function."""

    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = sparse(3, 4), sparse(4, 4)
        self.more, self.norm, self.norm2 = sparse(4, 4), *_norms(4, 4)
        if isinstance(between, nn.Module):
            self.between = between
        else:
            self.call = between

    def forward(self, x):
        x = self.first(x)
        x = self.between(x) if hasattr(self, "between") else self.call(self, x)
        return self.last(x)


def _norms(*widths):
    made = [nn.BatchNorm2d(n) for n in widths]
    for norm in made:
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    return made


def as_network(model, x):
    """The blocked network, after its outputs and statistics were compared."""
    outside = copy.deepcopy(model)
    network, reason = blocked_network(model)
    assert reason is None
    assert isinstance(network, BlockedNetwork)
    for training in (True, False):
        network.train(training)
        outside.train(training)
        torch.testing.assert_close(network(x), outside(x), rtol=1e-4, atol=1e-5)
    for a, b in zip(network.buffers(), outside.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    return network


def count(network, name):
    """How often both codes, for training and evaluation, call a function."""
    found = {len(re.findall(rf"\b\w*{name}\(", text)) for text in network.code}
    (times,) = found
    return times


X = torch.randn(18, 3, 6, 7)

STAY = {
    "relu": nn.ReLU(),
    "relu in place": nn.ReLU(inplace=True),
    "relu6": nn.ReLU6(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "hardswish in place": nn.Hardswish(inplace=True),
    "tanh": nn.Tanh(),
    "identity": nn.Identity(),
    "maximum": nn.MaxPool2d(2),
    "maximum, padded": nn.MaxPool2d(3, 2, 1),
    "mean": nn.AvgPool2d(2),
    "norm": _norms(4)[0],
    "F.relu": lambda self, x: F.relu(x),
    "F.relu in place": lambda self, x: F.relu(x, inplace=True),
    "torch.relu": lambda self, x: torch.relu(x),
    "x.relu()": lambda self, x: x.relu(),
    "x.relu_()": lambda self, x: x.relu_(),
    "F.elu": lambda self, x: F.elu(x, 0.5),
    "F.leaky_relu": lambda self, x: F.leaky_relu(x, negative_slope=0.3),
    "F.relu6 in place": lambda self, x: F.relu6(x, inplace=True),
    "torch.tanh": lambda self, x: torch.tanh(x),
    "x.tanh()": lambda self, x: x.tanh(),
    "F.max_pool2d": lambda self, x: F.max_pool2d(x, 2),
    "F.avg_pool2d": lambda self, x: F.avg_pool2d(x, 2, 1),
    "sum": lambda self, x: self.more(x) + x,
    "x.add(y)": lambda self, x: x.add(self.more(x)),
    "torch.add": lambda self, x: torch.add(self.more(x), x),
    "in place": lambda self, x: self.more(x).add_(x),
    "twice itself": lambda self, x: x + x,
    "sums of norms": lambda self, x: self.norm(x) + self.norm2(self.more(x)),
    "sum, relu": lambda self, x: F.relu(self.norm(self.more(x)) + x),
    "relu, sum": lambda self, x: F.relu(self.norm(self.more(x))) + x,
    "norm, norm": lambda self, x: self.norm2(self.norm(x)),
    "norm of a sum": lambda self, x: self.norm(self.more(x) + x),
}


@pytest.mark.parametrize("name", STAY)
def test_what_is_known_is_not_converted(name):
    network = as_network(Between(copy.deepcopy(STAY[name])), X)
    assert (count(network, "to_blocked"), count(network, "from_blocked")) == (1, 1)


CONVERTED = {
    "sigmoid": lambda self, x: torch.sigmoid(x),
    "softmax": lambda self, x: x.softmax(1),
    "a number more": lambda self, x: x + 1.0,
    "a number times": lambda self, x: x * 2.0,
    "scaled sum": lambda self, x: torch.add(x, x, alpha=2),
    "dilated maximum": lambda self, x: F.max_pool2d(x, 2, 1, 0, 2),
    "with indices": lambda self, x: F.max_pool2d(x, 2, return_indices=True)[0],
    "mean beside zeros": lambda self, x: F.avg_pool2d(x, 3, 1, 1),
    "relu in float64": lambda self, x: x.double().relu().float(),
    "channels": lambda self, x: x[:, torch.tensor([1, 0, 3, 2])],
    "slope that is a tensor": lambda self, x: F.prelu(x, self.norm.weight),
    "instance norm": nn.InstanceNorm2d(4),
    "group norm": nn.GroupNorm(2, 4),
    "elu and more": nn.Softplus(),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_what_is_not_known_reads_ordinary_tensors(name):
    network = as_network(Between(copy.deepcopy(CONVERTED[name])), X)
    assert (count(network, "to_blocked"), count(network, "from_blocked")) == (2, 2)


class Branches(nn.Module):
    """Two convolutions of the images, or of a part each, and what they meet in."""

    def __init__(self, meet, widths, n_in, halves=False):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = (sparse(3, width) for width in widths)
        self.last, self.meet, self.halves = sparse(n_in, 4), meet, halves

    def forward(self, x):
        first, second = (x[:9], x[9:]) if self.halves else (x, x)
        return self.last(self.meet(self.a(first), self.b(second)))


@pytest.mark.parametrize(
    "meet",
    [
        lambda a, b: torch.cat([a, b], 1), lambda a, b: torch.cat((a, b), dim=1),
        lambda a, b: torch.concat([a, b], -3), lambda a, b: torch.cat([a, b], dim=-3),
    ],
)  # fmt: skip
def test_channels_side_by_side_stay(meet):
    network = as_network(Branches(meet, (4, 5), 9), X)
    assert (count(network, "to_blocked"), count(network, "from_blocked")) == (1, 1)
    assert count(network, "cat") == 1


@pytest.mark.parametrize(
    "meet",
    [
        lambda a, b: torch.cat([a, b]), lambda a, b: torch.cat([a, b], 2),
        lambda a, b: torch.cat([a, b], dim=-1), lambda a, b: torch.cat([a, b], 3),
        lambda a, b: torch.cat([a[:, :2], b[:, 2:]], 1),
    ],
)  # fmt: skip
def test_other_concatenations_are_those_of_ordinary_tensors(meet):
    network = as_network(Branches(meet, (4, 4), 4), X)
    assert count(network, "to_blocked") == 2


@pytest.mark.parametrize(
    "meet",
    [
        lambda a, b: torch.cat([a, b], 1), lambda a, b: torch.cat([a + b, a], 1),
    ],
)  # fmt: skip
def test_images_of_two_batches_are_not_taken_for_those_of_one(meet):
    as_network(Branches(meet, (4, 4), 8, halves=True), X)


def test_the_number_of_images_is_known_in_the_layout():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = sparse(3, 4), sparse(4, 4)

        def forward(self, x):
            y = self.a(x)
            return self.b(y).flatten(1).sum(1).view(y.size(0), 1) * y.size(0)

    network = as_network(Sized(), X)
    assert count(network, "from_blocked") == 1
    assert network(X).shape == (18, 1)


@pytest.mark.parametrize(
    "mean",
    [
        lambda x: x.mean((2, 3)), lambda x: x.mean((2, 3), keepdim=True),
        lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: torch.mean(x, (-1, -2)),
    ],
)  # fmt: skip
def test_the_global_mean_reads_the_layout(mean):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a = sparse(3, 4)

        def forward(self, x):
            return mean(self.a(x))

    network = as_network(Pooled(), X)
    assert count(network, "from_blocked") == 0
    assert count(network, "global_mean") == 1
    assert network(X).shape == mean(torch.zeros(18, 4, 6, 7)).shape


# ---- joining what follows ------------------------------------------------------------


class Block(nn.Module):
    """A residual block: its input is read by a convolution and by the sum."""

    def __init__(self, n=4):
        super().__init__()
        torch.manual_seed(0)
        self.start, self.a, self.b, self.end = (
            sparse(3, n), sparse(n, n), sparse(n, n), sparse(n, n),
        )  # fmt: skip
        self.norm, self.norm_a, self.norm_b = _norms(n, n, n)

    def forward(self, x):
        x = F.relu(self.norm(self.start(x)))
        y = F.relu(self.norm_a(self.a(x)))
        return self.end(F.relu(self.norm_b(self.b(y)) + x))


def joined(network):
    """(residual, relu, fork, origin) of every joined call, in training."""
    calls = re.findall(r"conv_norm\((.*?)\);", network.code[0])
    return [tuple(word.strip() for word in call.split(",")[-4:]) for call in calls]


def test_a_convolution_takes_norm_sum_and_relu_with_it():
    network = as_network(Block(), X)
    calls = joined(network)
    assert len(calls) == 3
    assert [relu for _, relu, _, _ in calls] == ["True"] * 3
    assert [residual != "None" for residual, *_ in calls] == [False, False, True]
    # x is read by a and by the sum: a hands it on; what only one reads is not forked.
    assert [fork for _, _, fork, _ in calls] == ["False", "True", "False"]
    assert [origin != "None" for *_, origin in calls] == [False, True, True]
    assert count(network, "to_blocked") == count(network, "from_blocked") == 1


def test_three_readers_are_served_one_after_the_other():
    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.start, self.a, self.b, self.c, self.end = (
                sparse(3, 4), *(sparse(4, 4) for _ in range(4)),
            )  # fmt: skip
            self.n0, self.n1, self.n2, self.n3 = _norms(4, 4, 4, 4)

        def forward(self, x):
            x = F.relu(self.n0(self.start(x)))
            y = F.relu(self.n1(self.a(x)))
            z = F.relu(self.n2(self.b(x)))
            return self.end(y + z + F.relu(self.n3(self.c(x))))

    network = as_network(Three(), X)
    assert [fork for _, _, fork, _ in joined(network)] == [
        "False", "True", "True", "False",
    ]  # fmt: skip
    x = X.clone().requires_grad_()
    network.train()(x).sum().backward()
    assert x.grad.isfinite().all()


def test_gradients_of_a_block_are_those_of_its_layers():
    model = Block().train()
    outside = copy.deepcopy(model)
    network, _ = blocked_network(model)
    for each in (network, outside):
        each(X).square().sum().backward()
    for (name, a), b in zip(
        outside.named_parameters(), network.parameters(), strict=True
    ):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-3, msg=name)


class Free(nn.Module):
    """Layers, and a forward pass that is a function of them and the images."""

    def __init__(self, call):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = sparse(3, 4), sparse(4, 4), sparse(3, 4)
        self.norm, self.same, self.call = _norms(4)[0], nn.Identity(), call

    def forward(self, x):
        return self.call(self, x)


def a_norm_that_two_read(self, x):
    y = self.norm(self.a(x))
    return self.b(F.relu(y) + y)


def a_convolution_that_two_read(self, x):
    y = self.a(x)
    return self.b(self.norm(y) + y)


def a_view_that_changes_in_place(self, x):
    """x was converted for the first convolution, and is another one for the second."""
    x = torch.sigmoid(x)
    y = self.a(x)
    x[:, :1].add_(1.0)
    return y + self.c(x)


def new_values_under_old_names(self, x):
    y = self.a(x)
    z = self.same(y)
    y.relu_()
    w = self.norm(z)
    w += y
    return self.b(w) + z


@pytest.mark.parametrize(
    "call",
    [
        a_norm_that_two_read, a_convolution_that_two_read,
        a_view_that_changes_in_place, new_values_under_old_names,
    ],
)  # fmt: skip
def test_nobody_takes_over_or_misses_what_others_need(call):
    as_network(Free(call), X)


def test_tensors_that_are_no_buffers_and_constants_of_the_forward_go_along():
    def call(self, x):
        x = self.a(x)[:, torch.tensor([1, 0, 3, 2])]
        return self.b(x + self.shift)

    model = Free(call)
    model.shift, names = torch.randn(4, 1, 1), set(model.state_dict())
    network = as_network(model, X)
    copied = copy.deepcopy(network)
    assert torch.equal(copied(X), network(X))
    assert set(network.state_dict()) == names


def test_buffers_that_are_not_saved_stay_so():
    model = Free(lambda self, x: self.b(self.a(x) + self.shift))
    model.register_buffer("shift", torch.randn(4, 1, 1), persistent=False)
    names = set(model.state_dict())
    network = as_network(model, X)
    assert set(network.state_dict()) == names
    assert "shift" in dict(network.named_buffers())


def test_activations_of_the_layout_change_nothing_in_place():
    model = nn.Sequential(
        sparse(3, 4), nn.Hardswish(inplace=True), sparse(4, 4), nn.ReLU(inplace=True),
        nn.SiLU(inplace=True), nn.Dropout(0.0, inplace=True),
    )  # fmt: skip
    network = as_network(model, X)
    flags = [getattr(m, "inplace", None) for m in network.children()]
    assert flags == [None, False, None, True, False, True]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AssertionError(), "AssertionError"),
        (ValueError("\n one \ntwo"), "one"),
        (ValueError("x" * 101), "x" * 100),
    ],
)
def test_a_forward_that_fails_says_why_in_a_line(error, reason):
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm = sparse(3, 4), nn.BatchNorm2d(4).eval()

        def forward(self, x):
            raise error

    model = Fails()
    assert blocked_network(model) == (model, f"torch.fx cannot trace it: {reason}")
    assert [m.training for m in model.modules()] == [True, True, False]


@pytest.mark.parametrize("pixel", [True, False])
def test_sums_of_blocked_tensors(pixel):
    x = torch.randn(18, 4, 6, 7)
    y = torch.randn(18, 4, 1, 1) if pixel else torch.randn_like(x)
    found = add(to_blocked(x), to_blocked(y), 18)
    torch.testing.assert_close(from_blocked(found, 18), x + y)
    assert torch.equal(to_blocked(from_blocked(found, 18)), found)
