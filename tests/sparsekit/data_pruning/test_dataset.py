"""Scores of data sets: order, means, ids, errors, files, memory, two processes."""

import csv
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from sparsekit.data_pruning import el2n, grand, score
from sparsekit.data_pruning.dataset import Scores
from sparsekit.data_pruning.scores import input_norm, loss
from sparsekit.memory import peak_rss
from tests.sparsekit.data_pruning.networks import mlp

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def trainings(n=3):
    made = []
    for seed in range(n):
        torch.manual_seed(seed)
        made.append(nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)))
    return made


def data():
    _, x, y = mlp()
    return x, y, TensorDataset(x, y)


@pytest.mark.parametrize("batch_size", [1, 4, 13, 256])
@pytest.mark.parametrize("function", [el2n, grand])
def test_one_row_a_model_in_the_order_of_the_data(function, batch_size):
    x, y, dataset = data()
    models = trainings()
    found = score(models, dataset, function, batch_size=batch_size)
    expected = torch.stack([function(model, x, y) for model in models])
    torch.testing.assert_close(found.per_run, expected, **CLOSE)
    torch.testing.assert_close(found.values, expected.mean(0), **CLOSE)
    torch.testing.assert_close(found.spread, expected.std(0), rtol=1e-4, atol=1e-6)
    assert found.ids.tolist() == list(range(13))
    assert found.seconds > 0
    single = score(models[1], dataset, partial(function), batch_size=batch_size)
    torch.testing.assert_close(single.values, expected[1], **CLOSE)
    assert single.spread.isnan().all()


def test_a_permuted_data_set_and_workers():
    x, y, dataset = data()
    order = torch.randperm(13)
    expected = score(trainings(), dataset).values
    moved = score(trainings(), TensorDataset(x[order], y[order]), batch_size=5)
    torch.testing.assert_close(moved.values, expected[order], **CLOSE)
    apart = score(trainings(), dataset, workers=2, batch_size=3)
    torch.testing.assert_close(apart.values, expected, **CLOSE)


def test_nothing_else_changes():
    _, _, dataset = data()
    models = trainings()
    models[0].train()
    random = torch.get_rng_state()
    before = [p.clone() for p in models[0].parameters()]
    score(models, dataset, grand)
    assert torch.equal(torch.get_rng_state(), random)
    assert models[0].training
    for new, old in zip(models[0].parameters(), before, strict=True):
        assert torch.equal(new, old)
        assert new.grad is None


def test_structured_inputs_and_a_collate_of_ones_own():
    x, y, dataset = data()

    class Named(nn.Module):
        def forward(self, batch):
            return batch["x"][:, :3] * batch["scale"]

    examples = [
        ({"x": a, "scale": torch.tensor([2.0])}, b) for a, b in zip(x, y, strict=True)
    ]
    expected = el2n(nn.Identity(), 2 * x[:, :3], y)
    torch.testing.assert_close(score(Named(), examples, batch_size=4).values, expected)

    def collate(items):
        return torch.stack([a for a, _ in items])[:, :3], torch.stack(
            [b for _, b in items]
        )

    found = score(nn.Identity(), dataset, collate=collate, batch_size=5).values
    torch.testing.assert_close(found, el2n(nn.Identity(), x[:, :3], y))


class Faulty(Dataset):
    """Example 5 cannot be read; label 7 of example 9 is no class."""

    def __init__(self, broken=True):
        self.x, self.y, _ = data()
        self.y[9] = 7
        self.broken = broken

    def __len__(self):
        return 13

    def __getitem__(self, i):
        if self.broken and i == 5:
            raise OSError("cannot decode")
        return self.x[i], self.y[i]


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_name_the_examples(workers):
    names = [f"img_{i}" for i in range(13)]
    with pytest.raises(RuntimeError, match="reading example 'img_5' failed: cannot"):
        score(trainings(), Faulty(), ids=names, workers=workers)
    with pytest.raises(RuntimeError, match=r"scoring 'img_9' failed: targets are"):
        score(trainings(), Faulty(broken=False), ids=names, workers=workers)


def test_errors_of_functions():
    _, _, dataset = data()

    def of_many(model, x, y):
        if len(x) > 2:
            raise MemoryError("too many")
        return x[:, 0]

    with pytest.raises(RuntimeError, match="scoring 8, 9, 10, 11 failed: too many"):
        score(nn.Identity(), torch.utils.data.Subset(dataset, range(8, 12)), of_many,
              batch_size=4, ids=range(8, 12))  # fmt: skip

    def nan(model, x, y):
        return x[:, 0].masked_fill(x[:, 0] == x[:, 0].max(), torch.nan)

    with pytest.raises(RuntimeError, match="the score is NaN or infinite"):
        score(nn.Identity(), dataset, nan)
    with pytest.raises(RuntimeError, match=r"one number an example, \[13\], got shape"):
        score(nn.Identity(), dataset, lambda m, x, y: x)
    with pytest.raises(RuntimeError, match=r"an example is a pair .*, but 0 is Tensor"):
        score(nn.Identity(), torch.zeros(3, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": []}, "needs a model"),
        ({"dataset": []}, "the data set is empty"),
        ({"dataset": iter([])}, "a length and dataset"),
        ({"ids": [1, 2]}, "ids are one for each of 13 examples"),
        ({"ids": [0, *range(12)]}, "ids are unique, but .* comes twice"),
    ],
)
def test_refused(change, message):
    arguments = {"models": trainings(), "dataset": data()[2], **change}
    with pytest.raises(ValueError, match=message):
        score(**arguments)


@pytest.mark.parametrize("n_runs", [1, 3])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_files(tmp_path, n_runs, suffix):
    pandas = pytest.importorskip("pandas")
    names = np.array([f'a "{i}", é' for i in range(13)])
    found = score(trainings(n_runs), data()[2], ids=names)
    path = tmp_path / f"scores{suffix}"
    path.write_text("old")
    found.write(path)
    read = pandas.read_csv if suffix == ".csv" else pandas.read_parquet
    table = read(path)
    runs = ["spread", "run_0", "run_1", "run_2"] if n_runs > 1 else []
    assert list(table.columns) == ["id", "score", *runs]
    assert table["id"].tolist() == names.tolist()
    assert np.array_equal(table["score"].astype(np.float32), found.values.numpy())
    if runs:
        assert np.array_equal(table["run_2"].astype(np.float32), found.per_run[2])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    found = Scores(torch.zeros(1, 2), np.array([1, 2]), 0.0)
    path = tmp_path / "scores.csv"
    path.write_text("old")
    monkeypatch.setattr(csv, "writer", lambda file: file.write("half") and None)
    with pytest.raises(AttributeError):
        found.write(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["scores.csv"]
    with pytest.raises(
        ValueError, match=r"written as .parquet or .csv, got scores.txt"
    ):
        found.write(tmp_path / "scores.txt")


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match="pip install tqdm"):
        score(trainings(), data()[2], progress=True)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    found = Scores(torch.zeros(1, 1), np.array([1]), 0.0)
    with pytest.raises(ImportError, match="pip install pyarrow, or write"):
        found.write(tmp_path / "a.parquet")
    assert list(tmp_path.iterdir()) == []


class Stream(Dataset):
    """Examples of 400 kB that are made when they are asked for."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return torch.full((100_000,), float(i)), 0


def test_memory_does_not_grow_with_the_data():
    score(nn.Identity(), Stream(64), input_norm, batch_size=16)
    before = peak_rss()
    found = score(nn.Identity(), Stream(512), input_norm, batch_size=16)
    grown = peak_rss() - before
    assert grown < 40e6  # the data are 205e6
    expected = torch.arange(512.0) * 100_000**0.5
    torch.testing.assert_close(found.values, expected, rtol=1e-3, atol=0)


PROCESS = """
    import sys
    import torch
    import torch.distributed as dist
    from torch.utils.data import TensorDataset
    from sparsekit.data_pruning import grand, score
    from tests.sparsekit.data_pruning.test_dataset import Faulty, data, trainings

    rank, n_ranks, where, out = int(sys.argv[1]), 2, sys.argv[2], sys.argv[3]
    dist.init_process_group(
        "gloo", init_method="file://" + where, rank=rank, world_size=n_ranks
    )
    dataset = data()[2]
    found = score(trainings(), dataset, grand, batch_size=3)
    one = score(trainings(), TensorDataset(*dataset[:1]), grand)  # fewer than ranks
    try:
        score(trainings(), Faulty(broken=False))
        problem = "none"
    except RuntimeError as error:
        problem = str(error)
    torch.save([found.per_run, one.per_run, found.seconds, problem], f"{out}_{rank}")
    dist.destroy_process_group()
"""


def test_two_processes_get_the_same_scores_as_one(tmp_path):
    code = textwrap.dedent(PROCESS)
    arguments = [str(tmp_path / "meet"), str(tmp_path / "scores")]
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(rank), *arguments],
                         cwd=Path(__file__).parents[3])
        for rank in range(2)
    ]  # fmt: skip
    assert [p.wait(timeout=120) for p in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"scores_{r}") for r in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[2] == second[2]
    torch.testing.assert_close(
        first[0], score(trainings(), data()[2], grand).per_run, **CLOSE
    )
    torch.testing.assert_close(first[1], first[0][:, :1], **CLOSE)
    for _, _, _, problem in (first, second):  # rank 1 has the example, both stop
        assert "scoring 9 failed: targets are classes" in problem


def test_loss_of_a_data_set_sums_to_the_batch():
    x, y, dataset = data()
    model = trainings(1)[0]
    total = score(model, dataset, loss, batch_size=5).values.sum()
    expected = nn.functional.cross_entropy(model(x), y, reduction="sum").detach()
    torch.testing.assert_close(total, expected)


def test_a_failing_example_is_looked_for_once():
    """The batch, then its rows by themselves: 1 + 4 calls, and 1 + 1 for one alone."""
    sizes = []

    def picky(model, x, y):
        sizes.append(len(x))
        if (x[:, 0] == 2).any():
            raise ValueError("a two")
        return x[:, 0]

    four = TensorDataset(torch.arange(4.0)[:, None], torch.zeros(4))
    with pytest.raises(RuntimeError, match=r"^scoring 2 failed: a two$"):
        score(nn.Identity(), four, picky)
    assert sizes == [4, 1, 1, 1, 1]
    sizes.clear()
    one = TensorDataset(torch.tensor([[2.0]]), torch.tensor([0]))
    with pytest.raises(RuntimeError, match=r"^scoring 'b' failed: a two$"):
        score(nn.Identity(), one, picky, ids=["b"])
    assert sizes == [1, 1]


@pytest.mark.parametrize(("n", "more"), [(9, ""), (10, ""), (11, " and 1 more")])
def test_up_to_ten_are_named(n, more):
    def broken(model, x, y):
        raise ValueError("no")

    data = TensorDataset(torch.zeros(n, 1), torch.zeros(n).long())
    named = ", ".join(map(str, range(min(n, 10))))
    with pytest.raises(RuntimeError, match=f"^scoring {named}{more} failed: no$"):
        score(nn.Identity(), data, broken)


def test_batches_of_any_structure_reach_the_function_and_its_rows_too():
    """Tuples stay tuples, maps maps; what is no tensor goes through as it is."""
    seen = []

    def collate(items):
        numbers = torch.stack([x for x, _ in items])
        return {"pair": (numbers, [numbers + 1, "text"])}, [torch.zeros(len(items)), 7]

    def function(model, x, y):
        seen.append((x, y))
        first, (second, text) = x["pair"]
        assert (text, y[1]) == ("text", 7)
        assert len(first) == len(second) == len(y[0])
        if (first == 3).any():
            raise ValueError("a three")
        return first + second

    data = [(torch.tensor(float(i)), 0) for i in range(3)]
    found = score(nn.Identity(), data, function, collate=collate)
    assert found.values.tolist() == [1.0, 3.0, 5.0]
    ((x, y),) = seen
    assert isinstance(x, dict)
    assert isinstance(x["pair"], tuple)
    assert isinstance(x["pair"][1], list)
    assert isinstance(y, list)
    data.append((torch.tensor(3.0), 0))
    with pytest.raises(RuntimeError, match=r"^scoring 3 failed: a three$"):
        score(nn.Identity(), data, function, collate=collate)


def test_models_go_where_they_are_told_and_stay_where_they_are():
    model = nn.Linear(7, 3)
    with pytest.raises(RuntimeError, match="failed"):  # meta has no numbers
        score(model, data()[2], device="meta")
    assert model.weight.is_meta
    model = nn.Linear(7, 3).double()
    dataset = TensorDataset(data()[0].double(), data()[1])
    found = score(model, dataset)
    assert not model.weight.is_meta
    assert found.per_run.dtype == torch.float32  # rounded at the end only
    assert torch.equal(found.per_run[0], el2n(model, *dataset.tensors).float())


def test_scores_keep_no_graph():
    model = nn.Linear(7, 3)
    found = score(model, data()[2], lambda m, x, y: m(x).sum(1))
    assert not found.per_run.requires_grad
    assert not found.values.requires_grad
