"""The loop: resume, the matrix, costs, files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.continual import streams, training
from apps.continual.config import Config
from apps.continual.metrics import average_accuracy
from apps.continual.result import Run, load_result, stratified
from apps.continual.strategy import discover
from apps.continual.train import train
from apps.continual.training import Training
from sparsekit.accounting import forward_flops
from tests.apps.continual.test_strategies import same


class Interrupted(Exception):
    """A power cut."""


def interrupted_at(monkeypatch, n_steps: int, config):
    """Trains until the process is killed in step n_steps, then resumes."""
    end_step, done = Run.end_step, [0]

    def end(self, *arguments):
        end_step(self, *arguments)
        done[0] += 1
        if done[0] == n_steps:
            raise Interrupted

    monkeypatch.setattr(Run, "end_step", end)
    with pytest.raises(Interrupted):
        train(config)
    monkeypatch.setattr(Run, "end_step", end_step)
    return train(replace(config, resume=True))


SCENARIOS = {"packnet": "task"}


@pytest.mark.parametrize("strategy", sorted(discover()))
def test_resume_in_the_middle_of_a_task(small, tmp_path, monkeypatch, strategy):
    """Killed in steps 5 and 33 of 54, saved every 4: as if nothing had been."""
    config = replace(
        small,
        strategy=strategy,
        scenario=SCENARIOS.get(strategy, "class"),
        optimizer="momentum",
        augment=True,
        checkpoint_every=4,
    )
    whole = train(config)
    for n_steps in (5, 33):
        out = tmp_path / str(n_steps)
        again = interrupted_at(monkeypatch, n_steps, replace(config, out=out))
        assert same(whole, again), n_steps
        rows = [{**row, "seconds": 0} for row in again.history]
        assert rows == [{**row, "seconds": 0} for row in whole.history]
        assert again.cost["train_flops"] == whole.cost["train_flops"]
        assert torch.equal(whole.task_matrix, again.task_matrix)
        assert not (out / "checkpoint.pt").exists()


@pytest.mark.parametrize("backend", ["masked", "values"])
def test_resume_of_a_sparse_model(small, tmp_path, monkeypatch, backend):
    config = replace(
        small, strategy="derpp", method="rigl", sparsity=0.7, backend=backend,
        options={"every": 4}, checkpoint_every=3,
    )  # fmt: skip
    whole = train(config)
    again = interrupted_at(monkeypatch, 23, replace(config, out=tmp_path))
    assert same(whole, again)
    for name, mask in whole.masks.items():
        assert torch.equal(mask, again.masks[name])


def test_a_seed_decides_everything(small):
    config = replace(small, strategy="derpp")
    assert same(train(config), train(config))
    assert not same(train(config), train(replace(config, seed=1)))


def test_the_matrix_is_the_accuracy_of_the_model_at_that_time(small):
    rows = []

    def watch(task, state):
        state.model.eval()
        row = []
        for later in state.stream.tasks:
            x = state.stream.view(later.test.raw(slice(None)))
            with torch.no_grad():
                answer = state.model(x).argmax(1)
            row.append(float((answer == later.test.y).double().mean()))
        rows.append(row)

    result = train(replace(small, strategy="er"), watch)
    assert result.matrix.tolist() == rows
    assert result.accuracy == pytest.approx(average_accuracy(rows))
    assert result.matrix.shape == (3, 3)
    # the same logits among the classes of the task: never worse
    assert bool((result.task_matrix >= result.matrix).all())
    samples = result.samples
    last = [float(samples["correct"][samples["task"] == j].double().mean()) for j in range(3)]  # fmt: skip # noqa: E501
    assert last == rows[-1]


def test_validation_is_another_part(small):
    test, validation = train(small), train(replace(small, part="validation"))
    assert len(validation.samples["correct"]) < len(test.samples["correct"])
    for name, weight in test.model.state_dict().items():
        assert torch.equal(weight, validation.model.state_dict()[name])


def test_flops_of_dense_training_by_hand(small):
    """54 steps of 17 examples, 36 of them with a draw of 11; more with DER++."""
    model = train(small).model
    sample = torch.zeros(1, 1, 8, 8)
    one = forward_flops(model, sample).total
    first = 2 * 64 * 13
    assert one == first + 2 * 13 * 6
    n_steps, unit = 3 * 2 * (154 // 17), 3 * one - first
    assert train(small).cost["train_flops"] == n_steps * 17 * unit
    er = train(replace(small, strategy="er", replay_from="second"))
    n_replayed = n_steps * 2 // 3 * 11
    assert er.cost["train_flops"] == (n_steps * 17 + n_replayed) * unit
    derpp = train(replace(small, strategy="derpp", replay_from="second"))
    assert derpp.cost["train_flops"] == (n_steps * 17 + 2 * n_replayed) * unit


def test_flops_of_sparse_training(small):
    config = replace(small, method="static", sparsity=0.8, options={})
    dense, sparse = train(small), train(config)
    flops = forward_flops(sparse.model, torch.zeros(1, 1, 8, 8)).sparse(sparse.masks)
    n_examples = 3 * 2 * (154 // 17) * 17
    first = next(iter(flops.parameters.values()))
    assert sparse.cost["train_flops"] == n_examples * (3 * flops.total - first)
    assert sparse.cost["train_flops"] < 0.25 * dense.cost["train_flops"]


def test_an_interval_over_test_examples():
    correct = [torch.tensor([1, 1, 0, 1]), torch.tensor([0, 1])]
    interval = stratified(correct)
    assert interval.value == 0.625
    se = ((0.75 * 0.25 / 4 + 0.5 * 0.5 / 2) / 4) ** 0.5
    assert interval.high - interval.value == pytest.approx(1.959963984540054 * se)


def test_a_folder(small, tmp_path):
    out = tmp_path / "run"
    result = train(replace(small, strategy="derpp", out=out))
    stored = json.loads((out / "result.json").read_text())
    assert (stored["app"], stored["method"]) == ("continual", "derpp")
    assert stored["metrics"]["forgetting"]["low"] is None
    assert len((out / "log.jsonl").read_text().splitlines()) == 6
    loaded = load_result(out)
    assert same(result, loaded)
    assert loaded.metrics["accuracy"] == result.metrics["accuracy"]
    for name, values in result.samples.items():
        assert torch.equal(values, loaded.samples[name])
    with pytest.raises(ValueError, match="holds a finished run"):
        train(replace(small, strategy="derpp", out=out))
    with pytest.raises(ValueError, match="was trained with buffer = 30, not 31"):
        train(replace(small, strategy="derpp", buffer=31, out=out, resume=True))
    with pytest.raises(FileNotFoundError, match="no finished run"):
        load_result(tmp_path)


def test_a_loss_that_is_not_finite(small):
    with pytest.raises(ValueError, match=r"the loss is nan.*lower lr"):
        train(replace(small, lr=1e30))


def test_scenarios(small):
    one = train(replace(small, tasks=1, strategy="er"))
    assert one.matrix.shape == (1, 1)
    assert "forgetting" not in one.metrics
    alone = train(replace(small, tasks=6, strategy="er"))  # one class a task
    assert torch.equal(alone.task_matrix, torch.ones(6, 6, dtype=torch.float64))
    domain = train(replace(small, scenario="domain", strategy="er"))
    assert torch.equal(domain.matrix, domain.task_matrix)
    known = train(replace(small, scenario="task", strategy="er"))
    assert torch.equal(known.matrix, known.task_matrix)
    assert "ece" not in known.metrics
    online = train(replace(small, online=True, epochs=1, strategy="derpp"))
    assert len(online.history) == 3
    moments = replace(small, online=True, epochs=1, optimizer="momentum")
    assert not same(train(moments), train(replace(moments, online=False)))
    blurry = train(replace(small, blurry=0.4))
    assert float(blurry.matrix[0, 1:].max()) > 0


def test_a_task_smaller_than_a_batch(small):
    result = train(replace(small, train_size=9, strategy="er"))
    assert [row["steps"] for row in result.history] == [1] * 6
    state = training.build(small, streams.load(small))
    assert state.plan.total == 6 * (154 // 17)


def test_half_precision_rounds_the_products_and_not_the_weights(small) -> None:
    config = replace(small, strategy="derpp", epochs=1)
    exact, rounded = train(config), train(replace(config, precision="bf16"))
    assert {p.dtype for p in rounded.model.parameters()} == {torch.float32}
    pairs = zip(exact.model.parameters(), rounded.model.parameters(), strict=True)
    gap = max(float((a - b).abs().max().detach()) for a, b in pairs)
    assert 0 < gap < 0.05


def test_compiled_steps_train_the_same_weights(small, monkeypatch) -> None:
    """Traced and differentiated ahead, but no code is generated: that takes minutes."""
    calls = []

    def traced(model: torch.nn.Module, **how) -> torch.nn.Module:
        calls.append(how)
        return compile_anything(model, backend="aot_eager", **how)

    compile_anything = torch.compile
    monkeypatch.setattr(torch, "compile", traced)
    config = replace(
        small, strategy="derpp", epochs=1, method="rigl", sparsity=0.5, seed=1
    )
    plain, compiled = train(config), train(replace(config, compile=True))
    assert calls == [{"dynamic": False}]
    torch.testing.assert_close(compiled.model.state_dict(), plain.model.state_dict())
    assert compiled.masks.keys() == plain.masks.keys()
    for name, mask in plain.masks.items():
        assert torch.equal(compiled.masks[name], mask)
    with pytest.raises(ValueError, match="use compile with backend masked"):
        replace(config, compile=True, backend="values")


def test_other_data_than_the_run_began_with_are_named(tmp_path: Path) -> None:
    """The same path, another content: a class less, an example less, another input."""
    generator = np.random.default_rng(0)
    x, y = generator.random((60, 5)).astype(np.float32), np.arange(60) % 4
    path, out = tmp_path / "x.npz", tmp_path / "run"
    np.savez(path, x=x, y=y)
    config = Config(dataset=str(path), tasks=2, width=3, epochs=2, out=out)

    def stop(task: int, state: Training) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, watch=stop)
    again = replace(config, resume=True)
    less = y != 3
    cases = [
        ((x[less], y[less]), "classes were 4, now 3"),
        ((x[:-8], y[:-8]), "examples were"),
    ]
    for row in range(0, 60, 6):
        moved = x.copy()
        moved[row] += 1
        cases.append(((moved, y), "checksum were"))
    for changed, what in cases:
        np.savez(path, x=changed[0], y=changed[1])
        with pytest.raises(ValueError, match=f"begun with other data: its {what}"):
            train(again)
    np.savez(path, x=x, y=y)
    assert train(again).accuracy == train(replace(config, out=None)).accuracy
