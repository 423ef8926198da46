"""Hugging Face's Trainer with the callback trains as with a sparsifier made by hand."""

import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from sparsekit import Sparsifier
from sparsekit.methods.static import Static
from tests.sparsekit.integrations.methods import METHODS

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsekit.integrations.huggingface import FILE, SparseTraining  # noqa: E402

EXAMPLES, BATCH = 48, 8


class Model(nn.Module):
    """A small classifier that returns its loss, as Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def examples() -> list[dict[str, Tensor]]:
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(EXAMPLES, 12, generator=draws)
    y = torch.randint(3, (EXAMPLES,), generator=draws)
    return [{"x": x[i], "labels": y[i]} for i in range(EXAMPLES)]


def trainer(folder: Path, *callbacks: SparseTraining, **options: object):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True,
        per_device_train_batch_size=BATCH, num_train_epochs=4, save_steps=12,
        logging_strategy="no", learning_rate=0.003, **options,
    )  # fmt: skip
    return transformers.Trainer(
        Model(), arguments, train_dataset=examples(), callbacks=list(callbacks)
    )


def by_hand(method: object, folder: Path) -> tuple[nn.Module, Sparsifier]:
    """The same Trainer, whose optimizer got a sparsifier before it was handed over."""
    plain = trainer(folder)
    plain.create_optimizer_and_scheduler(num_training_steps=4 * EXAMPLES // BATCH)
    sparsifier = Sparsifier(plain.model, plain.optimizer, method).attach()
    plain.train()
    return plain.model, sparsifier


def require_same(model: nn.Module, callback: SparseTraining, expected: tuple) -> None:
    other, sparsifier = expected
    assert callback.sparsifier.step == sparsifier.step == 4 * EXAMPLES // BATCH
    for name, mask in sparsifier.alive.items():
        assert torch.equal(callback.sparsifier.alive[name], mask), name
        assert not model.get_parameter(name)[~mask].any()
    for name, tensor in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_as_by_hand_and_resumed_without_a_break(method: object, tmp_path: Path) -> None:
    expected = by_hand(method, tmp_path / "hand")
    callback = SparseTraining(method)
    whole = trainer(tmp_path / "whole", callback)
    whole.train()
    require_same(whole.model, callback, expected)

    half = tmp_path / "whole/checkpoint-12"
    again = SparseTraining(method)
    resumed = trainer(tmp_path / "whole", again)
    resumed.train(resume_from_checkpoint=str(half))
    require_same(resumed.model, again, expected)

    moved = shutil.copytree(half, tmp_path / "elsewhere")
    third = SparseTraining(method, resume_from=moved)
    resumed = trainer(tmp_path / "third", third)
    resumed.train(resume_from_checkpoint=str(moved))
    require_same(resumed.model, third, expected)


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_without_masks_is_an_error_that_says_what_to_do(
    tmp_path: Path,
) -> None:
    trainer(tmp_path, SparseTraining(METHODS[0])).train()
    (tmp_path / "checkpoint-12" / FILE).unlink()
    resumed = trainer(tmp_path, SparseTraining(METHODS[0]))
    with pytest.raises(FileNotFoundError, match="resume_from=FOLDER"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))


def test_only_masks_are_read_from_a_checkpoint(tmp_path: Path) -> None:
    """A file that holds more than tensors and numbers is not unpickled."""
    callback = SparseTraining(Static(0.5))
    args = SimpleNamespace(output_dir=str(tmp_path))
    state = SimpleNamespace(global_step=3)
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    torch.save({"a": torch.ones(2)}, folder / FILE)
    assert torch.equal(callback._saved(args, state)["a"], torch.ones(2))
    torch.save({"a": Path("x")}, folder / FILE)
    with pytest.raises(pickle.UnpicklingError):
        callback._saved(args, state)


def test_only_the_first_process_saves_and_the_end_lets_go(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    callback = SparseTraining(Static(0.5))
    args = SimpleNamespace(output_dir=str(tmp_path))
    begin = SimpleNamespace(global_step=0)
    callback.on_train_begin(args, begin, None, model=model, optimizer=optimizer)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert callback.sparsifier.step == 1
    for first in (False, True):
        state = SimpleNamespace(global_step=1, is_world_process_zero=first)
        callback.on_save(args, state, None)
        assert (tmp_path / "checkpoint-1" / FILE).exists() is first
    callback.on_train_end(args, begin, None)
    optimizer.step()
    assert callback.sparsifier.step == 1  # without hooks
