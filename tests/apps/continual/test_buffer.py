"""What a buffer keeps, in how many bytes, and that it resumes."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from apps.continual.buffer import (
    Buffer,
    bytes_of_example,
    herd,
    size_within,
)


def offer(buffer: Buffer, labels, batch: int = 7, logits: bool = False) -> None:
    """Example i is the number i."""
    y = torch.as_tensor(labels)
    x = torch.arange(len(y))
    for start in range(0, len(y), batch):
        part = slice(start, start + batch)
        z = x[part, None].float() if logits else None
        buffer.add(x[part], y[part], z)


def test_a_reservoir_keeps_all_with_equal_probability():
    """Chi-square over 1,000 reservoirs: each of 50 examples is kept 10 / 50 times."""
    kept = Counter()
    for seed in range(1000):
        buffer = Buffer(10, seed=seed)
        offer(buffer, [0] * 50)
        assert len(set(buffer.everything().raw.tolist())) == 10
        kept.update(buffer.everything().raw.tolist())
    counts = [kept[i] for i in range(50)]
    assert sum(counts) == 10_000
    # Counts of a sample without replacement vary less than a multinomial's.
    variance_ratio = 1 - 10 / 50
    statistic = sum((c - 200) ** 2 / 200 for c in counts) / variance_ratio
    assert 0.001 < stats.chi2.sf(statistic, 49) < 0.999


def test_a_reservoir_is_algorithm_r():
    """The same draws as Vitter's algorithm written as a loop over examples."""
    buffer = Buffer(5, seed=3)
    offer(buffer, [0] * 41, batch=6)
    generator = torch.Generator().manual_seed(3)
    slots: list[int] = []
    for start in range(0, 41, 6):
        n_batch = min(6, 41 - start)
        uniform = torch.rand(n_batch, dtype=torch.float64, generator=generator)
        for n, u in zip(range(start, start + n_batch), uniform.tolist(), strict=True):
            if n < 5:
                slots.append(n)
            elif (j := int(u * (n + 1))) < 5:
                slots[j] = n
    assert buffer.everything().raw.tolist() == slots
    assert buffer.seen == 41


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=120),
    st.integers(5, 20),
    st.integers(1, 9),
)
def test_a_balanced_buffer_is_as_balanced_as_can_be(labels, size, batch):
    buffer = Buffer(size, "balanced", seed=1)
    offer(buffer, labels, batch)
    held = buffer.everything()
    assert len(held) == min(size, len(labels))
    assert len(set(held.raw.tolist())) == len(held)  # no example twice
    assert held.y.tolist() == [labels[i] for i in held.raw.tolist()]
    counts, offered = Counter(held.y.tolist()), Counter(labels)
    most = max(counts.values())
    for label in offered:  # all there are, or at most one less than the largest
        assert counts[label] >= min(offered[label], most - 1)


def test_a_balanced_buffer_keeps_a_class_uniformly():
    kept = Counter()
    for seed in range(600):
        buffer = Buffer(10, "balanced", seed=seed)
        offer(buffer, [i % 2 for i in range(40)])
        kept.update(buffer.everything().raw.tolist())
    counts = [kept[i] for i in range(40)]
    statistic = sum((c - 150) ** 2 / 150 for c in counts) / (1 - 10 / 40)
    assert stats.chi2.sf(statistic, 38) > 0.001


@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_labels_and_logits_stay_with_their_example(policy):
    buffer = Buffer(20, policy, seed=5)
    labels = [i % 3 for i in range(200)]
    offer(buffer, labels, batch=13, logits=True)
    for drawn in (buffer.everything(), buffer.draw(8)):
        assert drawn.y.tolist() == [labels[i] for i in drawn.raw.tolist()]
        assert drawn.logits[:, 0].tolist() == drawn.raw.tolist()
    assert len(set(buffer.draw(8).raw.tolist())) == 8
    assert sorted(buffer.draw(99).raw.tolist()) == sorted(
        buffer.everything().raw.tolist()
    )


@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_resumes_bit_for_bit(policy):
    whole, first = Buffer(9, policy, seed=2), Buffer(9, policy, seed=2)
    labels = [i % 4 for i in range(60)]
    offer(whole, labels)
    offer(first, labels[:35])
    second = Buffer(9, policy, seed=77)
    second.load_state_dict(first.state_dict())
    x, y = torch.arange(60), torch.tensor(labels)
    for start in range(35, 60, 7):
        second.add(x[start : start + 7], y[start : start + 7])
    for one, other in zip(
        whole.everything().__dict__.values(),
        second.everything().__dict__.values(),
        strict=True,
    ):
        assert one is other is None or torch.equal(one, other)
    assert torch.equal(whole.draw(4).raw, second.draw(4).raw)


def test_bytes():
    buffer = Buffer(7)
    images = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    buffer.add(images, torch.zeros(5, dtype=torch.int64), torch.zeros(5, 10))
    assert buffer.raw.dtype == torch.uint8
    assert buffer.nbytes == 7 * bytes_of_example((3, 8, 8), 1, 10) == 7 * (192 + 8 + 40)
    assert size_within(buffer.nbytes, (3, 8, 8), 1, 10) == 7
    assert size_within(buffer.nbytes - 1, (3, 8, 8), 1, 10) == 6
    with pytest.raises(ValueError, match="one example needs 240"):
        size_within(239, (3, 8, 8), 1, 10)


def test_an_empty_buffer():
    buffer = Buffer(0)
    offer(buffer, [0, 1])
    assert len(buffer) == buffer.nbytes == 0
    with pytest.raises(ValueError, match="the buffer is empty"):
        buffer.draw(1)


def test_herding_takes_the_best_next_row():
    """Against a loop over all rows, written as the paper has it."""
    features = torch.randn(23, 4, generator=torch.Generator().manual_seed(0))
    mean, taken = features.mean(0), []
    for _ in range(6):
        distances = [
            torch.inf
            if i in taken
            else float((mean - features[[*taken, i]].mean(0)).norm())
            for i in range(23)
        ]
        taken.append(distances.index(min(distances)))
    assert herd(features, 6).tolist() == taken
    assert sorted(herd(features, 99).tolist()) == list(range(23))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Buffer(-1), "0 examples or more"),
        (lambda: Buffer(3, "fifo"), "reservoir.*balanced.*herding"),
        (lambda: Buffer(3).load_state_dict(Buffer(4).state_dict()), "buffer of 4"),
        (lambda: Buffer(2).replace(torch.zeros(3), torch.zeros(3)), "holds 2"),
    ],
)
def test_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_logits_for_all_or_none():
    buffer = Buffer(4)
    buffer.add(torch.zeros(2), torch.zeros(2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="for all examples, or for none"):
        buffer.add(torch.zeros(2), torch.zeros(2))
