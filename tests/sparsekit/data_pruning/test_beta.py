"""Beta sampling: parameters in closed form, draws against exact probabilities."""

import itertools

import pytest
import torch
from scipy import stats

from sparsekit.data_pruning.beta import beta, beta_parameters


@pytest.mark.parametrize("mu", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.9, 1.0])
def test_parameters(mu, ratio):
    a, b = beta_parameters(mu, ratio)
    assert a + b == pytest.approx(16)
    assert b > 0
    assert b == pytest.approx(max(15 * (1 - mu) * (1 - ratio**4), 1e-3))


def test_draws_have_the_probabilities_of_sampling_one_by_one():
    scores = torch.tensor([0.5, 1.0, 2.0, 0.0, 1.5])
    mean_p = torch.tensor([0.2, 0.5, 0.7, 0.6, 0.9])
    a, b = beta_parameters(float(mean_p.mean()), 1 - 2 / 5)
    weight = scores.numpy() * stats.beta(a, b).pdf(mean_p.numpy())
    p = weight / weight.sum()
    expected = {
        pair: p[pair[0]] * p[pair[1]] / (1 - p[pair[0]])
        + p[pair[1]] * p[pair[0]] / (1 - p[pair[1]])
        for pair in itertools.combinations(range(5), 2)
    }
    generator, n = torch.Generator().manual_seed(0), 4000
    counts = dict.fromkeys(expected, 0)
    for _ in range(n):
        drawn = beta(scores, 2, mean_p=mean_p, generator=generator)
        counts[tuple(drawn.tolist())] += 1
    for pair, probability in expected.items():
        error = 4 * (probability * (1 - probability) / n) ** 0.5
        assert abs(counts[pair] / n - probability) <= error
        if 3 in pair:  # a score of 0 is never drawn while others are left
            assert counts[pair] == 0


def test_the_more_is_pruned_the_easier_are_the_examples_that_stay():
    generator = torch.Generator().manual_seed(1)
    mean_p = torch.rand(2000, generator=generator)
    scores = 1 - mean_p  # hard ones score high
    kept = {
        n: float(mean_p[beta(scores, n, mean_p=mean_p, generator=generator)].mean())
        for n in (600, 400, 200)
    }
    assert kept[600] < kept[400] < kept[200]


def test_extremes_give_exactly_n():
    g = torch.Generator()
    mean_p = torch.tensor([0.0, 1.0, 0.5, 1.0])
    for n in range(5):
        assert len(beta(torch.zeros(4), n, mean_p=mean_p, generator=g)) == n
    with pytest.raises(ValueError, match=r"mean_p is \[N\], got 3 for 4"):
        beta(torch.ones(4), 2, mean_p=mean_p[:3], generator=g)
    with pytest.raises(ValueError, match="at least 0"):
        beta(torch.tensor([-1.0, 1, 1, 1]), 2, mean_p=mean_p, generator=g)


@pytest.mark.parametrize("n", [1, 20, 60, 119])
@pytest.mark.parametrize("seed", range(3))
def test_draws_are_the_largest_of_log_weights_with_gumbel_noise(n, seed):
    """The density is scipy's, the hardest are the ten of the highest score."""
    generator = torch.Generator().manual_seed(seed)
    scores = 1 + torch.rand(120, generator=generator)
    scores[:11] = torch.arange(21.0, 10, -1)
    # Hardest ten: certain. The eleventh: 0. Others: also beyond what is told apart.
    mean_p = torch.rand(120, generator=generator, dtype=torch.float64)
    mean_p[:10], mean_p[10] = 0.9, 0.0
    near = torch.tensor([0, 5e-7, 1e-6, 1.5e-6, 3e-6], dtype=torch.float64)
    mean_p[20:25], mean_p[30:35] = near, 1 - near
    a, b = beta_parameters(0.9, 1 - n / 120, 2.0)
    p = mean_p.clamp(1e-6, 1 - 1e-6).numpy()
    weight = torch.from_numpy(stats.beta(a, b).logpdf(p)) + scores.double().log()
    state = generator.get_state()
    uniform = torch.rand(120, dtype=torch.float64, generator=generator)
    keys = weight - torch.log(-torch.log(uniform))
    expected = keys.topk(n).indices.sort().values
    generator.set_state(state)
    found = beta(scores, n, mean_p=mean_p, generator=generator, power=2.0)
    assert torch.equal(found, expected)


def test_values_that_cannot_be_told_apart_weigh_alike():
    """Probabilities within 1e-6 of 0, or of 1, count as 1e-6 away."""
    scores = torch.ones(12)
    for far, near in ((1e-6, 1.9e-6), (1 - 1e-6, 1 - 1.9e-6)):
        counts = []
        for p in (far, round(far), near):
            mean_p = torch.full((12,), 0.5, dtype=torch.float64)
            mean_p[:6] = p
            draws = [
                beta(scores, 6, mean_p=mean_p,
                     generator=torch.Generator().manual_seed(seed)).tolist()
                for seed in range(300)
            ]  # fmt: skip
            counts.append(sum(i < 6 for draw in draws for i in draw))
        assert counts[0] == counts[1]


@pytest.mark.parametrize("value", [-0.1, torch.nan, torch.inf])
def test_scores_that_are_no_weights_are_refused(value):
    scores = torch.tensor([1.0, value])
    with pytest.raises(ValueError, match="in proportion to scores: finite, at least"):
        beta(scores, 1, mean_p=torch.ones(2), generator=torch.Generator())
