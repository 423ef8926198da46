"""Strategies: identities with fine-tuning, closed forms, and what each promises."""

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn

from apps.continual import streams, training
from apps.continual.fisher import diagonal_fisher
from apps.continual.flops import masked_by_sparcl
from apps.continual.strategies.agem import project
from apps.continual.strategies.lwf import distillation
from apps.continual.strategies.packnet import PackNet
from apps.continual.strategy import build, discover
from apps.continual.train import train


def same(one, other) -> bool:
    """Bit for bit: weights and accuracies."""
    states = one.model.state_dict(), other.model.state_dict()
    return torch.equal(one.matrix, other.matrix) and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


IDENTITIES = [
    ("er", {}, {"buffer": 0}),
    ("agem", {}, {"buffer": 0}),
    ("derpp", {}, {"buffer": 0}),
    ("derpp", {"alpha": 0.0, "beta": 0.0}, {}),
    ("ewc", {"strength": 0.0}, {}),
    ("lwf", {"weight": 0.0}, {}),
]


@pytest.mark.parametrize(("strategy", "options", "more"), IDENTITIES)
@pytest.mark.parametrize("model", ["mlp", "resnet18"])
def test_is_fine_tuning(small, strategy, options, more, model):
    config = replace(small, model=model, width=5, train_size=51, epochs=1, **more)
    plain = train(config)
    again = train(replace(config, strategy=strategy, strategy_options=options))
    assert same(plain, again)


def test_and_with_their_own_terms_they_are_not(small):
    plain = train(small)
    for strategy in ("er", "agem", "derpp", "ewc", "lwf"):
        assert not same(plain, train(replace(small, strategy=strategy))), strategy


def test_der_with_alpha_0_and_beta_1_is_er(small):
    er = train(replace(small, strategy="er"))
    options = {"alpha": 0.0, "beta": 1.0}
    assert same(er, train(replace(small, strategy="derpp", strategy_options=options)))


def test_der_stores_what_the_model_said_when_it_saw_an_example(small):
    config = replace(small, strategy="derpp", tasks=1, epochs=1, train_size=17)
    state = training.build(config, streams.load(config))
    before = copy.deepcopy(state.model)
    batch = state.batch(torch.arange(17), 0)
    state.back_propagate(batch)
    state.optimizer.step()
    state.strategy.after_step(batch)
    held = state.buffer.everything()
    with torch.no_grad():
        assert torch.equal(held.logits, before(state.stream.view(held.raw)))
        assert not torch.equal(held.logits, state.model(state.stream.view(held.raw)))


def test_sparsity_0_is_dense(small):
    for strategy in ("finetune", "derpp", "agem"):
        dense = train(replace(small, strategy=strategy))
        none = replace(small, strategy=strategy, method="static", sparsity=0.0)
        assert same(dense, train(none)), strategy


@pytest.mark.parametrize(
    ("strategy", "method"), [("er", "rigl"), ("derpp", "rigl"), ("agem", "set")]
)
def test_masked_is_truly_sparse(small, strategy, method):
    """Layers that store alive weights only train as masked ones do."""
    config = replace(small, strategy=strategy, method=method, sparsity=0.6)
    masked = train(config)
    values = train(replace(config, backend="values"))
    assert torch.allclose(masked.matrix, values.matrix, atol=0.02)
    for name, weight in masked.model.state_dict().items():
        assert torch.allclose(weight, values.model.state_dict()[name], atol=1e-4), name


def test_joint_on_one_task_is_plain_training(small):
    """As many steps of SGD on the same batches, in a loop of its own."""
    config = replace(small, tasks=1, strategy="joint")
    result = train(config)
    stream = streams.load(config)
    model = training.build_model(config, stream)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
    part = stream.tasks[0].train
    for epoch in range(config.epochs):
        chosen = torch.arange(len(part))
        for index in training.epoch_batches(config, chosen, 0, epoch):
            loss = F.cross_entropy(model(stream.view(part.raw(index))), part.y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, result.model.state_dict()[name])


def test_joint_forgets_less_and_finetune_all(small):
    config = replace(small, dataset="digits", tasks=5, width=40, epochs=5, buffer=100)
    lower, upper = train(config), train(replace(config, strategy="joint"))
    replay = train(replace(config, strategy="er"))
    assert lower.accuracy < 0.4 < replay.accuracy < upper.accuracy
    assert upper.accuracy > 0.9
    assert lower.metrics["forgetting"].value > 0.7
    assert float(lower.task_matrix[-1].mean()) > lower.accuracy


def test_values_mode_keeps_layers_dense(small):
    """SparCL's choice: the 3x3 convolutions of the stages, in a ResNet-18.

    Two steps: so small a network multiplies rounding by ten in each of them.
    """
    config = replace(
        small, model="resnet18", width=4, train_size=34, tasks=1, epochs=1,
        strategy="derpp", method="static", sparsity=0.8,
        options={"allocation": "uniform"},
        keep_dense=("stem.weight", "*.shortcut.0.weight", "classifier.weight"),
    )  # fmt: skip
    masked, values = train(config), train(replace(config, backend="values"))
    assert set(masked.masks) == set(values.masks) == set(masked_by_sparcl(masked.model))
    for name, weight in masked.model.state_dict().items():
        other = values.model.state_dict()[name]
        assert torch.allclose(weight, other, atol=1e-3), name


def test_agem_leaves_the_gradient_of_absent_weights_to_the_method(small):
    """RigL grows where that is large: with an empty buffer as under fine-tuning."""
    config = replace(small, method="rigl", sparsity=0.6)
    assert same(train(config), train(replace(config, strategy="agem", buffer=0)))
    grown = train(replace(config, strategy="agem"))
    visited = [row["density"] for row in grown.history]
    assert max(visited) - min(visited) < 1e-9
    with pytest.raises(ValueError, match=r"rigl.*use backend masked"):
        train(replace(config, strategy="agem", backend="values"))


# ---- EWC -------------------------------------------------------------------------


def logistic(n: int = 300, d: int = 4):
    """A fitted logistic regression as a network of one logit beside a fixed 0."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(n, d))
    y = (x @ generator.normal(size=d) + generator.normal(size=n) > 0).astype(int)
    fitted = LogisticRegression(C=10, fit_intercept=False).fit(x, y)
    model = nn.Linear(d, 2, bias=False).double()
    with torch.no_grad():
        model.weight[0] = 0
        model.weight[1] = torch.from_numpy(fitted.coef_[0])
    p = fitted.predict_proba(x)[:, 1]
    return model, torch.from_numpy(x), torch.from_numpy(y), p


def test_fisher_of_logistic_regression():
    """Expected: mean p (1 - p) x^2; empirical: mean (y - p)^2 x^2."""
    model, x, y, p = logistic()
    squares = x.numpy() ** 2
    exact = diagonal_fisher(model, x)["weight"][1].numpy()
    assert exact == pytest.approx((p * (1 - p)) @ squares / len(x), rel=1e-9)
    empirical = diagonal_fisher(model, x, y)["weight"][1].numpy()
    assert empirical == pytest.approx((y.numpy() - p) ** 2 @ squares / len(x), rel=1e-9)


def test_fisher_is_the_mean_of_single_squares(small):
    """Not the square of the mean; against backward passes one by one."""
    stream = streams.load(small)
    model = training.build_model(replace(small, model="cnn", depth=2, width=3), stream)
    part = stream.tasks[0].train
    x, y = stream.view(part.raw(slice(0, 37))), part.y[:37]
    total = {name: torch.zeros_like(w) for name, w in model.named_parameters()}
    for i in range(37):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        for name, weight in model.named_parameters():
            total[name] += weight.grad.square() / 37
    for name, value in diagonal_fisher(model, x, y).items():
        assert torch.allclose(value, total[name], rtol=1e-4, atol=1e-8), name


def test_ewc_penalty_is_the_quadratic_form(small):
    config = replace(small, strategy="ewc", strategy_options={"gamma": 0.5})
    state = training.build(config, streams.load(config))
    state.strategy.end_task(0)
    first = copy.deepcopy(state.strategy.importance)
    with torch.no_grad():
        for weight in state.model.parameters():
            weight += 0.1
    expected = sum(0.01 * float(f.sum()) for f in first.values())
    penalty = float(state.strategy.penalty().detach())
    assert penalty == pytest.approx(expected, rel=1e-4)
    state.strategy.end_task(1)  # F = gamma F + new F, at the new weights
    assert float(state.strategy.penalty().detach()) == 0
    part = state.stream.tasks[1].train
    x, y = state.stream.view(part.raw(slice(None))), part.y
    new = diagonal_fisher(state.model, x, y)
    for name, value in state.strategy.importance.items():
        assert torch.allclose(value, 0.5 * first[name] + new[name])


# ---- A-GEM, LwF ------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_projection_is_the_nearest_point_of_the_half_space(seed):
    """Against the closed form of min |z - g|^2 with z . r >= 0."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(5, 3), (3,), (2, 3, 1)]
    grads = [torch.randn(s, generator=generator) for s in shapes]
    reference = [torch.randn(s, generator=generator) for s in shapes]
    g, r = (torch.cat([t.flatten() for t in ts]).double() for ts in (grads, reference))
    expected = g + max(0.0, -float(g @ r) / float(r @ r)) * r
    project(grads, reference)
    z = torch.cat([t.flatten() for t in grads]).double()
    assert torch.allclose(z, expected, atol=1e-6)
    assert float(z @ r) >= -1e-5


def test_distillation_is_kl():
    old, new = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0))
    p, q = ((z.double() / 2).softmax(1).numpy() for z in (old, new))
    kl = (p * np.log(p / q)).sum(1).mean()
    assert float(distillation(new, old, 2.0)) == pytest.approx(kl, rel=1e-5)


def test_lwf_distils_classes_of_earlier_tasks_from_the_model_before(small):
    config = replace(small, strategy="lwf", strategy_options={"weight": 20.0}, epochs=8)
    far, near = train(replace(config, strategy_options={})), train(config)
    free = train(replace(small, epochs=8))
    kept = [float(r.task_matrix[-1, :-1].mean()) for r in (free, far, near)]
    assert kept[0] <= kept[1] + 0.02 <= kept[2] + 0.04


# ---- PackNet ---------------------------------------------------------------------


@pytest.mark.parametrize("model", ["mlp", "resnet18"])
def test_packnet_never_changes_an_old_answer(small, model):
    config = replace(
        small, model=model, width=6, scenario="task", strategy="packnet",
        optimizer="momentum", epochs=4,
    )  # fmt: skip
    answers = []

    def watch(task, state):
        x = state.stream.view(state.stream.tasks[0].test.raw(slice(None)))
        state.model.eval()
        with torch.no_grad():
            logits = state.strategy.predict(x, 0)
        answers.append(logits[:, list(state.stream.tasks[0].classes)])

    result = train(config, watch)
    # The head's rows of task 0 and everything below them are the same numbers.
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
    for j in range(3):
        assert len(set(result.matrix[j:, j].tolist())) == 1
    assert result.metrics["forgetting"].value == 0
    assert result.accuracy > 0.7


def test_packnet_gives_each_task_its_share(small):
    config = replace(small, scenario="task", strategy="packnet", depth=2, epochs=3)
    owners = []
    train(config, lambda _, s: owners.append(copy.deepcopy(s.strategy.owner)))
    for owner in owners[-1].values():
        counts = [int((owner == task).sum()) for task in range(3)]
        assert sum(counts) == owner.numel()  # nothing is left after the last task
        assert max(counts) - min(counts) <= 1
    for before, after in pairwise(owners):
        for name, owner in before.items():
            assert torch.equal(after[name][owner >= 0], owner[owner >= 0])


def test_packnet_s_settings(small):
    config = replace(small, scenario="task", strategy="packnet")
    with pytest.raises(ValueError, match="weight_decay must be 0"):
        train(replace(config, weight_decay=0.1))
    with pytest.raises(ValueError, match="two steps a task"):
        train(replace(config, train_size=10, epochs=1))
    with pytest.raises(ValueError, match="keep is a share"):
        PackNet(keep=2)


# ---- all of them -----------------------------------------------------------------


def test_gdumb_learns_from_its_buffer_alone(small):
    config = replace(small, strategy="gdumb", strategy_options={"passes": 20})
    held = []
    result = train(config, lambda _, s: held.append(s.buffer.everything()))
    assert [len(d) for d in held] == [30, 30, 30]
    assert held[-1].y.bincount().tolist() == [5] * 6
    assert result.accuracy > 0.5
    assert result.history[0]["loss"] == 0


@pytest.mark.parametrize("policy", ["reservoir", "balanced", "herding"])
def test_policies_under_replay(small, policy):
    config = replace(small, strategy="derpp", policy=policy, epochs=4)
    held = []
    result = train(config, lambda _, s: held.append(s.buffer.everything()))
    assert len(held[-1]) == 30
    if policy != "reservoir":
        assert held[-1].y.bincount().tolist() == [5] * 6
    assert result.accuracy > 0.4


def test_replay_from_and_loss_over(small):
    base = replace(small, strategy="er", epochs=3)
    results = [
        train(replace(base, replay_from=start, loss_over=over))
        for start in ("first", "second")
        for over in ("all", "current")
    ]
    for i, one in enumerate(results):
        assert all(not same(one, other) for other in results[:i])


def test_the_loss_over_current_classes_moves_no_other_logit(small):
    config = replace(small, loss_over="current")
    before = training.build_model(config, streams.load(config)).state_dict()
    after = train(replace(config, tasks=3), None).model.state_dict()
    stop = {}
    train(config, lambda task, s: stop.setdefault(task, copy.deepcopy(s.model)))
    first = stop[0].state_dict()
    head = [name for name in before if name.startswith("3.")]
    assert head == ["3.weight", "3.bias"]
    for name in head:
        assert torch.equal(first[name][2:], before[name][2:])
        assert not torch.equal(first[name][:2], before[name][:2])
        assert not torch.equal(after[name][2:], before[name][2:])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strategy": "icarl"}, "choose one of agem, derpp"),
        (
            {"strategy": "er", "strategy_options": {"alpha": 1.0}},
            "has no option 'alpha'",
        ),
        (
            {"strategy": "ewc", "strategy_options": {"gamma": "x"}},
            "gamma of strategy 'ewc' must be",
        ),
        ({"strategy": "ewc", "online": True, "epochs": 1}, "told where tasks end"),
        ({"strategy": "packnet"}, "needs the task in tests: scenario task"),
        ({"strategy": "gdumb", "method": "static"}, "takes no sparse method"),
        (
            {"strategy": "ewc", "method": "static", "backend": "values"},
            "use backend masked",
        ),
    ],
)
def test_settings_that_do_not_fit(small, change, words):
    with pytest.raises(ValueError, match=words):
        replace(small, **change)


@pytest.mark.parametrize("policy", ["balanced", "herding"])
def test_a_buffer_smaller_than_the_classes(small, policy):
    config = replace(small, strategy="er", policy=policy, buffer=5)
    with pytest.raises(ValueError, match="cannot hold one of each of 6 classes"):
        train(config)
    assert train(replace(config, policy="reservoir")).accuracy > 0
    assert train(replace(config, policy=policy, buffer=0)).accuracy > 0


def test_a_buffer_in_bytes(small):
    config = replace(small, strategy="derpp", buffer_bytes=1000)
    state = training.build(config, streams.load(config))
    assert state.buffer.size == 1000 // (64 + 8 + 6 * 4)
    assert build(config).stores_logits
    assert 1000 - 96 < train(config).cost["buffer_bytes"] <= 1000


def test_every_strategy_is_documented():
    for name, cls in discover().items():
        assert cls.__doc__, name
        assert not cls.__doc__.startswith(f"{cls.__name__}("), name
