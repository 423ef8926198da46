"""What `gradient_norms` cannot do exactly it refuses, naming the layer or parameter.

Each of these models would get a wrong number from an implementation that only looks at
the layers it knows.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from sparsekit.data_pruning.per_sample import gradient_norms
from tests.sparsekit.data_pruning.networks import by_loop, mlp, resnet


class Odd(nn.Module):
    """[B, 7] -> [B, 5], in a way that no layer's rule covers; by name."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.one, self.two = nn.Linear(7, 7), nn.Linear(7, 5)
        self.free = nn.Parameter(torch.ones(1, 7))
        if how == "lstm":
            self.recurrent = nn.LSTM(7, 7, batch_first=True)
        if how == "attention":
            self.mixing = nn.MultiheadAttention(7, 1, batch_first=True)
        if how == "prelu":
            self.act = nn.PReLU()
        if how == "weight_norm":
            nn.utils.parametrizations.weight_norm(self.one)
        if how == "old weight_norm":
            nn.utils.weight_norm(self.one)
        if how == "spectral_norm":
            nn.utils.spectral_norm(self.one)
        if how == "prune":
            prune.l1_unstructured(self.one, "weight", 0.5)

    def forward(self, x):
        if self.how == "functional":
            return self.two(F.linear(x, self.one.weight))
        if self.how == "layer and functional":
            return self.two(F.linear(self.one(x), self.one.weight))
        if self.how == "functional, layer unused":
            self.one(x)
            return self.two(F.linear(x, self.one.weight))
        if self.how == "functional, layer without gradients":
            with torch.no_grad():
                h = self.one(x)
            return self.two(F.linear(h, self.one.weight))
        if self.how == "parameter":
            return self.two(x * self.free)
        if self.how == "parameter as input":
            return self.two(self.one(self.free) + x)
        if self.how == "lstm":
            return self.two(self.recurrent(x[:, None])[0][:, 0])
        if self.how == "attention":
            return self.two(self.mixing(x[:, None], x[:, None], x[:, None])[0][:, 0])
        if self.how == "prelu":
            return self.two(self.act(x))
        if self.how == "keyword":
            return self.two(self.one(input=x))
        if self.how == "time first":
            return self.two(self.one(x.repeat(6, 1, 1))[0])
        if self.how == "time first, T == B":
            steps = x.repeat(6, 1, 1)  # [T, B, 7]
            return self.two(self.one(steps).sum(0))
        if self.how == "flattened positions":
            return self.two(self.one(x.repeat(1, 3).view(-1, 7)).view(-1, 3, 7)[:, 0])
        if self.how == "mean of the batch":
            return self.two(self.one(x - x.mean(0)))
        if self.how == "sum over earlier samples":
            return self.two(self.one(x).cumsum(0))
        if self.how == "gradient mixing only":
            h = self.one(x)
            return self.two(h + h.mean(0) - h.mean(0).detach())
        if self.how == "foreign tensor":
            return self.two(self.one(x + FOREIGN))
        if self.how == "random":
            return self.two(F.dropout(self.one(x), 0.5, training=True))
        return self.two(self.one(x))


FOREIGN = torch.ones(7, requires_grad=True)
REFUSED = {
    "functional": "'one.weight' of 'one' \\(Linear\\)",
    "layer and functional": "'one.weight' of 'one'",
    "functional, layer unused": "'one.weight' of 'one'",
    "functional, layer without gradients": "'one.weight' of 'one'",
    "parameter": "'free' of 'the model' \\(Odd\\)",
    "parameter as input": "'one' is called with a tensor of shape|'free'",
    "lstm": "'recurrent.bias_hh_l0' of 'recurrent' \\(LSTM\\)",
    "attention": "'mixing.in_proj_bias' of 'mixing' \\(MultiheadAttention\\)",
    "prelu": "'act.weight' of 'act' \\(PReLU\\)",
    "weight_norm": "'one.*' of 'one.*'",
    "old weight_norm": "'one.bias' of 'one' \\(Linear\\)",
    "spectral_norm": "'one.bias' of 'one' \\(Linear\\)",
    "prune": "'one.bias' of 'one' \\(Linear\\)",
    "keyword": "'one' must be called with one tensor",
    "time first": "'one' is called with a tensor of shape",
    "time first, T == B": "'one' is called with a tensor of shape",
    "flattened positions": "'one' is called with a tensor of shape",
    "mean of the batch": "samples influence each other",
    "sum over earlier samples": "samples influence each other",
    "gradient mixing only": "'one.* has norm",
    "foreign tensor": "shape \\(7,\\) requires a gradient and is no parameter",
    "random": "samples influence each other, or the model is random",
}


def odd(how, n_samples):
    torch.manual_seed(7)
    model, x = Odd(how).eval(), 3 * torch.randn(n_samples, 7)
    return model, x, torch.randint(0, 5, (n_samples,))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("how", REFUSED)
def test_refused(how):
    with pytest.raises(ValueError, match=REFUSED[how]):
        gradient_norms(*odd(how, 6))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("n_samples", [1, 2])
@pytest.mark.parametrize("how", REFUSED)
def test_few_samples_are_refused_or_right(how, n_samples):
    """Some models are at fault only in a batch."""
    model, x, y = odd(how, n_samples)
    try:
        found = gradient_norms(model, x, y)
    except ValueError:
        return
    expected = by_loop(model, x, y)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, check_dtype=False)


def test_a_replaced_forward_is_noticed():
    model, x, y = mlp()
    layer = model[2]
    layer.forward = lambda h: F.linear(2 * h, layer.weight, layer.bias)
    with pytest.raises(ValueError, match=r"'2.weight' has norm .* for sample 6"):
        gradient_norms(model, x, y)


def test_layers_in_training_mode():
    model, x, y = resnet()
    model[1].train()
    before = {n: b.clone() for n, b in model.named_buffers()}
    with pytest.raises(ValueError, match="'1' is a BatchNorm2d that uses statistics"):
        gradient_norms(model, x, y)
    bare = nn.Sequential(nn.BatchNorm1d(7, affine=False), nn.Linear(7, 5))
    with pytest.raises(ValueError, match="'0' is a BatchNorm1d"):
        gradient_norms(bare, torch.randn(6, 7), torch.zeros(6, dtype=torch.int64))
    dropout = nn.Sequential(nn.Linear(7, 5), nn.Dropout(0.1))
    with pytest.raises(ValueError, match="'1' is a Dropout that draws at random"):
        gradient_norms(dropout, torch.randn(6, 7), torch.zeros(6, dtype=torch.int64))
    renormed = nn.Sequential(nn.Embedding(5, 3, max_norm=1.0), nn.Flatten())
    with pytest.raises(ValueError, match="'0' is a Embedding with max_norm"):
        gradient_norms(renormed, torch.tensor([[1]]), torch.tensor([0]))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"params": ["4.weights"]},
            "no parameter '4.weights'; it has 0.weight, 0.bias",
        ),
        ({"params": []}, "no parameter counts"),
        ({"masks": {"5": torch.ones(1).bool()}}, "masks: the model has no parameter"),
        ({"masks": {"4.bias": torch.ones(1).bool()}}, "mask of '4.bias' is bool of"),
        ({"masks": {"4.bias": torch.ones(3)}}, "mask of '4.bias' is bool of"),
        ({"loss": F.cross_entropy}, "one number a sample"),
    ],
)
def test_arguments(change, message):
    model, x, y = mlp()
    with pytest.raises(ValueError, match=message):
        gradient_norms(model, x, y, **change)


def test_batches():
    model, x, y = mlp()
    with pytest.raises(ValueError, match="at least 1; they have 0 and 0"):
        gradient_norms(model, x[:0], y[:0])
    with pytest.raises(ValueError, match="they have 13 and 12"):
        gradient_norms(model, x, y[1:])


def test_a_confident_model_is_not_refused():
    """Only rounding is left of its gradients: no reason to complain."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False))
    model[0].weight.data = 40 * torch.eye(3)
    x = torch.eye(3)[[0, 1, 2, 1]]
    found = gradient_norms(model, x, torch.tensor([0, 1, 2, 1]))
    assert found.max() < 1e-6
