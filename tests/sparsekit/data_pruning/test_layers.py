"""Each rule against autograd, one sample at a time; sizes prime and all different."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sparsekit.data_pruning import products, rule
from sparsekit.data_pruning.layers import RULES, rule_of
from sparsekit.data_pruning.rule import Use

# name: (a function that makes the layer, shape of one sample's input)
CASES = {
    "linear": (lambda: nn.Linear(7, 11), (7,)),
    "linear, T=1": (lambda: nn.Linear(7, 11), (1, 7)),
    "linear, T=5": (lambda: nn.Linear(7, 11), (5, 7)),
    "linear, T=2x3, no bias": (lambda: nn.Linear(7, 11, bias=False), (2, 3, 7)),
    "linear, T=37": (lambda: nn.Linear(7, 5), (37, 7)),
    "linear, T=0": (lambda: nn.Linear(7, 5), (0, 7)),
    "conv1d": (lambda: nn.Conv1d(11, 7, 3, 2, 1), (11, 13)),
    "conv1d, few channels": (lambda: nn.Conv1d(3, 7, 5, padding="same"), (3, 11)),
    "conv1d, dilated": (lambda: nn.Conv1d(11, 2, 3, 2, dilation=3), (11, 17)),
    "conv1d, reflect": (
        lambda: nn.Conv1d(11, 2, 3, padding=2, padding_mode="reflect"),
        (11, 7),
    ),
    "conv2d": (lambda: nn.Conv2d(11, 7, 3), (11, 7, 5)),
    "conv2d, few channels": (lambda: nn.Conv2d(3, 7, 3, 2, 1), (3, 7, 5)),
    "conv2d, 1x1": (lambda: nn.Conv2d(11, 7, 1), (11, 3, 5)),
    "conv2d, 1x1, strided": (lambda: nn.Conv2d(11, 7, 1, 2), (11, 6, 5)),
    "conv2d, kernel below stride": (lambda: nn.Conv2d(11, 7, 2, 3), (11, 7, 9)),
    "conv2d, kernel above stride": (lambda: nn.Conv2d(11, 3, 5, 2, 2), (11, 9, 8)),
    "conv2d, all uneven": (
        lambda: nn.Conv2d(11, 3, (5, 2), (3, 2), (2, 1), dilation=(2, 3)),
        (11, 17, 11),
    ),
    "conv2d, patches": (lambda: nn.Conv2d(3, 13, 4, 4), (3, 8, 12)),
    "conv2d, groups": (lambda: nn.Conv2d(22, 14, 3, 2, 1, groups=2), (22, 7, 5)),
    "conv2d, depthwise": (lambda: nn.Conv2d(5, 5, 3, padding=1, groups=5), (5, 7, 3)),
    "conv2d, depth multiplier": (lambda: nn.Conv2d(5, 10, 3, groups=5), (5, 7, 3)),
    "conv2d, same, even kernel": (
        lambda: nn.Conv2d(11, 3, (4, 3), padding="same", dilation=(1, 2)),
        (11, 7, 5),
    ),
    "conv2d, circular": (
        lambda: nn.Conv2d(11, 3, 3, padding=(2, 1), padding_mode="circular"),
        (11, 5, 7),
    ),
    "conv2d, replicate": (
        lambda: nn.Conv2d(3, 5, 3, padding=1, padding_mode="replicate"),
        (3, 5, 7),
    ),
    "conv2d, one position": (lambda: nn.Conv2d(11, 7, 3), (11, 3, 3)),
    "conv2d, large image": (lambda: nn.Conv2d(11, 2, 3, padding=1), (11, 13, 17)),
    "batchnorm1d": (lambda: nn.BatchNorm1d(7), (7,)),
    "batchnorm1d, T=5": (lambda: nn.BatchNorm1d(7), (7, 5)),
    "batchnorm2d": (lambda: nn.BatchNorm2d(7), (7, 3, 5)),
    "batchnorm3d": (lambda: nn.BatchNorm3d(3), (3, 2, 5, 7)),
    "layernorm": (lambda: nn.LayerNorm(7), (7,)),
    "layernorm, 2 of 3 dimensions": (lambda: nn.LayerNorm((5, 7)), (3, 5, 7)),
    "layernorm, no bias": (lambda: nn.LayerNorm(7, bias=False), (5, 7)),
    "rmsnorm": (lambda: nn.RMSNorm(7), (5, 7)),
    "rmsnorm, eps": (lambda: nn.RMSNorm(7, eps=0.1), (5, 7)),
    "groupnorm": (lambda: nn.GroupNorm(3, 6), (6, 5, 7)),
    "groupnorm, one position": (lambda: nn.GroupNorm(2, 6), (6,)),
    "embedding": (lambda: nn.Embedding(5, 3), "5 tokens"),
    "embedding, padding": (lambda: nn.Embedding(5, 3, padding_idx=2), "5 tokens"),
    "embedding, one token": (lambda: nn.Embedding(5, 3), "5 tokens, T=1"),
}
BRANCHES = {
    "chosen": lambda self: self.own_choice(),
    "ghost": lambda self: True,
    "instantiate": lambda self: False,
}
products.Factors.own_choice = products.Factors.ghost_is_cheaper


def case(name, n_samples=5):
    """Layer in float64, inputs, output gradients."""
    make, shape = CASES[name]
    generator = torch.Generator().manual_seed(5)
    layer = make().double().eval()
    if isinstance(shape, str):
        length = () if "T=1" in shape else (11,)
        inputs = torch.randint(0, 5, (n_samples, *length), generator=generator)
    else:
        inputs = torch.randn(n_samples, *shape, generator=generator).double()
    for parameter in layer.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator)
    if hasattr(layer, "running_mean"):
        layer.running_mean.normal_(generator=generator)
        layer.running_var.uniform_(0.5, 2, generator=generator)
    outputs = layer(inputs)
    grads = torch.randn(outputs.shape, generator=generator).double()
    return layer, inputs, grads


def one_by_one(layer, inputs, grads):
    """{name: [B, *shape]}, by autograd."""
    rows = []
    names = [name for name, _ in layer.named_parameters()]
    for x, g in zip(inputs.split(1), grads.split(1), strict=True):
        total = (layer(x) * g).sum()
        rows.append(torch.autograd.grad(total, list(layer.parameters())))
    return {
        name: torch.stack(parts)
        for name, parts in zip(names, zip(*rows, strict=True), strict=True)
    }


def random_masks(layer):
    generator = torch.Generator().manual_seed(6)
    return {
        name: torch.rand(p.shape, generator=generator) > 0.4
        for name, p in layer.named_parameters()
    }


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("name", CASES)
def test_squared_norms_and_gradients(name, masked):
    layer, inputs, grads = case(name)
    masks = random_masks(layer) if masked else {}
    expected = {
        n: g * masks[n] if masked else g
        for n, g in one_by_one(layer, inputs, grads).items()
    }
    use, names = Use(layer, inputs, grads, masks), set(expected)
    rule = rule_of(layer)
    found = rule.gradients(use, names)
    norms = rule.squared_norms(use, names)
    assert set(found) == set(norms) == names
    for n in names:
        torch.testing.assert_close(found[n], expected[n])
        torch.testing.assert_close(norms[n], expected[n].flatten(1).square().sum(1))
        alone = rule.squared_norms(use, {n})
        assert torch.equal(alone[n], norms[n])
        assert len(alone) == 1


@pytest.mark.parametrize("chunk", [2**22, 100])
@pytest.mark.parametrize("branch", ["ghost", "instantiate"])
@pytest.mark.parametrize("name", [n for n in CASES if n.startswith(("linear", "conv"))])
def test_both_branches_and_chunks(name, branch, chunk, monkeypatch):
    monkeypatch.setattr(products.Factors, "ghost_is_cheaper", BRANCHES[branch])
    monkeypatch.setattr(rule, "CHUNK", chunk)
    layer, inputs, grads = case(name)
    expected = one_by_one(layer, inputs, grads)["weight"].flatten(1).square().sum(1)
    use = Use(layer, inputs, grads, {})
    found = rule_of(layer).squared_norms(use, {"weight"})["weight"]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("few", [0, 99], ids=["shifts", "unfold"])
@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("conv")])
def test_shifts_and_unfold_agree(name, few, monkeypatch):
    monkeypatch.setattr(products, "FEW_CHANNELS", few)
    layer, inputs, grads = case(name)
    masks = random_masks(layer)
    expected = one_by_one(layer, inputs, grads)["weight"]
    for given in ({}, masks):
        use = Use(layer, inputs, grads, given)
        square = (expected * given.get("weight", True)).flatten(1).square().sum(1)
        found = rule_of(layer).squared_norms(use, {"weight"})["weight"]
        torch.testing.assert_close(found, square)


def test_the_choice_is_the_one_with_fewer_operations():
    def choice(d, q, positions, n_taps=1):
        g, base = torch.zeros(1, q, positions), torch.zeros(1, d, positions)
        return products.Factors(g, [base], [(0, 0)] * n_taps).ghost_is_cheaper()

    assert choice(576, 64, 16)  # T (d + q) = 10,240 against d q = 36,864
    assert not choice(576, 64, 1024)
    assert choice(64, 64, 16, n_taps=9)
    assert not choice(27, 64, 1024)


def test_every_rule_has_a_case():
    kinds = {type(make()) for make, _ in CASES.values()}
    assert kinds == set(RULES)


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(3, 5),
        nn.Bilinear(3, 5, 2),
        nn.ConvTranspose2d(3, 5, 3),
        nn.Conv3d(3, 5, 3),
        nn.MultiheadAttention(6, 2),
        nn.PReLU(),
        nn.Embedding(5, 3, scale_grad_by_freq=True),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 5)),
        prune.random_unstructured(nn.Linear(3, 5), "weight", 0.5),
        type("Own", (nn.Linear,), {})(3, 5),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_without_a_rule(layer):
    assert rule_of(layer) is None


def test_embedding_tokens_of_int32_and_no_tokens():
    layer, inputs, grads = case("embedding")
    expected = rule_of(layer).squared_norms(Use(layer, inputs, grads, {}), {"weight"})
    narrow = Use(layer, inputs.int(), grads, {})
    found = rule_of(layer).squared_norms(narrow, {"weight"})
    assert torch.equal(found["weight"], expected["weight"])
    none = Use(layer, inputs[:, :0], grads[:, :0], {})
    assert rule_of(layer).squared_norms(none, {"weight"})["weight"].tolist() == [0] * 5
