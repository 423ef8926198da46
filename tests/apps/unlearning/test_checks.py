"""The package's own unlearners and attacks pass the checks that mutants must fail."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import nn

from apps.common.images import Split
from apps.common.roc import auc
from apps.unlearning.attacks import relearn
from apps.unlearning.attacks.lira import ulira
from apps.unlearning.attacks.rmia import ratios, wins
from apps.unlearning.fitting import batches
from apps.unlearning.unlearners.gradient_ascent import GradientAscent
from apps.unlearning.unlearners.influence import Influence
from apps.unlearning.unlearners.l1_sparse import L1Sparse
from tests.apps.unlearning import checks


def test_gradient_ascent_is_sound():
    checks.ascends(GradientAscent)


def test_influence_is_sound():
    checks.steps_to_the_optimum(Influence)


def test_the_proximal_step_is_sound():
    checks.makes_zeros(L1Sparse)


def test_rmia_is_sound():
    checks.calibrates(ratios, wins)


def test_ulira_is_sound():
    checks.tells_clouds_apart(ulira)


def test_ulira_s_score_is_the_ratio_of_two_normals_a_record():
    """By the standard library's normal distribution, for each record by itself."""
    generator = np.random.default_rng(0)
    shapes, centres, widths = (9, 7, 5, 4), (0.5, 0.0, 0.5, 0.0), (0.7, 1.6, 0.7, 1.6)
    u, r, caught, fresh = (
        generator.normal(c, w, size=(n, 11))
        for n, c, w in zip(shapes, centres, widths, strict=True)
    )
    found = ulira(u, r, caught, fresh, shared=False)
    fits = [[NormalDist.from_samples(a[:, i]) for i in range(11)] for a in (u, r)]
    for scores, targets in ((found.members, caught), (found.others, fresh)):
        expected = [
            math.log(fits[0][i].pdf(c) / fits[1][i].pdf(c))
            for row in targets
            for i, c in enumerate(row)
        ]
        np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-10)


def test_auc_is_sound():
    checks.counts_pairs(auc)


def test_relearn_time_is_sound():
    checks.relearns(relearn.steps)


def test_relearn_time_is_the_number_of_steps_of_plain_sgd():
    """Against the loop written out for softmax regression, with its own gradient."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(23, 5, generator=generator)
    y = torch.arange(23) % 3
    forget = Split(x, y)
    line = nn.Linear(5, 3, bias=False)
    w, epochs = line.weight.detach().clone(), range(100)
    parts = [b for e in epochs for b in batches(forget, 7, 4, e, drop_last=False)]
    done = 0
    while -torch.log_softmax(x @ w.T, 1)[torch.arange(23), y].mean() > 0.8:
        bx, by = parts[done]
        error = torch.softmax(bx @ w.T, 1) - nn.functional.one_hot(by, 3)
        w -= 0.2 * error.T @ bx / len(bx)
        done += 1
    assert 4 < done < 400
    assert relearn.steps(line, forget, 0.8, lr=0.2, batch=7, seed=4) == done


def test_what_cannot_be_relearned_in_time_is_none():
    x, y = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    forget = Split(x, y)
    assert relearn.steps(nn.Linear(2, 2), forget, below=0.1, most=5) is None
    with pytest.raises(ValueError, match="no record to relearn"):
        relearn.steps(nn.Linear(2, 2), Split(x[:0], y[:0]), below=0.1)
    with pytest.raises(ValueError, match="below and lr must be positive"):
        relearn.steps(nn.Linear(2, 2), forget, below=0.0)
