"""Scores against closed forms, and the mistakes others made as mutants."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsekit.data_pruning import el2n, grand
from sparsekit.data_pruning.per_sample import gradient_norms
from sparsekit.data_pruning.scores import (
    entropy,
    input_norm,
    least_confidence,
    loss,
    margin,
)
from sparsekit.modes import in_mode
from tests.sparsekit.data_pruning.networks import by_loop, mlp, resnet, transformer

SURE = torch.tensor([[200.0, 0.0, 0.0], [200.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
LABELS = torch.tensor([0, 2, 1])
SOFT = torch.tensor([[1.0, 0.5, -0.3]])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (el2n, [0, math.sqrt(2), math.sqrt(1 - 1 / 3)]),
        (margin, [-1, 1, 0]),
        (loss, [0, 200, math.log(3)]),
        (least_confidence, [0, 0, 2 / 3]),
        (entropy, [0, 0, math.log(3)]),
        (input_norm, [200, 200, math.sqrt(3)]),
    ],
)
def test_certain_wrong_and_uniform(function, expected):
    found = function(nn.Identity(), SURE, LABELS)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_by_hand():
    e = [math.exp(v) for v in (1.0, 0.5, -0.3)]
    p = [v / sum(e) for v in e]
    y = torch.tensor([1])

    def value(function):
        return float(function(nn.Identity(), SOFT, y))

    assert value(el2n) == pytest.approx(math.hypot(p[0], p[1] - 1, p[2]))
    assert value(margin) == pytest.approx(p[0] - p[1])
    assert value(loss) == pytest.approx(-math.log(p[1]))
    assert value(least_confidence) == pytest.approx(1 - p[0])
    assert value(entropy) == pytest.approx(-sum(v * math.log(v) for v in p))


@pytest.mark.parametrize("make", [mlp, resnet, transformer])
def test_grand_is_the_loop_in_any_mode_of_the_model(make):
    model, x, y = make()
    expected = by_loop(model.eval(), x, y).float()
    model.train()
    modes = [m.training for m in model.modules()]
    torch.testing.assert_close(grand(model, x, y), expected, rtol=1e-5, atol=1e-6)
    assert [m.training for m in model.modules()] == modes


@pytest.mark.parametrize("bias", [True, False])
def test_last_layer_identity(bias):
    """GraNd of the last layer = EL2N sqrt(|h|^2 + 1), without bias EL2N |h|."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 5, bias=bias))
    x, y = torch.randn(13, 7), torch.randint(0, 5, (13,))
    h = model[:2](x).detach()
    expected = el2n(model, x, y) * (h.square().sum(1) + bias).sqrt()
    torch.testing.assert_close(grand(model, x, y, params="last"), expected)
    names = ["2.weight", "2.bias"] if bias else ["2.weight"]
    torch.testing.assert_close(grand(model, x, y, params=names), expected)
    if bias:
        found = grand(model, x, y, params=["2.bias"])
        torch.testing.assert_close(found, el2n(model, x, y))
    mask = torch.rand(5, 11) > 0.5
    found = grand(model, x, y, params="last", masks={"2.weight": mask})
    expected = by_loop(model, x, y, {"2.weight": mask}, names).float()
    torch.testing.assert_close(found, expected)


class Temperature(nn.Module):
    """Divides the logits, by a new tensor or in place."""

    def __init__(self, in_place):
        super().__init__()
        self.fc, self.in_place = nn.Linear(7, 3), in_place

    def forward(self, x):
        return self.fc(x).div_(2) if self.in_place else self.fc(x) / 2


def test_last_layer_of_changed_logits():
    _, x, y = mlp()
    model = Temperature(in_place=True)
    expected = by_loop(model, x, y).float()
    torch.testing.assert_close(grand(model, x, y, params="last"), expected)
    with pytest.raises(ValueError, match="logits come straight from"):
        grand(Temperature(in_place=False), x, y, params="last")


@pytest.mark.parametrize("function", [el2n, grand, margin, loss, entropy])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (SURE[:, None], LABELS, r"logits \[B, K\] and targets \[B\]"),
        (SURE, LABELS.float(), "targets are classes, int64"),
        (SURE, LABELS + 1, r"targets are classes 0 \.\.\. 2, got"),
        (SURE, LABELS - 3, r"targets are classes 0 \.\.\. 2, got -"),
        (SURE.log() - SURE.log(), LABELS, "NaN or infinite"),
    ],
)
def test_refused(function, x, y, message):
    model = nn.Sequential(nn.Linear(3, 3, bias=False))
    model[0].weight.data = torch.eye(3)
    with pytest.raises(ValueError, match=message):
        function(model, x, y)


@pytest.mark.parametrize("function", [el2n, grand, margin, loss, entropy])
def test_probabilities_are_refused_and_their_logarithms_are_logits(function):
    """A softmax at the end of the model would be taken twice, silently."""
    model, x, y = mlp()
    with pytest.raises(ValueError, match="returns probabilities"):
        function(nn.Sequential(model, nn.Softmax(1)), x, y)
    of_logarithms = function(nn.Sequential(model, nn.LogSoftmax(1)), x, y)
    torch.testing.assert_close(of_logarithms, function(model, x, y))


def test_unknown_parameters():
    model, x, y = mlp()
    with pytest.raises(
        ValueError, match="params is 'all', 'last' or names, got 'ends'"
    ):
        grand(model, x, y, params="ends")


def test_dropout_is_off_and_modes_come_back():
    model = nn.Sequential(nn.Linear(7, 5), nn.Dropout(0.5), nn.Linear(5, 3)).train()
    model[1].eval()
    x, y = torch.randn(6, 7), torch.zeros(6, dtype=torch.int64)
    assert torch.equal(el2n(model, x, y), el2n(model, x, y))
    assert [m.training for m in model] == [True, False, True]
    with pytest.raises(RuntimeError), in_mode(model, training=False):
        raise RuntimeError
    assert [m.training for m in model] == [True, False, True]


# Mutants: what published code got wrong. Each must differ from the right score.


def mutant_training_mode(model, x, y):
    logits = model.train()(x)
    model.eval()
    return (logits.softmax(1) - F.one_hot(y, logits.shape[1])).norm(dim=1).detach()


def mutant_mean_reduction(model, x, y):
    parts = [
        grand(model, a, b) / len(a) for a, b in zip(x.split(5), y.split(5), strict=True)
    ]
    return torch.cat(parts)


def mutant_softmax_twice(model, x, y):
    def loss(logits, y):
        return F.cross_entropy(logits.softmax(1), y, reduction="none")

    return gradient_norms(model, x, y, loss=loss)


@pytest.mark.parametrize(
    ("mutant", "right"),
    [
        (mutant_training_mode, el2n),
        (mutant_mean_reduction, grand),
        (mutant_softmax_twice, grand),
    ],
)
def test_mutants_fail(mutant, right):
    model, x, y = resnet()
    x = torch.cat([x, 2 * x[:4]])  # 11 examples: the last batch of 5 has one
    y = torch.cat([y, y[:4]])
    expected = right(model, x, y)
    if right is grand:
        torch.testing.assert_close(expected, by_loop(model, x, y).float())
    wrong = mutant(model, x, y)
    assert (wrong - expected).abs().max() > 0.05 * expected.max()
    assert not torch.equal(wrong.argsort(), expected.argsort())


def test_cleanlab_ranks_suspected_labels_alike():
    """Its two quality scores are exp(-loss) and (1 - margin) / 2, by hand .1 and .2."""
    rank = pytest.importorskip("cleanlab.rank")
    p = torch.tensor(
        [[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0.3, 0.4, 0.3], [0.05, 0.05, 0.9]]
    ).double()
    labels = torch.tensor([0, 0, 2, 2])
    for method, ours, first in (
        ("self_confidence", (-loss(nn.Identity(), p.log(), labels)).exp(), 0.1),
        ("normalized_margin", (1 - margin(nn.Identity(), p.log(), labels)) / 2, 0.2),
    ):
        theirs = rank.get_label_quality_scores(labels.numpy(), p.numpy(), method=method)
        torch.testing.assert_close(ours, torch.from_numpy(theirs))
        assert float(ours[0]) == pytest.approx(first)
        assert int(ours.argmin()) == 0


@pytest.mark.parametrize(
    ("rows", "probabilities"),
    [
        ([[0.25, 0.75], [1.0, 0.0]], True),
        ([[0.25, 0.75], [0.5, 0.49]], False),  # one example does not add up
        ([[-0.25, 1.25], [0.5, 0.5]], False),  # one is negative
        ([[0.25, 0.7499], [0.5, 0.5001]], False),  # a little off
        ([[0.25, 0.75004], [0.5, 0.49997]], True),  # rounding
    ],
)
def test_probabilities_are_told_from_logits(rows, probabilities):
    logits, targets = torch.tensor(rows, requires_grad=True), torch.tensor([0, 1])
    if probabilities:
        with pytest.raises(ValueError, match="the model returns probabilities"):
            el2n(nn.Identity(), logits, targets)
    else:
        expected = (logits.softmax(1) - torch.eye(2)).norm(dim=1)
        torch.testing.assert_close(el2n(nn.Identity(), logits, targets), expected)


def test_looking_for_the_last_layer_leaves_no_trace():
    """Dropout draws nothing from the global state, norms see no example twice."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)
    ).train()
    x, y = torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    found = grand(model.eval(), x, y, params="last")
    model.train()
    assert torch.equal(grand(model.eval(), x, y, params="last"), found)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not model[0]._forward_hooks
    assert not model[3]._forward_hooks


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_entry_that_is_not_finite_is_enough(value):
    logits = torch.zeros(3, 4)
    logits[1, 2] = value
    with pytest.raises(
        ValueError, match="infinite for 1 of 3 examples, first for numb"
    ):
        el2n(nn.Identity(), logits, torch.tensor([0, 1, 2]))


def test_looking_for_the_last_layer_draws_nothing_and_trains_nothing():
    class Draws(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 3)

        def forward(self, x):
            assert not self.training
            torch.rand(2)
            return self.last(x)

    model = Draws()
    state = torch.get_rng_state()
    grand(model, torch.ones(2, 4), torch.tensor([0, 1]), params="last")
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.last._forward_hooks
