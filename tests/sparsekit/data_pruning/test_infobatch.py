"""InfoBatch: unbiased by enumeration, epochs, own samplers, resuming."""

import itertools

import pytest
import torch
from torch.utils.data import DataLoader

from sparsekit.data_pruning.infobatch import InfoBatch
from sparsekit.data_pruning.training import Numbered


def drawn(losses, seed=0, **options):
    sampler = InfoBatch(len(losses), epochs=8, seed=seed, **options)
    sampler.record(torch.arange(len(losses)), torch.tensor(losses))
    sampler.set_epoch(1)
    return sampler


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.7])
def test_the_expected_weighted_gradient_is_the_full_one(ratio):
    """Every one of the possible draws of 6 records, and each is as likely."""
    losses = [0.1, 0.2, 0.3, 0.4, 3.0, 4.0]  # four below the mean
    gradients = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double()
    n_kept = {0.0: 4, 0.5: 2, 0.7: 1}[ratio]
    possible = [set(s) | {4, 5} for s in itertools.combinations(range(4), n_kept)]
    counts = dict.fromkeys(map(frozenset, possible), 0)
    weighted = {}
    for seed in range(600):
        sampler = drawn(losses, seed, ratio=ratio)
        kept = frozenset(sampler)
        counts[kept] += 1
        weights = sampler.weights(torch.arange(6))
        assert set(weights.nonzero().flatten().tolist()) == kept
        weighted[kept] = (weights.unsqueeze(1) * gradients).sum(0)
    assert len(weighted) == len(possible)
    mean = torch.stack(list(weighted.values())).mean(0)
    torch.testing.assert_close(mean, gradients.sum(0))
    share = torch.tensor(list(counts.values())) / 600
    assert (share - 1 / len(possible)).abs().max() < 0.08


def test_dropping_without_weights_is_biased():
    kept = [drawn([0.1, 0.2, 0.3, 0.4, 3.0, 4.0], seed) for seed in range(50)]
    assert all(len(sampler) == 4 for sampler in kept)  # the mutant: weights of one


def test_epochs():
    sampler = InfoBatch(10, epochs=8, seed=3)
    assert sorted(sampler) == list(range(10))  # nothing is known yet
    sampler.record(torch.arange(10), torch.arange(10.0))
    for epoch in range(8):
        sampler.set_epoch(epoch)
        assert len(sampler) == (8 if epoch < 7 else 10)  # 5 easy ones, 3 of them stay
        assert len(set(sampler)) == len(sampler) == len(list(sampler))
        assert set(range(5, 10)) <= set(sampler)
        assert sampler.weights(torch.arange(10)).sum() == pytest.approx(10)
        assert sampler.steps(3) == len(list(sampler)) // 3 + 1
        loader = DataLoader(range(10), batch_size=3, sampler=sampler)
        assert len(loader) == len(list(loader)) == sampler.steps(3)


def test_the_draw_depends_on_seed_and_epoch_only():
    losses = torch.arange(40.0)

    def order(seed, epoch, noise):
        torch.manual_seed(noise)
        sampler = InfoBatch(40, epochs=100, seed=seed)
        sampler.record(torch.arange(40), losses)
        torch.rand(noise)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 5, 1) == order(0, 5, 2)
    assert order(0, 5, 1) != order(0, 6, 1)
    assert order(0, 5, 1) != order(1, 5, 1)


def test_resumed_is_uninterrupted():
    one = InfoBatch(20, epochs=8)
    one.record(torch.arange(20), torch.arange(20.0))
    state = one.state_dict()
    one.record(torch.arange(20), torch.zeros(20))
    two = InfoBatch(20, epochs=8)
    two.load_state_dict(state)
    two.set_epoch(4)
    one.load_state_dict(state)
    one.set_epoch(4)
    assert list(one) == list(two)


def test_training_with_it_learns():
    torch.manual_seed(0)
    x = torch.randn(60, 2)
    dataset = [(a, int(a.sum() > 0)) for a in x]
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    sampler, seen = InfoBatch(60, epochs=16), 0
    loader = DataLoader(Numbered(dataset), batch_size=10, sampler=sampler)
    for epoch in range(16):
        sampler.set_epoch(epoch)
        for index, a, y in loader:
            losses = torch.nn.functional.cross_entropy(model(a), y, reduction="none")
            optimizer.zero_grad()
            (sampler.weights(index) * losses).mean().backward()
            optimizer.step()
            sampler.record(index, losses)
            seen += len(index)
    right = (model(x).argmax(1) == (x.sum(1) > 0)).float().mean()
    assert right > 0.95
    assert seen < 0.9 * 16 * 60


@pytest.mark.parametrize(
    "options", [{"ratio": 1.0}, {"full_after": 1.1}, {"epochs": 0}, {"n_examples": 0}]
)
def test_refused(options):
    with pytest.raises(ValueError, match="got"):
        InfoBatch(**{"n_examples": 5, "epochs": 5, **options})
    with pytest.raises(ValueError, match="diverged"):
        InfoBatch(5, 5).record(torch.tensor([0]), torch.tensor([torch.nan]))


def test_losses_are_kept_without_their_graph_and_loaded_as_a_copy():
    sampler = InfoBatch(4, 9)
    weight = torch.ones(4, requires_grad=True)
    sampler.record(torch.tensor([3, 1]), (weight * 2)[:2].double())
    assert not sampler.losses.requires_grad
    assert sampler.losses.tolist() == [3.0, 2.0, 3.0, 2.0]
    state = sampler.state_dict()
    other = InfoBatch(4, 9)
    other.load_state_dict(state)
    assert other.losses.tolist() == [3.0, 2.0, 3.0, 2.0]
    other.record(torch.arange(4), torch.zeros(4))
    assert state["losses"].tolist() == [3.0, 2.0, 3.0, 2.0]
    for wrong in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="the training diverged"):
            sampler.record(torch.arange(2), torch.tensor([0.0, wrong]))
    assert sampler.losses.tolist() == [3.0, 2.0, 3.0, 2.0]


def test_epochs_of_two_seeds_never_draw_alike():
    """Seeds are apart by more than any number of epochs."""

    def draw(seed, epoch):
        sampler = InfoBatch(40, 10**7, seed=seed)
        sampler.record(torch.arange(40), torch.arange(40.0))
        sampler.set_epoch(epoch)
        return sampler.indices.tolist()

    assert draw(0, 1_000_003) == draw(1, 0)
    assert draw(0, 1_000_002) != draw(1, 0)
    assert draw(2, 5) != draw(1, 5)


def test_steps_of_an_epoch_are_rounded_up():
    sampler = InfoBatch(10, 4)
    assert [sampler.steps(n) for n in (1, 3, 5, 10, 11)] == [10, 4, 2, 1, 1]
    sampler.record(torch.arange(10), torch.tensor([0.0] * 6 + [9.0] * 4))
    sampler.set_epoch(1)
    assert len(sampler) == 7
    assert [sampler.steps(n) for n in (7, 4)] == [1, 2]
    assert sorted(sampler) == sorted(sampler.indices.tolist())
    assert sampler.weights(sampler.indices).unique().tolist() == [1.0, 2.0]
    assert float(sampler.all_weights.sum()) == 10


@pytest.mark.parametrize("full_after", [0.0, 0.5, 0.875, 1.0])
def test_the_last_epochs_use_everything(full_after):
    sampler = InfoBatch(20, 8, full_after=full_after)
    sampler.record(torch.arange(20), torch.arange(20.0))
    lengths = []
    for epoch in range(8):
        sampler.set_epoch(epoch)
        lengths.append(len(sampler))
    full = round(8 * full_after)
    assert lengths == [15] * full + [20] * (8 - full)
