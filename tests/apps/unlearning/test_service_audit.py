"""Numbers of an audit against scikit-learn, scipy, DeLong's formula, and simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from apps.unlearning.service_audit import (
    Settings,
    combined,
    compare,
    distance,
    placements,
    plain,
    rmia,
)


def test_one_source_of_error_is_students_t():
    values = np.random.default_rng(0).normal(size=17)
    ours = combined(float(values.mean()), [(float(values.var(ddof=1)), 17)])
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_two_sources_are_welchs():
    """The difference of two means with unequal variances."""
    generator = np.random.default_rng(1)
    a, b = generator.normal(size=9), generator.normal(1, 3, size=23)
    ours = combined(
        float(a.mean() - b.mean()), [(a.var(ddof=1), 9), (b.var(ddof=1), 23)]
    )
    theirs = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_no_interval_from_one_value_and_none_wide_from_equal_ones():
    assert math.isnan(combined(0.5, [(math.nan, 1), (0.1, 5)]).low)
    assert combined(0.5, [(0.0, 9), (0.0, 3)]).high == 0.5


def auc(scores: np.ndarray, n: int) -> float:
    return roc_auc_score(np.arange(len(scores)) < n, scores)


def test_placements_have_the_auc_as_mean_and_delongs_variance():
    generator = np.random.default_rng(2)
    for decimals in (9, 1):  # without ties, and with many
        scores = np.round(generator.normal(size=80) + (np.arange(80) < 30), decimals)
        erased, fresh = placements(scores, 30)
        above = np.sign(scores[:30, None] - scores[None, 30:]) / 2 + 0.5
        assert erased == pytest.approx(above.mean(1))
        assert fresh == pytest.approx(above.mean(0))
        assert erased.mean() == pytest.approx(auc(scores, 30))
        assert fresh.mean() == pytest.approx(auc(scores, 30))


def test_rmia_by_its_definition():
    """Two loops, as the paper's formula reads."""
    generator = np.random.default_rng(3)
    target, others = generator.random(40), generator.random((3, 40))
    ours = rmia(target, others, 15)
    ratio = []
    for x in range(40):
        mean_out = sum(others[m, x] for m in range(3)) / 3
        ratio.append(target[x] / (1.3 / 2 * mean_out + 0.7 / 2))
    for x in range(40):
        wins = sum(ratio[x] > ratio[z] for z in range(15, 40))
        assert ours[x] == pytest.approx(wins / 25)
    assert plain(target, others, 15) is target
    by_hand = [abs(target[x] - sum(others[:, x]) / 3) for x in range(40)]
    assert distance(target, others, 15) == pytest.approx(by_hand)


def model(generator, n_erased: int, shift) -> dict:
    """A model's values; the erased records are `shift` more likely for it."""
    difficulty = np.random.default_rng(99).normal(1, 1, 400)
    logits = difficulty + 0.5 * generator.normal(size=400)
    logits[:n_erased] += shift
    probability = 1 / (1 + np.exp(-logits))
    correct = (logits > 0).astype(float)
    parts = {"erased": slice(0, n_erased), "fresh": slice(n_erased, None)}
    found = {k: {"confidence": probability[s], "correct": correct[s]}
             for k, s in parts.items()}  # fmt: skip
    return found | {"kept": found["fresh"]}


def test_an_audit_of_models_that_are_drawn():
    """The interval of the gap holds the truth about as often as it says, and rmia sees
    what a single threshold hardly sees."""
    covered = {"rmia": 0, "distance": 0, "confidence": 0}
    widths: dict = {name: [] for name in covered}
    runs = 60
    for seed in range(runs):
        generator = np.random.default_rng(seed)
        references = [model(generator, 100, 0.0) for _ in range(4)]
        found = compare(
            model(generator, 100, 1.0), model(generator, 100, 0.0), references
        )
        for row in found["attacks"]:
            gap = row["gap"]
            covered[row["name"]] += gap.low <= 0 <= gap.high
            widths[row["name"]].append(row["control"].low)
            assert row["control"].value > gap.value
    # All models but the original are alike, so the gap's truth is 0.
    for times in covered.values():
        assert times >= 0.9 * runs
    assert np.mean(np.array(widths["rmia"]) > 0) > 0.95
    assert np.mean(widths["rmia"]) > np.mean(widths["confidence"])


def test_forgetting_too_much_and_too_little_at_once_is_seen():
    """Half of the records kept, half over-forgotten: one-sided attacks see nothing."""
    generator = np.random.default_rng(11)
    references = [model(generator, 100, 0.0) for _ in range(4)]
    shift = np.where(np.arange(100) % 2, 2.0, -2.0)
    mixed = model(generator, 100, shift)
    found = compare(model(generator, 100, 2.0), mixed, references)
    gaps = {row["name"]: row["gap"] for row in found["attacks"]}
    assert gaps["rmia"].low < 0.05
    assert gaps["distance"].low > 0.2


def test_the_table_of_three_models():
    generator = np.random.default_rng(5)
    models = [model(generator, 100, shift) for shift in (1.0, 0.2, 0.0, 0.0, 0.0)]
    found = compare(models[0], models[1], models[2:])
    ua, ra, _ta = found["metrics"]
    wrong = [1 - m["erased"]["correct"].mean() for m in models]
    assert ua["original"].value == pytest.approx(wrong[0])
    assert ua["unlearned"].value == pytest.approx(wrong[1])
    assert ua["retrained"].value == pytest.approx(np.mean(wrong[2:]))
    assert ua["gap"].value == pytest.approx(wrong[1] - np.mean(wrong[2:]))
    assert ua["control"].value == pytest.approx(wrong[0] - np.mean(wrong[2:]))
    assert ra["unlearned"].value == pytest.approx(models[1]["kept"]["correct"].mean())
    (*_, weak) = found["attacks"]
    both = [np.r_[m["erased"]["confidence"], m["fresh"]["confidence"]] for m in models]
    aucs = [auc(scores, 100) for scores in both]
    assert weak["unlearned"].value == pytest.approx(aucs[1])
    assert weak["gap"].value == pytest.approx(aucs[1] - np.mean(aucs[2:]))


@pytest.mark.parametrize("wrong", [{"references": 1}, {"margin": 0}, {"margin": 0.6}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match="must be"):
        Settings(**wrong)
