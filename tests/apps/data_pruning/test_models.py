"""Models: parameters by hand, gradients per sample exact, the last layer's input."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from apps.common import classifiers
from sparsekit.data_pruning import grand


def count(model) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameters_by_hand() -> None:
    mlp = classifiers.build("mlp", width=7, depth=2, classes=3, channels=2, size=5)
    assert count(mlp) == (50 * 7 + 7) + (7 * 7 + 7) + (7 * 3 + 3)
    cnn = classifiers.build("cnn", width=5, depth=3, classes=3, channels=2, size=13)
    norms = 2 * (5 + 10 + 10)
    assert count(cnn) == 9 * (2 * 5 + 5 * 10 + 10 * 10) + norms + (90 * 3 + 3)
    # 3x3 convolutions of four stages, 1x1 shortcuts of three, norms, classifier
    w = [3, 6, 12, 24]
    convolutions = 9 * (2 * w[0] + 4 * w[0] ** 2)
    convolutions += sum(9 * (a * b + 3 * b * b) + a * b for a, b in pairwise(w))
    norms = 2 * (w[0] * 5 + sum(5 * b for b in w[1:]))
    resnet = classifiers.build("resnet18", 3, 0, classes=7, channels=2, size=16)
    assert count(resnet) == convolutions + norms + 24 * 7 + 7


@pytest.mark.parametrize("name", classifiers.NAMES)
def test_gradients_per_sample_are_exact(name: str) -> None:
    model = classifiers.build(
        name, width=3, depth=2, classes=5, channels=3, size=16, seed=1
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 16, 16, generator=generator)
    y = torch.tensor([0, 4, 2, 2])
    model(x)  # running statistics that are not those of a new layer
    found = grand(model, x, y)
    model.eval()
    for i in range(4):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        squares = sum(float(p.grad.square().sum()) for p in model.parameters())
        assert float(found[i]) == pytest.approx(np.sqrt(squares), rel=1e-4)


@pytest.mark.parametrize("name", classifiers.NAMES)
def test_features_make_the_logits(name: str) -> None:
    model = classifiers.build(
        name, width=4, depth=1, classes=5, channels=1, size=8
    ).eval()
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    last = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
    seen, logits = classifiers.features(model, x)
    torch.testing.assert_close(last(seen), model(x))
    torch.testing.assert_close(logits, model(x))


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (classifiers.build("cnn", 3, 1, 2, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vgg", 3, 1, 2), "choose one of mlp, cnn, resnet18"),
        (("cnn", 3, 0, 2), "depth >= 1"),
        (("cnn", 3, 1, 2, 1, 3), "at least 4x4"),
        (("mlp", 3, -1, 2), "depth must be at least 0"),
    ],
)
def test_unusable_shapes_are_named(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifiers.build(*arguments)
