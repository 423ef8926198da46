"""Lightning's Trainer with the callback trains as a plain loop with the two lines."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sparsekit import Sparsifier
from sparsekit.methods.rigl import RigL
from tests.sparsekit.integrations.methods import METHODS

lightning = pytest.importorskip("lightning.pytorch")

from lightning.pytorch.plugins import MixedPrecision  # noqa: E402

from sparsekit.integrations.lightning import SparseTraining  # noqa: E402

BATCH, BATCHES = 8, 6


class Module(lightning.LightningModule):
    """A small classifier."""

    def __init__(self, optimizers: int = 1):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3))
        self.n_optimizers = optimizers
        self.automatic_optimization = optimizers == 1

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.AdamW(self.parameters()) for _ in range(self.n_optimizers)]


def data() -> TensorDataset:
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH * BATCHES, 12, generator=draws)
    return TensorDataset(x, torch.randint(3, (len(x),), generator=draws))


def fit(module: Module, callback: SparseTraining, folder: Path, **options: object):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    resume = options.pop("ckpt_path", None)
    trainer = lightning.Trainer(
        default_root_dir=folder, callbacks=[callback], accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False,
        **{"max_epochs": 4, "enable_checkpointing": False, **options},
    )  # fmt: skip
    trainer.fit(module, DataLoader(data(), BATCH), ckpt_path=resume)
    return trainer


def plain(method: object, epochs: int = 4, accumulate: int = 1, clip: float = 0.0):
    """The same training, written by hand."""
    module = Module()
    optimizer = torch.optim.AdamW(module.parameters())
    sparsifier = Sparsifier(module, optimizer, method)
    for _ in range(epochs):
        for i, (x, y) in enumerate(DataLoader(data(), BATCH)):
            loss = nn.functional.cross_entropy(module.net(x), y)
            (loss / accumulate).backward()
            if (i + 1) % accumulate == 0:
                sparsifier.before_step()
                if clip:
                    nn.utils.clip_grad_norm_(module.parameters(), clip)
                optimizer.step()
                sparsifier.after_step()
                optimizer.zero_grad()
    return module, sparsifier


def require_same(module: nn.Module, callback: SparseTraining, expected: tuple) -> None:
    by_hand, sparsifier = expected
    assert callback.sparsifier.step == sparsifier.step
    for name, mask in sparsifier.alive.items():
        assert torch.equal(callback.sparsifier.alive[name], mask), name
    for name, tensor in by_hand.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize(
    ("options", "by_hand"),
    [
        ({}, {}),
        ({"gradient_clip_val": 0.1}, {"clip": 0.1}),
        ({"accumulate_grad_batches": 2}, {"accumulate": 2}),
    ],
    ids=["plain", "clipped", "accumulated"],
)
def test_it_trains_as_a_loop_by_hand(
    method: object, options: dict, by_hand: dict, tmp_path: Path
) -> None:
    module, callback = Module(), SparseTraining(method)
    fit(module, callback, tmp_path, **options)
    require_same(module, callback, plain(method, **by_hand))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_fit_that_goes_on_equals_one_without_a_break(
    method: object, tmp_path: Path
) -> None:
    first = SparseTraining(method)
    trainer = fit(Module(), first, tmp_path, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    module, callback = Module(), SparseTraining(method)
    with torch.no_grad():
        module.net[0].weight.fill_(7.0)  # what the checkpoint must replace
    fit(module, callback, tmp_path, ckpt_path=tmp_path / "half.ckpt")
    require_same(module, callback, plain(method))


@pytest.mark.filterwarnings("ignore")
def test_a_scaler_that_skips_a_step(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60, growth_interval=1000)
    module, callback = Module(), SparseTraining(RigL(0.8, every=2, end=9))
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    fit(module, callback, tmp_path, plugins=precision, max_epochs=10)
    skipped = 60 - callback.sparsifier.step
    assert 5 < skipped < 55  # the scale was halved so often
    for name, mask in callback.sparsifier.alive.items():
        assert not module.get_parameter(name)[~mask].any()


@pytest.mark.filterwarnings("ignore")
def test_a_second_fit_goes_on_with_the_masks(tmp_path: Path) -> None:
    module, callback = Module(), SparseTraining(RigL(0.8, every=50, end=500))
    fit(module, callback, tmp_path, max_epochs=1)
    before = callback.sparsifier.finalize()
    fit(module, callback, tmp_path, max_epochs=1)
    assert callback.sparsifier.step == 2 * BATCHES
    for name, mask in before.items():
        assert torch.equal(callback.sparsifier.alive[name], mask)
        assert torch.equal(module.get_parameter(name) != 0, mask)
    # What a checkpoint held is loaded once: a third fit goes on from the second.
    callback.load_state_dict(callback.state_dict())
    for epochs in (3, 4):
        fit(module, callback, tmp_path, max_epochs=1)
        assert callback.sparsifier.step == epochs * BATCHES


@pytest.mark.filterwarnings("ignore")
def test_several_optimizers_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one optimizer, Module has 2: use a Spars"):
        fit(Module(optimizers=2), SparseTraining(METHODS[0]), tmp_path)
