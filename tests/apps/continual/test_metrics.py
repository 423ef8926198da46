"""Metrics of accuracy matrices, against their definitions written out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from apps.continual import metrics

HAND = [[0.9, 0.2, 0.1], [0.6, 0.8, 0.3], [0.7, 0.5, 0.9]]
matrices = st.integers(2, 6).flatmap(
    lambda n: hnp.arrays(np.float64, (n, n), elements=st.floats(0, 1, width=32))
)


def test_by_hand():
    assert metrics.average_accuracy(HAND) == pytest.approx((0.7 + 0.5 + 0.9) / 3)
    assert metrics.learning_accuracy(HAND) == pytest.approx((0.9 + 0.8 + 0.9) / 3)
    assert metrics.backward_transfer(HAND) == pytest.approx((-0.2 - 0.3) / 2)
    pairs = (0.6 - 0.9 + 0.7 - 0.9 + 0.5 - 0.8) / 3
    assert metrics.backward_transfer(HAND, "continuum") == pytest.approx(pairs)
    forward = metrics.forward_transfer(HAND, [0.1, 0.1, 0.2])
    assert forward == pytest.approx((0.2 - 0.1 + 0.3 - 0.2) / 2)
    without = metrics.forward_transfer(HAND, None, "continuum")
    assert without == pytest.approx((0.2 + 0.1 + 0.3) / 3)
    assert metrics.forgetting(HAND) == pytest.approx((0.2 + 0.3) / 2)


@given(matrices)
def test_definitions_as_loops(a):
    n = len(a)
    mammoth = [max(a[i][j] for i in range(n)) - a[n - 1][j] for j in range(n - 1)]
    chaudhry = [max(a[i][j] for i in range(n - 1)) - a[n - 1][j] for j in range(n - 1)]
    avalanche = [a[j][j] - a[n - 1][j] for j in range(n - 1)]
    for name, values in (
        ("mammoth", mammoth), ("chaudhry", chaudhry), ("avalanche", avalanche),
    ):  # fmt: skip
        assert metrics.forgetting(a, name) == pytest.approx(np.mean(values), abs=1e-12)
        by_task = metrics.forgetting_by_task(a, name)
        assert by_task == pytest.approx(values, abs=1e-12)


@given(matrices)
def test_how_the_definitions_are_related(a):
    assert metrics.forgetting(a, "mammoth") >= 0
    assert metrics.forgetting(a, "mammoth") >= metrics.forgetting(a) - 1e-12
    assert metrics.forgetting(a, "avalanche") == -metrics.backward_transfer(a)
    assert metrics.forgetting(a) >= metrics.forgetting(a, "avalanche") - 1e-12
    assert metrics.forgetting(torch.from_numpy(a)) == metrics.forgetting(a.tolist())


def test_one_task():
    assert metrics.average_accuracy([[0.9]]) == 0.9
    assert metrics.learning_accuracy([[0.9]]) == 0.9
    assert np.isnan(metrics.backward_transfer([[0.9]]))
    assert np.isnan(metrics.forward_transfer([[0.9]], [0.1]))
    assert np.isnan(metrics.forgetting([[0.9]]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.average_accuracy([[0.1, 0.2]]), "square|T, T"),
        (lambda: metrics.average_accuracy(np.zeros((0, 0))), "T >= 1"),
        (lambda: metrics.forgetting([[np.nan, 0], [0, 0]]), "not finite"),
        (lambda: metrics.forgetting(HAND, "mine"), "mammoth, chaudhry"),
        (lambda: metrics.forward_transfer(HAND, None), "needs random"),
        (lambda: metrics.forward_transfer(HAND, [0.1]), r"shape \[3\]"),
        (lambda: metrics.calibration_error(torch.zeros(0), torch.zeros(0)), "none"),
    ],
)
def test_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@given(st.integers(0, 10_000), st.integers(1, 20))
def test_calibration_error_is_a_loop_over_bins(seed, bins):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(101, generator=generator)
    correct = torch.rand(101, generator=generator) < confidence
    expected = 0.0
    for b in range(bins):
        inside = (confidence.double() > b / bins) & (
            confidence.double() <= (b + 1) / bins
        )
        if inside.any():
            gap = correct[inside].double().mean() - confidence[inside].double().mean()
            expected += float(gap.abs()) * int(inside.sum()) / 101
    assert metrics.calibration_error(confidence, correct, bins) == pytest.approx(
        expected, abs=1e-9
    )
