"""Training traces against a table of 4 examples and 6 epochs, by hand."""

import math

import numpy as np
import pytest
import torch

from sparsekit.data_pruning.dynamics import (
    TrainingTrace,
    aum,
    dual,
    dynamic_uncertainty,
    forgetting,
)
from sparsekit.data_pruning.selection import top

# p_y of each example (row) in each epoch; two classes, so the other has 1 - p_y.
TABLE = [
    [0.9, 0.9, 0.9, 0.9, 0.9, 0.9],  # learned at once
    [0.4, 0.8, 0.3, 0.7, 0.2, 0.6],  # forgotten twice
    [0.1, 0.2, 0.1, 0.2, 0.1, 0.2],  # never learned
    [0.5, 0.5, 0.6, 0.6, 0.7, 0.4],  # a tie is not right; forgotten once
]


def trace(table=TABLE, order=None):
    made = TrainingTrace(len(table))
    index = torch.arange(len(table)) if order is None else order
    for epoch in range(len(table[0])):
        p = torch.tensor([row[epoch] for row in table], dtype=torch.float64)
        logits = torch.stack([1 - p, p], 1).log()[index]
        for part in index.split(3):  # two batches
            where = (index[None] == part[:, None]).nonzero()[:, 1]
            targets = torch.ones(len(part), dtype=torch.int64)
            made.record(epoch, part, logits[where], targets)
    return made


def test_the_table():
    found = trace()
    np.testing.assert_allclose(found.own, np.array(TABLE).T, rtol=1e-6)
    np.testing.assert_allclose(found.other, 1 - np.array(TABLE).T, rtol=1e-6)
    assert forgetting(found).tolist() == [0, 2, math.inf, 1]
    margins = [-sum(2 * p - 1 for p in row) for row in TABLE]
    torch.testing.assert_close(aum(found), torch.tensor(margins), rtol=1e-5, atol=1e-6)
    assert top(forgetting(found), 2).tolist() == [1, 2]  # never learned sorts first


@pytest.mark.parametrize("window", [2, 3, 6])
def test_windows(window):
    starts = range(6 - window + 1)
    parts = [[row[i : i + window] for i in starts] for row in TABLE]

    def std(values):
        mean = sum(values) / window
        return math.sqrt(sum((v - mean) ** 2 for v in values) / (window - 1))

    spread = [sum(map(std, row)) / len(starts) for row in parts]
    both = [
        sum(std(v) * (1 - sum(v) / window) for v in row) / len(starts) for row in parts
    ]
    found = dynamic_uncertainty(trace(), window)
    torch.testing.assert_close(found, torch.tensor(spread), rtol=1e-5, atol=1e-6)
    found = dual(trace(), window)
    torch.testing.assert_close(found, torch.tensor(both), rtol=1e-5, atol=1e-6)


def test_examples_are_stored_by_number_not_by_place_in_the_loader():
    shuffled = trace(order=torch.tensor([2, 0, 3, 1]))
    assert np.array_equal(shuffled.own, trace().own)
    by_place = TrainingTrace(4)  # the mutant: numbers of the loader
    for epoch, p in enumerate(trace().own[:, [2, 0, 3, 1]]):
        logits = torch.tensor(np.stack([1 - p, p], 1)).log()
        by_place.record(epoch, torch.arange(4), logits, torch.ones(4).long())
    assert not torch.equal(forgetting(by_place), forgetting(trace()))


def test_the_largest_of_several_other_classes():
    made = TrainingTrace(1)
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
    made.record(0, torch.tensor([0]), logits, torch.tensor([2]))
    assert made.own[0, 0] == pytest.approx(0.3)
    assert made.other[0, 0] == pytest.approx(0.5)
    assert not made.correct[0, 0]


def test_a_second_record_replaces_the_first():
    made = trace()
    logits = torch.tensor([[0.0, 100.0]])
    made.record(2, torch.tensor([1]), logits, torch.tensor([1]))
    assert made.own[2, 1] == 1
    assert len(made.own) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6, [0], [[0.0, 0.0]], [0, 0]), "record needs index"),
        ((6, [4], [[0.0, 0.0]], [0]), "index is in 0 ... 3, got 4"),
        ((6, [-1], [[0.0, 0.0]], [0]), "index is in 0 ... 3, got -1"),
        ((7, [0], [[0.0, 0.0]], [0]), "next is 6, got 7"),
        ((6, [2], [[math.nan, 0.0]], [0]), "logits of example 2 are NaN"),
    ],
)
def test_refused(arguments, message):
    epoch, *rest = arguments
    with pytest.raises(ValueError, match=message):
        trace().record(epoch, *map(torch.tensor, rest))


def test_incomplete_traces():
    with pytest.raises(ValueError, match="the trace is empty"):
        aum(TrainingTrace(3))
    with pytest.raises(ValueError, match="at least 1"):
        TrainingTrace(0)
    made = trace()
    made.record(6, torch.tensor([0, 1, 3]), torch.zeros(3, 2), torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match="example 2 was not recorded in epoch 6"):
        forgetting(made)
    with pytest.raises(ValueError, match=r"window is in 2 \.\.\. 6"):
        dual(trace(), 7)
