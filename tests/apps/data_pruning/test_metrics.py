"""Metrics against scikit-learn and a loop over bins."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, recall_score

from apps.data_pruning import metrics


@pytest.fixture(scope="module")
def predictions() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(211, 5, generator=generator)
    y = torch.randint(0, 4, (211,), generator=generator)  # class 4 does not occur
    return logits, y


def test_measures_are_scikit_learns(predictions) -> None:
    logits, y = predictions
    found = metrics.measure(logits, y)
    p, predicted = logits.double().softmax(1).numpy(), logits.argmax(1).numpy()
    assert found["accuracy"] == pytest.approx(accuracy_score(y, predicted))
    recalls = recall_score(y, predicted, average=None, labels=range(4))
    assert found["worst_class"] == pytest.approx(recalls.min())
    np.testing.assert_allclose(metrics.class_accuracies(logits, y), recalls)
    assert found["nll"] == pytest.approx(log_loss(y, p, labels=range(5)))


def test_calibration_error_by_a_loop_over_bins(predictions) -> None:
    logits, y = predictions
    p = logits.double().softmax(1).numpy()
    confidence, right = p.max(1), p.argmax(1) == y.numpy()
    error = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            error += inside.mean() * gap
    assert metrics.measure(logits, y)["ece"] == pytest.approx(error, abs=1e-12)


def test_a_sure_and_right_model_is_perfect() -> None:
    y = torch.tensor([0, 2, 1])
    found = metrics.measure(1e4 * torch.eye(3)[y], y)
    assert found == {"accuracy": 1.0, "worst_class": 1.0, "ece": 0.0, "nll": 0.0}
