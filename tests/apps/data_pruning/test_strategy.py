"""Strategies: words taken apart, choices against the core, what policies ask for."""

from dataclasses import replace

import pytest
import torch

from apps.common.seeds import mixed
from apps.data_pruning import data as sources
from apps.data_pruning import scoring
from apps.data_pruning.strategy import choose, drop_hardest, parse
from sparsekit.data_pruning import selection
from sparsekit.data_pruning.selection import select


@pytest.fixture(scope="module")
def measured(small):
    config = replace(small, noise=0.1, score_epoch=2)
    data = sources.load(config)
    names = ["el2n", "aum", "mean_p", "features"]
    return config, data, scoring.measure(config, data, names)


@pytest.mark.parametrize(
    ("word", "score", "policy", "options"),
    [
        ("el2n", "el2n", "top", {}),
        ("random", "random", "random", {}),
        ("stratified", "random", "random", {"per_class": True}),
        ("ccs", "aum", "strata", {"drop_hardest": "auto"}),
        ("aum@3:strata:n_strata=7,drop_hardest=0.1", "aum@3", "strata",
         {"n_strata": 7, "drop_hardest": 0.1}),
        ("el2n:window:drop_hardest=0.1:per_class=true", "el2n", "window",
         {"drop_hardest": 0.1, "per_class": True}),
    ],
)  # fmt: skip
def test_words(small, word, score, policy, options) -> None:
    found = parse(small, word)
    assert (found.score, found.policy, found.options) == (score, policy, options)
    assert found.label == word


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("el3n", "no score 'el3n'"),
        ("el2n:tip", "no policy 'tip'; did you mean 'top'"),
        ("el2n:top:n_strata=3", "top has per_class"),
        ("el2n:strata:n_strata", "NAME=VALUE"),
        ("el2n:strata:n_strata=many", "n_strata must be a number, got 'many'"),
        ("el2n:window:generator=1", "window has drop_hardest, per_class"),
        ("", "no score ''"),
    ],
)
def test_mistakes_are_named(small, word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(small, word)


def test_choices_are_those_of_the_core(measured) -> None:
    config, data, found = measured
    values = found.values("el2n")
    top = values.argsort(descending=True, stable=True)[:48].sort().values
    chosen = choose(parse(config, "el2n"), found, data, 0.3, seed=0)
    assert torch.equal(chosen, top)
    ccs = choose(parse(config, "ccs"), found, data, 0.1, seed=5)
    expected = select(
        found.values("aum"), 0.1, "strata", drop_hardest=0.3, seed=mixed(5, 0, 4)
    )
    assert torch.equal(ccs, expected)
    y = data.splits.train.y
    stratified = choose(parse(config, "stratified"), found, data, 0.5, seed=2)
    shares = y[stratified].bincount() - y.bincount() * len(stratified) / len(y)
    assert shares.abs().max() < 1


def test_scores_keep_more_wrong_labels_than_windows_do(measured) -> None:
    config, data, found = measured

    def kept(word: str) -> int:
        chosen = choose(parse(config, word), found, data, 0.5, seed=0)
        return int(data.flipped[chosen].sum())

    assert kept("el2n") > kept("random") > kept("el2n:window:drop_hardest=0.2")
    assert kept("aum") > kept("aum:bottom") == 0


@pytest.mark.parametrize("seed", range(3))
def test_random_choices_do_not_know_what_was_planted(small, seed: int) -> None:
    config = replace(small, noise=0.3, duplicates=0.3, seed=seed)
    data = sources.load(config)
    nothing = scoring.measure(config, data, [])
    chosen = choose(parse(config, "random"), nothing, data, 0.5, seed=seed)
    for planted in (data.flipped, data.copy_of >= 0):
        share = int(planted[chosen].sum()) / int(planted.sum())
        assert 0.25 < share < 0.75  # 48 draws: four standard deviations


def test_policies_get_what_they_ask_for(measured, monkeypatch) -> None:
    config, data, found = measured
    seen = {}

    def nosy(scores, n, *, features, mean_p, generator, power=1.0):
        seen.update(features=features, mean_p=mean_p, power=power)
        return torch.arange(n)

    monkeypatch.setitem(selection.POLICIES, "nosy", nosy)
    strategy = parse(config, "el2n:nosy:power=2")
    assert strategy.needs == ("el2n", "features", "mean_p")
    chosen = choose(strategy, found, data, 0.2, seed=0)
    assert chosen.tolist() == list(range(32))
    assert seen["features"].shape == (161, 13)
    assert seen["mean_p"].shape == (161,)
    assert 0 < float(seen["mean_p"].min()) < float(seen["mean_p"].max()) < 1
    assert seen["power"] == 2


def test_ccs_drops_what_its_budget_allows() -> None:
    for keep in (0.05, 0.1, 0.3, 0.5, 0.9):
        assert 0 <= drop_hardest(keep) <= 1 - keep
    assert drop_hardest(0.5) == drop_hardest(1.0) == 0
