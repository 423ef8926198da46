"""Gradient norms of whole networks, against loops of backward and vmap(grad)."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsekit.data_pruning import rule
from sparsekit.data_pruning.per_sample import gradient_norms
from tests.sparsekit.data_pruning.networks import (
    by_loop,
    by_vmap,
    mlp,
    resnet,
    transformer,
)

NETWORKS = {"mlp": mlp, "resnet": resnet, "transformer": transformer}
CLOSE = {"rtol": 1e-5, "atol": 1e-6, "check_dtype": False}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("oracle", [by_loop, by_vmap])
def test_equal_to_the_oracles(name, oracle):
    model, x, y = NETWORKS[name]()
    torch.testing.assert_close(
        gradient_norms(model, x, y), oracle(model, x, y), **CLOSE
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_small_chunks_and_single_samples_change_nothing(name, monkeypatch):
    model, x, y = NETWORKS[name]()
    whole = gradient_norms(model, x, y)
    monkeypatch.setattr(rule, "CHUNK", 600)
    torch.testing.assert_close(gradient_norms(model, x, y), whole, **CLOSE)
    single = [gradient_norms(model, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    torch.testing.assert_close(torch.cat(single), whole, **CLOSE)


@pytest.mark.parametrize("chunk", [2**22, 400])
def test_tied_weights_are_added_before_the_norm(chunk, monkeypatch):
    monkeypatch.setattr(rule, "CHUNK", chunk)
    model, x, y = transformer(tied=True)
    found = gradient_norms(model, x, y)
    torch.testing.assert_close(found, by_loop(model, x, y), **CLOSE)
    masks = {"embedding.weight": torch.rand(23, 14) > 0.4}
    expected = by_loop(model, x, y, masks)
    torch.testing.assert_close(
        gradient_norms(model, x, y, masks=masks), expected, **CLOSE
    )
    assert (found - expected).abs().min() > 1e-3


class Recurrent(nn.Module):
    """Layers without a rule, a position, and a parameter that is not used."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.position = nn.Parameter(torch.randn(1, 4, 6))
        self.unused = nn.Parameter(torch.randn(3))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.lstm(x)[0] + self.position
        return self.head(self.attention(x, x, x)[0].mean(1))


def test_one_by_one_takes_any_model():
    torch.manual_seed(0)
    model, x, y = Recurrent(), torch.randn(7, 4, 5), torch.arange(7) % 3
    with pytest.raises(ValueError, match=r"no per-sample rule.*one_by_one=True"):
        gradient_norms(model, x, y)
    # Independent: torch's own backward pass into .grad, sample by sample.
    expected = []
    masks = {"lstm.weight_hh_l0": torch.rand(24, 6) > 0.5}
    for i in range(7):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        model.lstm.weight_hh_l0.grad.mul_(masks["lstm.weight_hh_l0"])
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        expected.append(torch.cat(grads).norm())
    model.zero_grad()
    found = gradient_norms(model, x, y, masks=masks, one_by_one=True)
    torch.testing.assert_close(found, torch.stack(expected), **CLOSE)
    assert all(p.grad is None for p in model.parameters())
    nothing = gradient_norms(model, x, y, params=["unused"], one_by_one=True)
    assert not nothing.any()


@pytest.mark.parametrize("name", NETWORKS)
def test_one_by_one_equals_one_pass(name):
    model, x, y = NETWORKS[name]()
    torch.testing.assert_close(
        gradient_norms(model, x, y, one_by_one=True), gradient_norms(model, x, y),
        **CLOSE,
    )  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_masked(name):
    model, x, y = NETWORKS[name]()
    generator = torch.Generator().manual_seed(3)
    masks = {
        n: torch.rand(p.shape, generator=generator) > 0.7
        for n, p in model.named_parameters()
    }
    found = gradient_norms(model, x, y, masks=masks)
    torch.testing.assert_close(found, by_loop(model, x, y, masks), **CLOSE)


def test_masked_is_the_gradient_of_the_model_without_the_absent_weights():
    model, x, y = mlp()
    masks = {"0.weight": torch.rand(11, 7) > 0.6, "2.weight": torch.rand(5, 11) > 0.6}
    for name, mask in masks.items():
        model.get_parameter(name).data *= mask
    values = {n: p.detach()[masks[n]] if n in masks else p.detach()
              for n, p in model.named_parameters()}  # fmt: skip

    def loss(values, x, y):  # of the present weights alone
        full = {
            n: torch.zeros(masks[n].shape).masked_scatter(masks[n], v)
            if n in masks
            else v
            for n, v in values.items()
        }
        logits = torch.func.functional_call(model, full, (x.unsqueeze(0),))
        return F.cross_entropy(logits, y.unsqueeze(0))

    expected = []
    for i in range(len(x)):
        grads = torch.func.grad(loss)(values, x[i], y[i]).values()
        expected.append(sum(g.square().sum() for g in grads).sqrt())
    found = gradient_norms(model, x, y, masks=masks)
    torch.testing.assert_close(found, torch.stack(expected), **CLOSE)


def test_chosen_and_frozen_parameters():
    model, x, y = resnet()
    names = ["3.conv1.weight", "7.bias"]
    expected = by_loop(model, x, y, names=names)
    torch.testing.assert_close(
        gradient_norms(model, x, y, params=names), expected, **CLOSE
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    torch.testing.assert_close(gradient_norms(model, x, y), expected, **CLOSE)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter counts"):
        gradient_norms(model, x, y)


def test_another_loss():
    model, x, y = mlp()
    found = gradient_norms(model, x, y, loss=lambda o, t: 7 * F.cross_entropy(
        o, t, reduction="none"))  # fmt: skip
    torch.testing.assert_close(found, 7 * by_loop(model, x, y), **CLOSE)
    wish = torch.randn(13, 3)
    found = gradient_norms(model, x, wish, loss=lambda o, t: (o - t).square().sum(1))
    last = gradient_norms(
        model, x, wish, loss=lambda o, t: (o - t).square().sum(1), params=["4.bias"]
    )
    torch.testing.assert_close(last, 2 * (model(x) - wish).norm(dim=1).detach())
    assert (found > last).all()


def test_nothing_of_the_model_changes():
    model, x, y = resnet()
    model.register_buffer("n_calls", torch.zeros(()))
    model.register_forward_pre_hook(lambda m, args: m.n_calls.add_(1) and None)
    model[5].train()  # pooling
    F.cross_entropy(model(x), y).backward()
    hooks = {m: len(m._forward_hooks) for m in model.modules()}
    before = copy.deepcopy(model)
    grads = [p.grad.clone() for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    random = torch.get_rng_state()
    with torch.no_grad():
        gradient_norms(model, x, y)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == modes
    assert {m: len(m._forward_hooks) for m in model.modules()} == hooks
    assert x.grad is None
    for new, old in zip(model.buffers(), before.buffers(), strict=True):
        assert torch.equal(new, old)
    for new, old, grad in zip(
        model.parameters(), before.parameters(), grads, strict=True
    ):
        assert torch.equal(new, old)
        assert torch.equal(new.grad, grad)
        assert new.requires_grad


def test_no_samples_influence_on_each_other():
    model, x, y = resnet()
    whole = gradient_norms(model, x, y)
    order = torch.randperm(len(x))
    torch.testing.assert_close(gradient_norms(model, x[order], y[order]), whole[order])


def test_half_precision_and_autocast_are_near_and_float32():
    model, x, y = mlp()
    exact = gradient_norms(model, x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradient_norms(model, x, y)
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.02)
    half = gradient_norms(model.bfloat16(), x.bfloat16(), y)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0.02)


def test_float64_channels_last_and_compiled():
    model, x, y = resnet()
    exact = gradient_norms(model, x, y)
    found = gradient_norms(model.to(memory_format=torch.channels_last), x, y)
    torch.testing.assert_close(found, exact, **CLOSE)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    torch.testing.assert_close(gradient_norms(compiled, x, y), exact, **CLOSE)
    model.compile(backend="eager")
    model(x)
    torch.testing.assert_close(gradient_norms(model, x, y), exact, **CLOSE)
    model[3] = torch.compile(model[3], backend="eager")
    torch.testing.assert_close(gradient_norms(model, x, y), exact, **CLOSE)
    found = gradient_norms(resnet()[0].double(), x.double(), y)
    expected = by_loop(resnet()[0].double(), x.double(), y)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_the_users_hooks_and_gradients_of_inputs_do_no_harm():
    model, x, y = mlp()
    model[2].register_forward_hook(lambda m, args, out: 3 * out)
    model[0].register_forward_pre_hook(lambda m, args: (args[0] - 1,))
    model[2].register_full_backward_hook(lambda m, before, after: None)
    expected = by_loop(model, x, y)
    torch.testing.assert_close(gradient_norms(model, x, y), expected, **CLOSE)
    with_gradient = x.clone().requires_grad_()
    torch.testing.assert_close(
        gradient_norms(model, with_gradient, y), expected, **CLOSE
    )
    assert with_gradient.grad is None


class Reshaping(nn.Module):
    """Uses of layers that are right, but unusual; by name."""

    def __init__(self, how):
        super().__init__()
        self.how, self.one, self.two = how, nn.Linear(7, 7), nn.Linear(7, 5)

    def forward(self, x):
        if self.how == "twice":
            return self.two(self.one(self.one(x).relu()))
        if self.how == "constant part":
            with torch.no_grad():
                h = self.one(x)
            return self.two(h)
        if self.how == "result unused":
            self.one(x)
            return self.two(x)
        if self.how == "output changed in place":
            h = self.one(x)
            h[:, :3] *= 2
            h.mul_(3)
            return self.two(h.relu_())
        if self.how == "checkpoint":
            from torch.utils.checkpoint import checkpoint

            return self.two(checkpoint(self.one, x, use_reentrant=False).relu())
        if self.how == "input changed in place":
            h = x + 0
            out = self.one(h)
            h += 1
            return self.two(out)
        if self.how == "no positions":
            empty = self.one(x[:, None, :][:, :0])  # [B, 0, 7]
            return self.two(self.one(x) + empty.sum(1))
        raise AssertionError(self.how)


@pytest.mark.parametrize(
    "how",
    ["twice", "constant part", "result unused", "output changed in place",
     "checkpoint", "no positions"],
)  # fmt: skip
def test_unusual_uses(how):
    torch.manual_seed(4)
    model, x, y = Reshaping(how), torch.randn(6, 7), torch.randint(0, 5, (6,))
    torch.testing.assert_close(
        gradient_norms(model, x, y), by_loop(model, x, y), **CLOSE
    )


def test_an_input_changed_in_place_matters_to_the_weight_only():
    torch.manual_seed(4)
    model, x = Reshaping("input changed in place"), torch.randn(6, 7)
    y = torch.randint(0, 5, (6,))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient_norms(model, x, y)
    model.one.weight.requires_grad_(False)
    torch.testing.assert_close(
        gradient_norms(model, x, y), by_loop(model, x, y), **CLOSE
    )


def test_tied_weights_under_autocast_are_computed_in_float32():
    model, x, y = transformer(tied=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradient_norms(model, x, y)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, gradient_norms(model, x, y), rtol=0.05, atol=0.02)
