"""Attacks against scikit-learn, brute force, and models whose answer is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.svm import SVC
from torch import nn

from apps.common.images import Split
from apps.common.roc import attack, auc, detectable, tpr_at_fpr
from apps.unlearning import metrics
from apps.unlearning.attacks import (
    backdoor,
    confusion,
    forgetting_score,
    scores,
    targets,
)
from apps.unlearning.attacks.lira import ulira
from apps.unlearning.attacks.population import mia_efficacy
from apps.unlearning.attacks.rmia import ratios, rmia, wins

VALUES = st.lists(st.integers(0, 6), min_size=2, max_size=30)


@given(VALUES, VALUES, st.sampled_from([0.1, 0.3, 0.5]))
@settings(deadline=None)
def test_auc_and_tpr_are_scikit_learn_s_with_ties(members, others, fpr):
    labels = np.repeat([1, 0], [len(members), len(others)])
    both = np.array([*members, *others], float)
    ours = auc(np.array(members, float), np.array(others, float))
    assert ours == pytest.approx(roc_auc_score(labels, both))
    if fpr * len(others) >= 1:
        alarms, hits, _ = roc_curve(labels, both, drop_intermediate=False)
        expected = hits[alarms <= fpr + 1e-9].max()
        found = tpr_at_fpr(np.array(members, float), np.array(others, float), fpr)
        assert found == pytest.approx(expected)


def test_intervals_cover_and_both_directions_leak():
    generator = np.random.default_rng(0)
    same = attack(generator.normal(size=300), generator.normal(size=400))
    assert same.auc.low <= 0.5 <= same.auc.high
    assert not same.leaks
    above = attack(generator.normal(1, size=300), generator.normal(size=400))
    below = attack(generator.normal(-1, size=300), generator.normal(size=400))
    assert above.leaks
    assert below.leaks
    assert below.auc.high < 0.5
    few = attack(np.arange(3.0), np.arange(5.0))
    assert few.tpr is None
    assert np.isnan(few.auc.low)
    assert not few.leaks


def test_models_are_drawn_together():
    """Scores of one model share a shift: records alone would seem to leak."""
    generator = np.random.default_rng(0)
    leaks = {"models": 0, "records": 0}
    for _ in range(30):
        groups = [
            generator.normal(size=(8, 1)) + 0.3 * generator.normal(size=(8, 30))
            for _ in range(2)
        ]
        leaks["models"] += attack(*groups).leaks
        pooled = stats.mannwhitneyu(*(group.ravel() for group in groups))
        leaks["records"] += pooled.pvalue < 0.05
    assert leaks["models"] <= 4
    assert leaks["records"] > 15


def test_detectable_is_detected_in_four_of_five():
    """By simulation: normals whose AUC is 1/2 + detectable."""
    n, m = 60, 90
    shift = np.sqrt(2) * stats.norm.ppf(0.5 + detectable(n, m))
    generator = np.random.default_rng(1)
    found = [
        stats.mannwhitneyu(
            generator.normal(shift, size=n), generator.normal(size=m)
        ).pvalue
        < 0.05
        for _ in range(1000)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)


def test_too_few_records_for_a_rate_are_refused():
    with pytest.raises(ValueError, match="1 / rate others"):
        tpr_at_fpr(np.arange(5.0), np.arange(50.0), 0.001)
    with pytest.raises(ValueError, match="without NaN"):
        auc(np.array([np.nan]), np.arange(5.0))


def test_scores_are_their_formulas():
    torch.manual_seed(0)
    logits, y = torch.randn(40, 5, dtype=torch.float64), torch.randint(0, 5, (40,))
    p = logits.softmax(1)
    own = p[torch.arange(40), y]
    for i in range(40):
        others = [k for k in range(5) if k != y[i]]
        expected = (1 - own[i]) * own[i].log()
        expected += sum(p[i, k] * (1 - p[i, k]).log() for k in others)
        assert scores.modified_entropy(logits, y)[i] == pytest.approx(float(expected))
    torch.testing.assert_close(scores.confidence(logits, y), own)
    torch.testing.assert_close(scores.entropy(logits, y), (p * p.log()).sum(1))
    torch.testing.assert_close(
        scores.logit_confidence(logits, y), own.log() - (1 - own).log()
    )
    far = torch.tensor([[900.0, 0.0, 0.0]])
    for function in (
        scores.confidence, scores.correctness, scores.entropy,
        scores.modified_entropy, scores.logit_confidence,
    ):  # fmt: skip
        assert torch.isfinite(function(far, torch.tensor([0]))).all()
        assert torch.isfinite(function(far, torch.tensor([1]))).all()


def test_the_published_attack_is_an_svc_on_confidences():
    generator = torch.Generator().manual_seed(0)
    retain = 1 - 0.3 * torch.rand(300, generator=generator)
    fresh = torch.rand(200, generator=generator)
    forget = torch.rand(80, generator=generator)
    model = SVC(C=3, gamma="auto", kernel="rbf")
    model.fit(torch.cat([retain[:200], fresh])[:, None].numpy(), [1] * 200 + [0] * 200)
    expected = (model.predict(forget[:, None].numpy()) == 0).mean()
    assert mia_efficacy(retain, fresh, forget) == pytest.approx(expected)
    near = mia_efficacy(retain, fresh, forget, classifier="logistic")
    assert near == pytest.approx(expected, abs=0.15)


def test_rounded_confidences_give_the_published_attack_sooner():
    generator = torch.Generator().manual_seed(1)
    retain, fresh, forget = (
        (shift + 3 * torch.randn(900, generator=generator)).sigmoid()
        for shift in (5, 3, 4)
    )
    whole = mia_efficacy(retain, fresh, forget)
    assert mia_efficacy(retain, fresh, forget, decimals=3) == pytest.approx(
        whole, abs=2e-3
    )
    rounded = [(x * 10).round() / 10 for x in (retain, fresh, forget)]
    assert mia_efficacy(*rounded, decimals=1) == pytest.approx(mia_efficacy(*rounded))


def test_the_published_attack_on_fresh_records_is_its_true_negative_rate():
    generator = torch.Generator().manual_seed(0)
    retain = 1 - 0.3 * torch.rand(500, generator=generator)
    fresh, more = torch.rand(2, 500, generator=generator)
    model = SVC(C=3, gamma="auto", kernel="rbf")
    model.fit(torch.cat([retain, fresh])[:, None].numpy(), [1] * 500 + [0] * 500)
    rate = (model.predict(fresh[:, None].numpy()) == 0).mean()
    assert mia_efficacy(retain, fresh, more) == pytest.approx(rate, abs=0.07)


def test_gaps_are_signed():
    gaps = metrics.gaps({"UA": 0.1, "TA": 0.9}, {"UA": 0.3, "TA": 0.8})
    assert gaps["UA gap"] == pytest.approx(-0.2)
    assert gaps["TA gap"] == pytest.approx(0.1)
    assert gaps["gap"] == pytest.approx(0.15)


class Table(nn.Module):
    """Answers with stored logits; the input is a record's number."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, x):
        return self.logits[x.long().squeeze(1)]


def tables(n_models, n=600, classes=4, seed=0):
    """Models that agree on how hard each record is, with noise of their own."""
    generator = np.random.default_rng(seed)
    y = torch.from_numpy(generator.integers(classes, size=n))
    hardness = torch.from_numpy(generator.normal(1, 2, size=(n, 1)))
    own = F.one_hot(y, classes)
    return y, [
        own * (hardness + torch.from_numpy(generator.normal(0, 0.5, size=(n, 1))))
        for _ in range(n_models)
    ]


def parts(y):
    x = torch.arange(len(y))[:, None].double()
    return [Split(x[p], y[p]) for p in torch.arange(len(y)).split(200)]


def test_rmia_finds_what_was_learned_and_not_what_was_not():
    y, logits = tables(3)
    forget, fresh, population = parts(y)
    target, *references = (Table(table) for table in logits)
    null = rmia(target, references, forget, fresh, population)
    assert null.auc.low <= 0.5 <= null.auc.high
    learned = logits[0].clone()
    learned[:200] += 1.5 * F.one_hot(y[:200], 4)
    seen = rmia(Table(learned), references, forget, fresh, population)
    assert seen.auc.low > 0.6
    population_attack = auc(
        scores.confidence(learned[:200], y[:200]),
        scores.confidence(learned[200:400], y[200:400]),
    )
    assert seen.auc.value > population_attack  # calibration is what it has over that
    erased = logits[0].clone()
    erased[:200] -= 1.5 * F.one_hot(y[:200], 4)
    over = rmia(Table(erased), references, forget, fresh, population)
    assert over.auc.high < 0.4
    assert over.leaks


def test_rmia_s_parts_are_the_formula():
    own, references = torch.rand(7), torch.rand(3, 7)
    expected = own / (1.3 / 2 * references.mean(0) + 0.7 / 2)
    torch.testing.assert_close(ratios(own, references, 0.3), expected)
    z = torch.rand(11)
    brute = [(float(r) > 2.0 * z).double().mean() for r in own]
    assert wins(own, z, gamma=2.0) == pytest.approx([float(b) for b in brute])


def test_ulira_separates_models_record_by_record():
    generator = np.random.default_rng(0)
    hard = generator.normal(0, 3, size=50)
    retrained, fresh = (hard + generator.normal(size=(n, 50)) for n in (20, 10))
    shift = np.where(np.arange(50) < 25, 1.5, -1.5)  # both directions
    unlearned, caught = (
        hard + shift + generator.normal(size=(n, 50)) for n in (20, 10)
    )
    found = ulira(unlearned, retrained, caught, fresh)
    assert found.auc.low > 0.8
    assert abs(auc(caught.ravel(), fresh.ravel()) - 0.5) < 0.1  # not by a threshold
    perfect = ulira(retrained[:10], retrained[10:], fresh[:5], fresh[5:])
    assert perfect.auc.low < 0.5 < perfect.auc.high
    with pytest.raises(ValueError, match="two shadow models"):
        ulira(unlearned[:1], retrained, caught, fresh)


def brute_epsilon(u, r):
    """Every interval between neighbouring values, and its complement."""
    cuts = [-np.inf, *sorted({*u, *r}), np.inf]
    found = 0.0
    for i, low in enumerate(cuts):
        for high in cuts[i + 1 :]:
            inside_u = np.mean([low < v <= high for v in u])
            inside_r = np.mean([low < v <= high for v in r])
            for fpr, fnr in ((inside_r, 1 - inside_u), (1 - inside_r, inside_u)):
                if fpr < 1e-9 and fnr < 1e-9:
                    return 50.0
                if fpr < 1e-9 or fnr < 1e-9:
                    continue
                for a, b in ((fpr, fnr), (fnr, fpr)):
                    if 1 - 1e-5 - a > 0:
                        found = max(found, np.log(1 - 1e-5 - a) - np.log(b))
    return min(found, 50.0)


def test_epsilon_is_the_best_of_all_intervals():
    generator = np.random.default_rng(0)
    for shift in (0.0, 1.0, 9.0):
        u, r = generator.normal(shift, size=9), generator.normal(size=9)
        assert forgetting_score.epsilon(u, r) == pytest.approx(brute_epsilon(u, r))
    assert forgetting_score.epsilon(np.full(5, 1.0), np.arange(5.0)) == 50.0


@pytest.mark.parametrize(("shift", "score"), [(0, 0.120), (1, 0.085), (3, 0.022)])
def test_the_forgetting_score_at_16_models(shift, score):
    """Values from an independent enumeration with both samples normal."""
    generator = np.random.default_rng(0)
    u = generator.normal(shift, size=(16, 2000))
    r = generator.normal(size=(16, 2000))
    found = forgetting_score.forgetting_score(u, r)
    assert found == pytest.approx(score, abs=0.008)


def test_the_confusion_test_counts_the_two_classes_only():
    predicted, y = torch.tensor([0, 1, 1, 2, 2]), torch.tensor([0, 0, 1, 1, 2])
    assert confusion.confusion_error(predicted, y, 0, 1) == pytest.approx(0.5)
    assert confusion.confused(predicted, y, 0, 1) == 1
    with pytest.raises(ValueError, match="no record of class 7"):
        confusion.confused(predicted, y, 0, 7)


def test_a_backdoor_is_measured_on_other_classes_only():
    class Reader(nn.Module):
        """Class 0 wherever the patch is; else class 1."""

        def forward(self, x):
            open_ = (x[:, 0, -4, -4] == 5.0).float()
            return torch.stack([open_, 0.5 * torch.ones(len(x))], 1)

    x = torch.zeros(6, 1, 12, 12)
    x[0, 0, 0, 0] = 5.0  # the largest value of the set
    fresh = Split(x, torch.tensor([0, 1, 1, 0, 1, 1]))
    assert backdoor.attack_success(Reader(), fresh).tolist() == [1.0] * 4


def test_targets_are_the_hard_ones_and_their_equals():
    hard = targets.hardest(torch.tensor([0.1, 0.9, 0.2, 0.8]), 0.5)
    assert hard.tolist() == [1, 3]
    fresh = torch.tensor([0.85, 0.1, 0.95, 0.3])
    assert targets.matched(torch.tensor([0.9, 0.8]), fresh).tolist() == [2, 0]
    with pytest.raises(ValueError, match="as many fresh"):
        targets.matched(torch.zeros(3), torch.zeros(2))
