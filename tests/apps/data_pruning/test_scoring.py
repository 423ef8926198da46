"""Scores: against a loop, independent of order and batch, cost by hand; noise found."""

from dataclasses import replace

import pytest
import torch

from apps.data_pruning import data as sources
from apps.data_pruning import scoring
from apps.data_pruning.config import Config
from apps.data_pruning.train import train
from sparsekit.data_pruning.dynamics import TrainingTrace, aum, forgetting


@pytest.fixture(scope="module")
def data(small) -> sources.Data:
    return sources.load(small)


def test_el2n_by_a_loop_over_examples(small, data) -> None:
    found = scoring.measure(small, data, ["el2n"]).per_run["el2n"]
    assert found.shape == (2, 161)
    x, y = data.splits.train.x, data.splits.train.y
    for run in range(2):
        model = train(small, data, until=1, run=1 + run).model.eval()
        for i in (0, 7, 160):
            error = model(x[i : i + 1]).softmax(1)[0].detach()
            error[y[i]] -= 1
            assert float(found[run, i]) == pytest.approx(float(error.norm()), abs=1e-5)


def test_a_trace_is_that_of_its_training(small, data) -> None:
    trace = TrainingTrace(len(data))
    x, y = data.splits.train.x, data.splits.train.y

    def watch(model, epoch, seconds):
        if epoch:
            model.eval()
            trace.record(epoch - 1, torch.arange(161), model(x), y)

    train(small, data, run=1, watch=watch)
    found = scoring.measure(small, data, ["aum", "forgetting", "aum@2"])
    torch.testing.assert_close(found.per_run["aum"][0], aum(trace))
    torch.testing.assert_close(found.per_run["forgetting"][0], forgetting(trace))
    trace.own, trace.other = trace.own[:2], trace.other[:2]
    torch.testing.assert_close(found.per_run["aum@2"][0], aum(trace))


def test_scores_do_not_depend_on_what_else_is_asked_for(small, data) -> None:
    alone = scoring.measure(small, data, ["el2n"])
    many = scoring.measure(
        small, data, ["el2n@3", "aum", "grand", "el2n", "features", "el2n@0"]
    )
    assert torch.equal(alone.per_run["el2n"], many.per_run["el2n"])
    assert many.extras["features"].shape == (161, 13)
    assert not torch.equal(many.per_run["el2n@3"], many.per_run["el2n"])


def test_scores_belong_to_examples_whatever_the_batch(small, data, monkeypatch) -> None:
    names = ["el2n", "grand", "margin", "entropy", "input_norm"]
    config = replace(small, model="cnn", width=3, augment=True)
    whole = scoring.measure(config, data, names)
    monkeypatch.setattr(scoring, "BATCH", 7)
    parts = scoring.measure(config, data, names)
    for name in names:
        torch.testing.assert_close(parts.per_run[name], whole.per_run[name])
    by_hand = data.splits.train.x.flatten(1).norm(dim=1)
    torch.testing.assert_close(whole.values("input_norm"), by_hand)


def test_the_mean_over_runs_and_random(small, data) -> None:
    found = scoring.measure(small, data, ["el2n", "random"])
    torch.testing.assert_close(found.values("el2n"), found.per_run["el2n"].mean(0))
    assert found.values("random").tolist() == [0.0] * 161
    nothing = scoring.measure(small, data, [])
    assert nothing.values("random").tolist() == [0.0] * 161
    assert nothing.cost(small, data, ["random"]) == (0.0, 0.0)


def test_costs_by_hand(small, data) -> None:
    """Two runs of one epoch and a pass each; a whole training with a pass an epoch."""
    names = ["el2n", "aum", "grand", "input_norm", "features"]
    found = scoring.measure(small, data, names)
    forward = 2 * (64 * 13 + 13 * 3)
    epoch = 3 * forward * 17 * round(4 * 161 / 17) / 4

    def flops(*wanted):
        return found.cost(small, data, wanted)[1]

    assert flops("el2n") == pytest.approx(2 * epoch + 2 * 161 * forward)
    assert flops("grand") == pytest.approx(2 * epoch + 2 * 161 * 3 * forward)
    assert flops("aum") == pytest.approx(4 * epoch + 4 * 161 * forward)
    assert flops("input_norm") == 0
    assert flops("random", "features") == pytest.approx(epoch + 161 * forward)
    both = 4 * epoch + epoch + (4 + 2) * 161 * forward
    assert flops("aum", "el2n") == pytest.approx(both)
    clock, passes = found.clock, found.passes
    seconds = found.cost(small, data, ["el2n"])[0]
    assert seconds == pytest.approx(float(clock[:, 1].sum()) + passes["el2n"])
    seconds = found.cost(small, data, ["aum"])[0]
    assert seconds == pytest.approx(float(clock[0, 4]) + passes["trace"])


@pytest.mark.parametrize("name", ["el2n", "aum"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_wrong_labels_score_higher_than_chance(small, name: str, seed: int) -> None:
    config = replace(small, noise=0.2, seed=seed, score_epoch=3)
    data = sources.load(config)
    values = scoring.measure(config, data, [name]).values(name)
    wrong, right = values[data.flipped], values[~data.flipped]
    higher = (wrong[:, None] > right[None]).double().mean()
    assert higher > 0.85  # area under the ROC curve; chance is one half


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("el3n", "no score 'el3n'; did you mean 'el2n'"),
        ("el2n@99", r"the epoch after @ is 0 \.\.\. 4, got '99'"),
        ("el2n@x", "got 'x'"),
        ("aum@0", "a trace needs an epoch"),
    ],
)
def test_unknown_scores_are_named(small, word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scoring.parse(small, word)


def test_the_scores_epoch_is_within_the_training() -> None:
    with pytest.raises(ValueError, match=r"score_epoch must be in 0 \.\.\. 3"):
        Config(epochs=3, score_epoch=4)
