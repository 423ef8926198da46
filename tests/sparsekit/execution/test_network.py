"""Whole networks in the blocked layout against the masked dense one in float64."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.networks import resnet18
from sparsekit.execution.conv import SparseConv2d, unsupported
from sparsekit.execution.layer import SparseLayer
from sparsekit.execution.network import BlockedNetwork, blocked_network


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7), nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(7, 11, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(11, 5, 1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(20, 10),
    )  # fmt: skip


class Concatenation(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 2, 1)
        self.norm, self.c = nn.BatchNorm2d(7), nn.Conv2d(7, 10, 3, 2, 1)

    def forward(self, x):
        y = torch.cat([self.a(x), F.max_pool2d(self.b(x), 3, 1, padding=1)], dim=1)
        return self.c(F.relu(self.norm(y))).mean(dim=(2, 3))


class Residual(nn.Module):
    """Reads a norm twice, adds in place, and has a norm on both sides of a sum."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(n, 7, 3, padding=1) for n in (3, 7))
        self.norm1, self.norm2, self.norm3 = (nn.BatchNorm2d(7) for _ in range(3))
        self.end = nn.Linear(7, 10)

    def forward(self, x):
        y = self.norm1(self.conv1(x))
        z = self.norm2(self.conv2(F.relu(y)))
        z += y
        z = torch.relu_(z)
        z = torch.add(self.norm3(z), self.norm2(z)) + z
        return self.end(F.adaptive_avg_pool2d(z.relu(), 1).flatten(1))


class Sigmoid(nn.Module):
    """Leaves the border at 1/2, and scales channels."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(n, 5, 3, padding=1) for n in (3, 5))
        self.squeeze, self.end = nn.Conv2d(5, 5, 1), nn.Conv2d(5, 10, 3, 2, 1)

    def forward(self, x):
        x = self.conv2(torch.sigmoid(self.conv1(x)) + 1)
        x = x * self.squeeze(x.mean((2, 3), keepdim=True)).sigmoid()
        x = x + self.squeeze(x.mean((2, 3), keepdim=True))  # one pixel, broadcast
        return self.end(x).sum((-1, -2)).view(x.size(0), -1)


class InPlace(nn.Module):
    """What a call in place changed is read again under its old names."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(n, 10, 3, padding=1) for n in (3, 10))
        self.norm, self.same = nn.BatchNorm2d(10), nn.Identity()
        self.act = nn.SiLU(inplace=True)

    def forward(self, x):
        y = self.norm(self.conv1(x))
        alias = self.same(y)
        F.relu(y, inplace=True)
        z = self.norm(self.conv2(alias * 2)) + y
        self.act(z)
        w = z.clone()
        w.mul_(3)
        return (self.conv2(w) + self.conv2(z)).mean((2, 3))


class Mode(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3, padding=1)

    def forward(self, x, scale=2.0, shift=None):
        x = self.conv(x) * (scale if self.training else 1.0)
        return (x if shift is None else x + shift).mean((2, 3))


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3, padding=1)

    def forward(self, x):
        if x.sum() > 0:
            x = -x
        return self.conv(x).mean((2, 3))


NETWORKS = {
    "resnet18": lambda: resnet18(4),
    "plain": plain,
    "concatenation": Concatenation,
    "residual": Residual,
    "sigmoid": Sigmoid,
    "in place": InPlace,
    "mode": Mode,
    "dense inside": lambda: nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Conv2d(5, 5, 5, padding=2),
        nn.ReLU(), nn.Conv2d(5, 10, 3, padding=1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ),
}  # fmt: skip


def subject(name, density=0.4):
    """A network with absent weights at zero, and its sparse form, layer by layer."""
    torch.manual_seed(0)
    dense = NETWORKS.get(name, Unknown)()
    for module in dense.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data *= torch.rand(module.weight.shape) < density
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return dense, sparse_layers(copy.deepcopy(dense))


def sparse_layers(model):
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, nn.Conv2d) and not unsupported(child):
                parent._modules[name] = SparseConv2d.from_dense(child)
    return model


def assert_same(sparse, exact, x, tolerance=2e-5):
    """Output, all gradients and all buffers, against `exact` in float64."""
    wide, x = x.double().requires_grad_(), x.clone().requires_grad_()
    y, z = exact(wide), sparse(x)
    assert_near(z, y, tolerance, "output")
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    exact.zero_grad()
    sparse.zero_grad()
    y.backward(grad.double())
    z.backward(grad)
    assert_near(x.grad, wide.grad, tolerance, "input")
    modules = dict(sparse.named_modules())
    for name, parameter in exact.named_parameters():
        path, _, leaf = name.rpartition(".")
        layer = modules[path]
        if isinstance(layer, SparseLayer) and leaf == "weight":
            assert_near(
                layer.values.grad, parameter.grad[layer.mask()], tolerance, name
            )
        else:
            assert_near(getattr(layer, leaf).grad, parameter.grad, tolerance, name)
    for name, buffer in exact.named_buffers():
        path, _, leaf = name.rpartition(".")
        assert_near(getattr(modules[path], leaf), buffer, tolerance, name)


def assert_near(got, answer, tolerance, what):
    got, answer = got.double(), answer.double()
    error = (got - answer).norm()  # a bias before a norm has gradient 0
    assert error <= tolerance * answer.norm() + 5e-5, (what, error, answer.norm())


@pytest.mark.parametrize("name", NETWORKS)
def test_like_the_masked_dense_network(name):
    dense, layers = subject(name)
    sparse, reason = blocked_network(layers)
    assert reason is None
    assert list(sparse.state_dict()) == list(layers.state_dict())
    exact = dense.double()
    for batch, training in ((17, True), (6, True), (6, False)):
        exact.train(training)
        sparse.train(training)
        x = torch.randn(batch, 3, 16, 16)
        assert_same(sparse, exact, x.to(memory_format=torch.channels_last))


def test_activations_stay_blocked_and_norms_take_over_what_follows():
    sparse, _ = blocked_network(subject("resnet18")[1])
    assert isinstance(sparse, BlockedNetwork)
    for code in sparse.code:
        assert code.count("to_blocked(") == 1
        assert "from_blocked(" not in code
        assert "relu(" not in code
        assert "add(" not in code
    code = blocked_network(subject("sigmoid")[1])[0].code[0]
    assert code.index("from_blocked(") < code.index("sigmoid(")


def test_copies_pickles_and_state():
    dense, layers = subject("residual")
    sparse, _ = blocked_network(layers)
    x = torch.randn(5, 3, 16, 16)
    twin = copy.deepcopy(sparse)
    stored = pickle.loads(pickle.dumps(sparse))
    expected = sparse(x)
    torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(stored(x), expected, rtol=0, atol=0)
    assert twin.conv1.values is not sparse.conv1.values
    with torch.no_grad():
        twin.conv1.values.mul_(2)
    sparse.load_state_dict(twin.state_dict())
    torch.testing.assert_close(sparse(x), twin(x), rtol=0, atol=0)
    assert dense.conv1.weight.requires_grad  # unused otherwise: not touched


def test_other_arguments_and_mixed_modes():
    dense, layers = subject("mode")
    sparse, _ = blocked_network(layers)
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(sparse(x, 3.0), dense(x, 3.0), rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError, match="shift has been specialized"):
        sparse(x, shift=torch.ones(10, 1, 1))
    sparse.conv.eval()
    with pytest.raises(RuntimeError, match="must be in the same mode"):
        sparse(x)


def test_what_cannot_be_traced_stays_layer_by_layer():
    dense, layers = subject("unknown")
    same, reason = blocked_network(layers)
    assert same is layers
    assert "control flow" in reason
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(same(x), dense(x), rtol=1e-4, atol=1e-5)

    hooked = subject("plain")[1]
    hooked[4].register_forward_hook(lambda *_: None)
    same, reason = blocked_network(hooked)
    assert same is hooked
    assert "module '4' has hooks" in reason


@pytest.mark.parametrize("name", ["resnet18", "sigmoid"])
def test_compiles_in_one_graph(name):
    dense, layers = subject(name)
    sparse, _ = blocked_network(layers)
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager")
    exact = dense.double()
    for batch in (17, 3):
        x = torch.randn(batch, 3, 16, 16)
        assert_same(Compiled(compiled, sparse), exact, x, tolerance=3e-5)


class Compiled:
    """Calls the compiled module, and has the parameters of the plain one."""

    def __init__(self, compiled, module):
        self.call, self.module = compiled, module

    def __call__(self, x):
        return self.call(x)

    def __getattr__(self, name):
        return getattr(self.module, name)


def test_exports():
    _, layers = subject("resnet18")
    sparse, _ = blocked_network(layers.eval())
    x = torch.randn(5, 3, 16, 16)
    program = torch.export.export(sparse, (x,))
    torch.testing.assert_close(program.module()(x), sparse(x))


def test_a_dense_gradient_is_collected_in_the_network():
    dense, layers = subject("residual")
    sparse, _ = blocked_network(layers)
    sparse.conv2.watch_dense_gradient()
    x = torch.randn(5, 3, 16, 16)
    sparse(x).sum().backward()
    exact = dense.double()
    exact(x.double()).sum().backward()
    assert_near(
        sparse.conv2.take_dense_gradient(), exact.conv2.weight.grad, 2e-5, "dense"
    )
