"""Data removal: against dicts, exact counts, resuming, the random control."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from sparsekit.data_pruning import dynamics
from sparsekit.data_pruning.removal import DataRemoval, _fill
from sparsekit.data_pruning.training import Numbered
from tests.reference import data_selection

SCORES = {"misclassified": dynamics.misclassified, "forgetting": dynamics.forgetting}
N, STAGE, STAGES = 23, 3, 2


def logits_of(epoch: int, index: torch.Tensor, seed: int) -> torch.Tensor:
    """Of an example in an epoch, whoever asks; many are the same."""
    generator = torch.Generator().manual_seed(1000 * seed + epoch)
    return torch.randn(N, 3, generator=generator).mul(1.5).round()[index]


TARGETS = torch.arange(N) % 3


def run(removal: DataRemoval, epochs: range, seed: int, batch: int = 5) -> list[set]:
    """Trains; the last incomplete batch of an epoch is left out."""
    present = []
    for epoch in epochs:
        removal.set_epoch(epoch)
        present.append(set(removal.indices.tolist()))
        order = torch.tensor(list(removal))
        for index in order[: len(order) - len(order) % batch].split(batch):
            removal.record(index, logits_of(epoch, index, seed), TARGETS[index])
    return present


@given(st.integers(0, 10**6), st.sampled_from(sorted(SCORES)), st.sampled_from([1, 5]))
@settings(max_examples=25, deadline=None)
def test_it_removes_what_dicts_remove(seed: int, by: str, batch: int) -> None:
    removes_what_dicts_remove(DataRemoval, seed, by, batch)


def removes_what_dicts_remove(
    cls: type[DataRemoval], seed: int, by: str, batch: int
) -> None:
    removal = cls(N, share=0.4, stage=STAGE, stages=STAGES, score=SCORES[by], seed=seed)
    shown: list[dict] = []
    record = removal.record

    def watched(index, logits, targets) -> None:
        p = logits.softmax(1)
        for i, example in enumerate(index.tolist()):
            own = float(p[i, targets[i]])
            other = max(float(p[i, k]) for k in range(3) if k != targets[i])
            shown[-1][example] = (own > other, np.float32(own) - np.float32(other))
        record(index, logits, targets)

    removal.record = watched  # type: ignore[method-assign]
    present = set(range(N))
    for epoch in range(STAGE * (STAGES + 1)):
        if epoch % STAGE == 0 and epoch:
            n_leaving = len(present) - removal.n_kept(epoch)
            never = present - set().union(*shown)  # by bad luck; such ones stay
            assert len(present - never) >= n_leaving
            present -= data_selection.removal(shown, n_leaving, by)
            shown = []
        shown.append({})
        (found,) = run(removal, range(epoch, epoch + 1), seed, batch)
        assert found == present, "another example left"


def test_counts_are_those_of_the_schedule() -> None:
    counts_are_those_of_the_schedule(DataRemoval)


def counts_are_those_of_the_schedule(cls: type[DataRemoval]) -> None:
    removal = cls(10_000)  # SparCL's: 750 of 10,000 at epochs 5, 10, 15, 20
    counts = [removal.n_kept(epoch) for epoch in range(50)]
    expected = {10_000: 5, 9250: 5, 8500: 5, 7750: 5, 7000: 30}
    assert Counter(counts) == expected, "another number left"
    assert sum(counts) / 500_000 == pytest.approx(0.775)
    for share in (0.0, 0.1, 0.37, 0.99):
        removal = cls(N, share=share, stage=STAGE, stages=STAGES)
        found = run(removal, range(12), seed=1, batch=1)
        assert [len(f) for f in found] == [removal.n_kept(e) for e in range(12)]
        n_left = max(1, N - round(share * N))
        assert len(found[-1]) == n_left, "another number left"


@pytest.mark.parametrize("score", [dynamics.misclassified, None])
@pytest.mark.parametrize("cut", [1, 3, 5, 7])
def test_it_resumes_within_a_stage(score, cut: int) -> None:
    resumes_within_a_stage(DataRemoval, score, cut)
    with pytest.raises(ValueError, match=r"of \(23,\) examples, not of 9"):
        DataRemoval(9).load_state_dict(DataRemoval(N).state_dict())


def resumes_within_a_stage(cls: type[DataRemoval], score, cut: int) -> None:
    def make() -> DataRemoval:
        return cls(N, stage=STAGE, stages=STAGES, score=score, seed=4)

    whole, first, second = make(), make(), make()
    expected = run(whole, range(10), seed=2)
    run(first, range(cut), seed=2)
    second.load_state_dict(first.state_dict())
    resumed = run(second, range(cut, 10), seed=2)
    assert resumed == expected[cut:], "resumed, it differs"
    assert list(second) == list(whole), "resumed, it differs"


def test_random_removal_is_uniform() -> None:
    gone: Counter = Counter()
    for seed in range(400):
        removal = DataRemoval(10, share=0.3, stage=1, stages=1, score=None, seed=seed)
        removal.set_epoch(1)
        gone.update(set(range(10)) - set(removal.indices.tolist()))
    assert sum(gone.values()) == 1200
    assert max(abs(count - 120) for count in gone.values()) < 5 * math.sqrt(84)


def test_easy_ones_leave_and_mistakes_stay() -> None:
    removal = DataRemoval(40, share=0.5, stage=2, stages=1)
    loader = DataLoader(Numbered([(0, 0)] * 40), 8, sampler=removal)
    for epoch in range(3):
        removal.set_epoch(epoch)
        for index, _, y in loader:
            margin = 1.0 - index / 10  # wrong from 11 on
            removal.record(index, torch.stack([margin, 0 * margin], 1), y)
    assert removal.indices.tolist() == list(range(20, 40))


def test_a_tie_goes_to_the_first_without_a_rule() -> None:
    removal = DataRemoval(6, share=0.5, stage=1, stages=1, tie=None)
    y = torch.zeros(6, dtype=torch.int64)
    removal.record(torch.arange(6), torch.eye(2)[y] * torch.arange(1, 7)[:, None], y)
    removal.set_epoch(1)
    assert removal.indices.tolist() == [3, 4, 5]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"n_examples .* got 0"):
        DataRemoval(0)
    with pytest.raises(ValueError, match=r"some examples must stay"):
        DataRemoval(9, share=1.0)
    with pytest.raises(ValueError, match=r"share .* got 1\.5"):
        DataRemoval(9, share=1.5)
    removal = DataRemoval(9, stage=1)
    with pytest.raises(ValueError, match="next is 1, got 2"):
        removal.set_epoch(2)
    with pytest.raises(ValueError, match=r"nothing was recorded .* call record"):
        removal.set_epoch(1)


def test_a_stage_knows_nothing_of_the_one_before() -> None:
    removal = DataRemoval(8, share=0.5, stage=1, stages=2)
    y = torch.zeros(8, dtype=torch.int64)
    removal.record(torch.arange(8), torch.eye(2)[y] * 5, y)
    removal.set_epoch(1)
    with pytest.raises(ValueError, match="nothing was recorded in the stage that ends"):
        removal.set_epoch(2)


def test_after_the_last_stage_nothing_is_recorded_or_removed() -> None:
    removal = DataRemoval(8, share=0.5, stage=1, stages=1)
    y = torch.zeros(8, dtype=torch.int64)
    removal.record(torch.arange(8), torch.eye(2)[y] * 5, y)
    removal.set_epoch(0)  # again: nothing happens
    removal.set_epoch(1)
    left = removal.indices.tolist()
    assert len(left) == len(removal) == 4
    removal.record(torch.arange(8), torch.eye(2)[y] * 5, y)
    assert removal.state_dict()["own"].shape == (0, 8)
    for epoch in (2, 3):
        removal.set_epoch(epoch)
        assert removal.indices.tolist() == left


def test_a_stage_of_which_nobody_leaves_needs_no_records() -> None:
    removal = DataRemoval(3, share=0.0, stage=1, stages=2)
    removal.set_epoch(1)
    assert removal.indices.tolist() == [0, 1, 2]


def test_missing_epochs_are_filled_from_the_nearest_before_then_after() -> None:
    nan = np.nan
    values = np.array(
        [[nan, 1.0, nan, nan], [2.0, nan, nan, nan], [nan, nan, 3.0, nan]]
    )
    _fill(values, 9.0)
    expected = [[2, 1, 3, 9], [2, 1, 3, 9], [2, 1, 3, 9]]
    assert values.tolist() == expected
    one = np.array([[nan, 4.0]])
    _fill(one, 9.0)
    assert one.tolist() == [[9, 4]]


def test_a_state_is_of_tensors_and_of_its_own() -> None:
    removal = DataRemoval(10, share=0.3, stage=2, stages=2)
    y = torch.zeros(10, dtype=torch.int64)
    removal.record(torch.arange(10), torch.eye(2)[y], y)
    state = removal.state_dict()
    assert state["kept"].dtype == torch.uint8
    assert len(state["kept"]) == 2  # bits
    assert state["own"].shape == state["other"].shape == (1, 10)
    with pytest.raises(ValueError, match=r"of \(10,\) examples, not of 10"):
        removal.load_state_dict({**state, "other": state["other"][:, :9]})
