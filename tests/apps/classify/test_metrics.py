"""Metrics against scikit-learn and brute force; corruptions against identities."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.metrics import accuracy_score, log_loss

from apps.classify import metrics


@pytest.fixture(params=[0, 1, 2])
def predictions(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(request.param)
    logits = 3 * torch.randn(101, 7, generator=generator)
    return logits, torch.randint(0, 7, (101,), generator=generator)


def test_correct_and_nll_equal_scikit_learn(predictions) -> None:
    logits, y = predictions
    p = logits.double().softmax(1).numpy()
    accuracy = metrics.correct(logits, y).double().mean().item()
    assert accuracy == pytest.approx(accuracy_score(y, p.argmax(1)), abs=1e-12)
    loss = metrics.nll(logits, y).double().mean().item()
    assert loss == pytest.approx(log_loss(y, p, labels=range(7)), rel=1e-5)


def test_brier_by_brute_force(predictions) -> None:
    logits, y = predictions
    p = logits.double().softmax(1).numpy()
    expected = [
        sum((p[i, k] - float(k == y[i])) ** 2 for k in range(7)) for i in range(len(y))
    ]
    np.testing.assert_allclose(metrics.brier(logits, y).numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("bins", [1, 2, 15, 97])
def test_ece_by_brute_force(predictions, bins: int) -> None:
    logits, y = predictions
    p = logits.double().softmax(1)
    confidence, guess = p.max(1)
    total = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        inside = [i for i in range(len(y)) if low < confidence[i] <= high]
        if inside:
            accuracy = np.mean([float(guess[i] == y[i]) for i in inside])
            mean = np.mean([float(confidence[i]) for i in inside])
            total += len(inside) / len(y) * abs(accuracy - mean)
    assert metrics.ece(logits, y, bins) == pytest.approx(total, abs=1e-12)


def test_ece_of_a_sure_and_right_model_is_0() -> None:
    y = torch.arange(5)
    assert metrics.ece(1000 * torch.eye(5), y) == 0.0


def test_ece_of_one_bin_is_the_gap_between_confidence_and_accuracy() -> None:
    logits = torch.zeros(4, 2)
    assert metrics.ece(logits, torch.tensor([1, 1, 1, 1]), 1) == pytest.approx(0.5)
    assert metrics.ece(logits, torch.tensor([0, 1, 0, 1]), 1) == pytest.approx(0.0)


@pytest.mark.parametrize("kind", metrics.CORRUPTIONS)
def test_severity_0_is_the_identity_and_seeds_repeat(kind: str) -> None:
    x = torch.randn(5, 2, 17, 17)
    same = metrics.corrupt(x, kind, 0, torch.Generator())
    assert torch.equal(same, x)
    assert same is not x
    changed = [
        metrics.corrupt(x, kind, 3, torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    ]
    assert torch.equal(changed[0], changed[1])
    assert not torch.equal(changed[0], x)
    drawn = kind in ("noise", "occlusion")
    assert torch.equal(changed[0], changed[2]) != drawn


@pytest.mark.parametrize("kind", metrics.CORRUPTIONS)
def test_distance_grows_with_severity(kind: str) -> None:
    x = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    distances = [
        (metrics.corrupt(x, kind, s, torch.Generator().manual_seed(0)) - x).norm()
        for s in range(6)
    ]
    assert all(a < b for a, b in pairwise(distances))


def test_noise_has_the_documented_deviation() -> None:
    x = torch.zeros(64, 1, 28, 28)
    noisy = metrics.corrupt(x, "noise", 4, torch.Generator().manual_seed(0))
    assert noisy.std().item() == pytest.approx(2.0, rel=0.02)


def test_blur_equals_scipys_gaussian() -> None:
    x = torch.randn(3, 2, 17, 17)
    sigma = 0.7 * 2
    truncate = np.ceil(3 * sigma) / sigma
    for i in range(3):
        for j in range(2):
            expected = gaussian_filter(
                x[i, j].double().numpy(), sigma, mode="nearest", truncate=truncate
            )
            got = metrics.corrupt(x, "blur", 2, torch.Generator())[i, j]
            np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


def test_occlusion_hides_one_square_an_image() -> None:
    x = torch.rand(50, 1, 20, 20) + 1
    x[:, :, 0, 0] = -3
    hidden = metrics.corrupt(x, "occlusion", 2, torch.Generator().manual_seed(0))
    changed = (hidden == -3) & (x != -3)
    area = round(2 * 0.15 * 20) ** 2
    assert set(changed.flatten(1).sum(1).tolist()) <= {area, area - 1}
    for image in changed[:, 0]:
        rows, columns = image.any(1).sum(), image.any(0).sum()
        assert rows == columns == 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.correct(torch.zeros(3, 2), torch.zeros(4)), r"\[3, 2\]"),
        (lambda: metrics.nll(torch.zeros(0, 2), torch.zeros(0)), "N >= 1"),
        (lambda: metrics.ece(torch.zeros(1, 2), torch.zeros(1).long(), 0), "bins"),
        (
            lambda: metrics.corrupt(torch.zeros(1, 1, 4, 4), "fog", 1, None),
            "one of",
        ),
        (
            lambda: metrics.corrupt(torch.zeros(1, 1, 4, 4), "blur", 6, None),
            "severity",
        ),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
