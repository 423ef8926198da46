"""Edges and defaults that mutation testing found unwatched; see tests/mutation."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from sparsekit.data_pruning import scores as of_batch
from sparsekit.data_pruning import training
from sparsekit.data_pruning.dataset import Scores, score
from sparsekit.data_pruning.duplicates import semantic_duplicates
from sparsekit.data_pruning.embeddings import nearest_centres
from sparsekit.data_pruning.gme import maximum_entropy
from sparsekit.data_pruning.infobatch import InfoBatch
from sparsekit.data_pruning.pruner import DataPruner
from sparsekit.data_pruning.removal import DataRemoval
from sparsekit.data_pruning.scores import el2n
from sparsekit.data_pruning.selection import strata

DEFAULTS = {
    score: {"batch_size": 256, "workers": 0, "progress": False},
    semantic_duplicates: {"epsilon": 0.05, "n_clusters": 1, "seed": 0},
    nearest_centres: {"seed": 0},
    maximum_entropy: {"objective": "utopia", "binarised": False},
    training.train: {"batch_size": 128, "lr": 1e-3, "device": "cpu"},
    InfoBatch: {"ratio": 0.5, "full_after": 0.875, "seed": 0},
    DataRemoval: {"share": 0.3, "stage": 5, "stages": 4, "seed": 0},
    DataPruner: {
        "epochs": 10, "seeds": 5, "batch_size": 128, "lr": 1e-3, "random_state": 0,
    },
    DataPruner.suspicion: {"by": "out_of_fold", "folds": 5},
    DataPruner.suspects: {"by": "out_of_fold", "folds": 5},
}  # fmt: skip


@pytest.mark.parametrize("function", DEFAULTS, ids=lambda f: f.__qualname__)
def test_defaults_are_part_of_the_interface(function) -> None:
    parameters = inspect.signature(function).parameters
    for name, value in DEFAULTS[function].items():
        assert parameters[name].default == value, name


# ---- scores of a data set ------------------------------------------------------------


class Pairs(torch.utils.data.Dataset):
    def __init__(self, examples: list):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int):
        return self.examples[i]


class Unreachable:
    def __len__(self) -> int:
        return 3


def test_an_example_is_a_pair_in_a_map() -> None:
    x, model = torch.ones(2), nn.Linear(2, 3)
    with pytest.raises(RuntimeError, match="an example is a pair"):
        score(model, Pairs([(x, 0, 1), (x, 0, 1)]))
    with pytest.raises(ValueError, match="a length and dataset"):
        score(model, Unreachable())


def test_ten_guilty_examples_are_named_and_the_others_counted() -> None:
    def picky(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if (y == 1).any():
            raise ValueError("a one")
        return x.sum(1)

    data = Pairs([(torch.ones(2), int(i > 0)) for i in range(13)])
    with pytest.raises(RuntimeError, match=r"9, 10 and 2 more failed: a one"):
        score(nn.Linear(2, 3), data, picky)


def test_columns_of_one_model_and_of_two() -> None:
    ids = np.arange(3)
    one = Scores(torch.rand(1, 3), ids, 1.0)
    two = Scores(torch.rand(2, 3), ids, 1.0)
    assert list(one.columns()) == ["id", "score"]
    assert list(two.columns()) == ["id", "score", "spread", "run_0", "run_1"]


def test_precision_of_scores_and_classes_out_of_range() -> None:
    x = torch.tensor([[1.0, 1 + 1e-12]], dtype=torch.float64)
    assert el2n(nn.Identity(), x, torch.tensor([0])).dtype == torch.float64
    for wrong in ([-1, 0], [0, 2]):
        with pytest.raises(ValueError, match=r"targets are classes 0 \.\.\. 1, got"):
            of_batch.el2n(nn.Identity(), torch.ones(2, 2), torch.tensor(wrong))


# ---- duplicates, entropy -------------------------------------------------------------


def test_one_row_without_direction_is_named() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match="row 1 is zero"):
        semantic_duplicates(x)


def test_the_copy_farthest_from_the_centre_stays() -> None:
    angle = torch.tensor([0.0, 0.1, 1.5])  # the mean points nearer to 0.1 than to 0
    x = torch.stack([angle.cos(), angle.sin()], 1)
    found = semantic_duplicates(x, epsilon=0.01)
    assert found.kept.tolist() == [0, 2]
    assert found.kept_for.tolist() == [0]


def test_one_candidate_is_enough() -> None:
    items = [[["a"]], [["b"]], [["a", "b"]]]
    generator = torch.Generator().manual_seed(0)
    sample = maximum_entropy(items, 2, candidates=1, generator=generator)
    assert len(sample.order) == 2
    with pytest.raises(ValueError, match="candidates is at least 1"):
        maximum_entropy(items, 2, candidates=0, generator=generator)


# ---- InfoBatch, removal --------------------------------------------------------------


def test_infobatch_at_its_limits() -> None:
    assert len(InfoBatch(1, 1)) == 1
    assert InfoBatch(4, 8, full_after=1.0).full_from == 8
    assert InfoBatch(4, 8, full_after=0.0).full_from == 0
    for wrong in ({"full_after": 1.1}, {"full_after": -0.1}, {"ratio": 1.0}):
        with pytest.raises(ValueError, match="ratio is in"):
            InfoBatch(4, 8, **wrong)


def test_saved_states_do_not_follow_the_training() -> None:
    infobatch = InfoBatch(3, 4)
    saved = infobatch.state_dict()["losses"].clone(), infobatch.state_dict()
    infobatch.record(torch.arange(3), torch.tensor([5.0, 6.0, 7.0]))
    assert torch.equal(saved[1]["losses"], saved[0])

    removal = DataRemoval(3, stage=2, stages=1)
    removal.set_epoch(0)
    logits, y = torch.eye(3), torch.arange(3)
    removal.record(torch.arange(3), logits, y)
    state = removal.state_dict()
    before = state["own"].clone(), state["other"].clone()
    other = DataRemoval(3, stage=2, stages=1)
    other.load_state_dict(state)
    for one in (removal, other):
        one.record(torch.arange(3), -logits, y)
    assert torch.equal(state["own"], before[0])
    assert torch.equal(state["other"], before[1])


@pytest.mark.parametrize("name", ["n_examples", "stage", "stages"])
def test_removal_needs_a_number_of_steps(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is a count of at least 1"):
        DataRemoval(**{"n_examples": 4, "stage": 1, "stages": 1, name: 0})


def test_an_example_that_was_never_seen_stays() -> None:
    removal = DataRemoval(4, share=0.5, stage=1, stages=1)
    removal.set_epoch(0)
    removal.record(torch.arange(3), 9 * torch.eye(3), torch.arange(3))  # all are easy
    removal.set_epoch(1)
    assert 3 in removal.indices.tolist()
    assert len(removal) == 2


# ---- the plain training --------------------------------------------------------------


def test_training_is_adamw_on_batches_of_nearly_equal_size() -> None:
    """Against a loop by hand: 10 examples in batches of about 4 are 4, 3 and 3."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(10, 5, generator=generator), torch.arange(10) % 3
    data = [(x[i], int(y[i])) for i in range(10)]
    model, _ = training.train(
        lambda: nn.Linear(5, 3), data, epochs=2, seed=3, batch_size=4, lr=0.05
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        ours = nn.Linear(5, 3)
        optimizer = torch.optim.AdamW(ours.parameters(), lr=0.05)
        for _ in range(2):
            order = torch.randperm(10)
            # A DataLoader draws a seed from the global generator when it starts.
            torch.empty((), dtype=torch.int64).random_()
            for part in (order[:4], order[4:7], order[7:]):
                optimizer.zero_grad()
                nn.functional.cross_entropy(ours(x[part]), y[part]).backward()
                optimizer.step()
    torch.testing.assert_close(model.weight, ours.weight, rtol=1e-6, atol=1e-7)


# ---- the pruner, strata --------------------------------------------------------------


def test_the_pruner_refuses_what_it_cannot_read() -> None:
    pruner = DataPruner(0.5, epochs=1, seeds=1)
    with pytest.raises(Exception, match="fit"):
        pruner.subset()
    x = np.ones((4, 2), np.float32)
    x[3, 1] = np.nan  # one entry of eight
    with pytest.raises(ValueError, match="NaN or infinity"):
        pruner.fit(x, [0, 1, 0, 1])
    data = Pairs([(torch.ones(2), label) for label in (-1, 0, 1)])
    with pytest.raises(ValueError, match=r"classes 0 \.\.\. K - 1"):
        pruner.fit(data)


def test_strata_of_equal_scores_are_one_stratum() -> None:
    """A draw as of one stratum, also where no score is finite."""
    for values in (torch.full((6,), 2.0), torch.full((6,), torch.inf)):
        draws = [
            strata(values, 3, n_strata=n, generator=torch.Generator().manual_seed(0))
            for n in (1, 4)
        ]
        assert torch.equal(*draws)
        assert len(draws[0]) == 3
