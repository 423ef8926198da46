"""What is planted in the data, by counting; the clean parts stay clean."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from apps.common import images
from apps.data_pruning import data as sources


def clean(config):
    return images.load(config.dataset, config.seed)


def test_noise_replaces_exactly_a_share_of_the_training_labels(small) -> None:
    data, before = sources.load(replace(small, noise=0.2)), clean(small)
    n = len(before.train)
    changed = data.splits.train.y != before.train.y
    assert torch.equal(changed, data.flipped)
    assert int(changed.sum()) == round(0.2 * n)
    assert set(data.splits.train.y.tolist()) == {0, 1, 2}
    for part in ("validation", "test"):
        assert torch.equal(getattr(data.splits, part).y, getattr(before, part).y)
    assert torch.equal(data.splits.train.x, before.train.x)


def test_wrong_labels_are_uniform_over_the_other_classes() -> None:
    y = torch.full((6000,), 2)
    wrong, flipped = sources.flip(y, 0.5, 7, torch.Generator().manual_seed(0))
    counts = np.bincount(wrong[flipped], minlength=7)
    assert counts[2] == 0
    expected = 3000 / 6
    chi = ((np.delete(counts, 2) - expected) ** 2 / expected).sum()
    assert chi < 15.1  # 99 % of chi-squared with 5 degrees of freedom


def test_near_copies_are_near_and_have_the_label(small) -> None:
    data, before = sources.load(replace(small, duplicates=0.3)), clean(small)
    copies = (data.copy_of >= 0).nonzero().squeeze(1)
    originals = data.copy_of[copies]
    assert len(copies) == round(0.3 * len(before.train))
    assert not set(copies.tolist()) & set(originals.tolist())
    x, y = data.splits.train.x, data.splits.train.y
    assert torch.equal(y[copies], before.train.y[originals])
    difference = x[copies] - before.train.x[originals]
    assert float(difference.std()) == pytest.approx(0.1, rel=0.1)
    untouched = data.copy_of < 0
    assert torch.equal(x[untouched], before.train.x[untouched])


@pytest.mark.parametrize("n", [1, 10, 37, 160, 161])
def test_a_smaller_training_part_keeps_the_shares_of_classes(small, n: int) -> None:
    data, before = sources.load(replace(small, train_size=n)), clean(small)
    assert len(data) == n
    ids = data.splits.train.ids
    assert len(set(ids.tolist())) == n
    place = {int(i): k for k, i in enumerate(before.train.ids)}
    rows = torch.tensor([place[int(i)] for i in ids])
    assert torch.equal(data.splits.train.x, before.train.x[rows])
    wish = before.train.y.bincount(minlength=3) * n / len(before.train)
    assert (data.splits.train.y.bincount(minlength=3) - wish).abs().max() <= 1


def test_a_seed_gives_the_same_and_another_something_else(small) -> None:
    config = replace(small, noise=0.1, duplicates=0.1)
    first, again = sources.load(config), sources.load(config)
    other = sources.load(replace(config, seed=1))
    assert torch.equal(first.flipped, again.flipped)
    assert torch.equal(first.splits.train.x, again.splits.train.x)
    assert not torch.equal(first.flipped, other.flipped)


def test_more_examples_than_there_are_is_an_error(small) -> None:
    with pytest.raises(ValueError, match="exceeds the 161 training examples"):
        sources.load(replace(small, train_size=162))
