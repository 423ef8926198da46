"""What training loops share, against torch's own and the definition."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from apps.common import classifiers
from apps.common.images import Split
from apps.common.seeds import mixed, seeded
from apps.common.training import (
    build_optimizer,
    clones,
    evaluate,
    learning_rate_factor,
    require_finite,
    set_learning_rate,
)


@pytest.mark.parametrize("total", [1, 2, 13, 350])
@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "steps", "constant"])
def test_learning_rates_are_positive_and_peak_at_1(schedule: str, total: int) -> None:
    factors = [learning_rate_factor(schedule, step, total) for step in range(total)]
    assert max(factors) == 1.0
    assert min(factors) > 0
    if schedule == "one-cycle":
        peak = int(np.argmax(factors))
        assert factors[: peak + 1] == sorted(factors[: peak + 1])
        assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=17)
    for step in range(17):
        rate = peer.get_last_lr()[0]
        assert learning_rate_factor("cosine", step, 17) == pytest.approx(rate)
        optimizer.step()
        peer.step()


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_written_out(nesterov: bool) -> None:
    config = SimpleNamespace(optimizer="sgd", lr=0.5, weight_decay=0.01)
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(config, model, nesterov=nesterov)
    set_learning_rate(optimizer, 0.1)
    expected = clones(dict(model.named_parameters()))
    buffers = {name: torch.zeros_like(p) for name, p in expected.items()}
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        for name, p in model.named_parameters():
            gradient = p.grad + 0.01 * expected[name]
            buffers[name] = 0.9 * buffers[name] + gradient
            ahead = gradient + 0.9 * buffers[name]
            expected[name] = expected[name] - 0.1 * (
                ahead if nesterov else buffers[name]
            )
        optimizer.step()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name])


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_an_error(loss: float) -> None:
    require_finite(0.0, "epoch 1", 0.1)
    with pytest.raises(ValueError, match=r"in epoch 7: lower lr \(now 0.1\)"):
        require_finite(loss, "epoch 7", 0.1)


def test_seeds_of_other_purposes_are_other_seeds() -> None:
    seeds = [mixed(0), mixed(0, 1), mixed(1, 0), mixed(0, 0, 1)]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_seeded_repeats_and_leaves_no_trace() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(1):
        first = torch.rand(3)
    with seeded(1):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.rand(3), expected)


def test_logits_do_not_depend_on_the_batch() -> None:
    model = classifiers.build("cnn", 2, 1, 3, 1, 8)
    x = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    split = Split(x, torch.zeros(7, dtype=torch.long))
    model.train()
    found = evaluate(model, split, batch=3)
    assert not model.training
    assert not found.requires_grad
    torch.testing.assert_close(found, model(x))


@pytest.mark.parametrize("norm", [True, False])
def test_the_cnn_is_one_function_under_two_names(norm: bool) -> None:
    with seeded(3):
        named = classifiers.CNN(2, 3, 5, 1, 9, norm=norm)
    layers, n_in = classifiers.convolutions(2, 3, 1, 9, norm)
    assert n_in == named.classifier.in_features == 4 * 2 * 2
    assert [type(m) for m in layers] == [type(m) for m in named.features]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in layers) == 3 * norm
    if norm:
        with seeded(3):
            plain = classifiers.cnn(2, 3, 5, 1, 9)
        for a, b in zip(named.parameters(), plain.parameters(), strict=True):
            assert torch.equal(a, b)
