"""Sparse training in PyTorch Lightning: `pip install 'sparsekit[lightning]'`."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from sparsekit.integrations import build
from sparsekit.method import Method
from sparsekit.sparsifier import Sparsifier


class SparseTraining(Callback):
    """Trains a LightningModule with the connections that a method chooses.

    Lightning's checkpoints hold the masks; a fit that goes on from one equals one
    without a break. Works with gradient clipping (which sees the masked gradient),
    accumulation, mixed precision and DDP, for modules with one optimizer. Times of the
    method are optimizer steps, `trainer.global_step`.

    Args:
        method: where weights live, see `sparsekit.methods`.
        options: of `Sparsifier`: params, exclude, moments, seed, objective, losses.

    Attributes:
        sparsifier: from the beginning of the fit on; `sparsifier.alive` are the masks.

    Raises:
        ValueError: at the beginning of a fit, if the module has several optimizers.

    >>> from sparsekit.methods.rigl import RigL
    >>> callback = SparseTraining(RigL(sparsity=0.9, every=100, end=7500))
    >>> # Trainer(max_epochs=10, callbacks=[callback]).fit(module, loader)
    """

    def __init__(self, method: Method, **options: Any):
        self.method, self.options = method, options
        self.sparsifier: Sparsifier | None = None
        self._saved: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"SparseTraining needs one optimizer, {type(pl_module).__name__} has "
                f"{len(trainer.optimizers)}: use a Sparsifier for each in "
                "training_step, with manual optimization"
            )
        (optimizer,) = trainer.optimizers
        if self._saved is None and self.sparsifier is not None:  # a second fit
            self._saved = self.sparsifier.state_dict()
        self.sparsifier = build(
            pl_module, optimizer, self.method, self._saved, **self.options
        )
        self._saved = None
        self._scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if self._scaled:  # may skip a step, and then neither hook runs
            self.sparsifier.attach()
        else:  # Lightning computes the gradient within the optimizer's step
            optimizer.register_step_post_hook(self._after_step)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if not self._scaled:
            assert self.sparsifier is not None
            self.sparsifier.before_step()

    def _after_step(self, *_: Any) -> None:
        assert self.sparsifier is not None
        self.sparsifier.after_step()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.sparsifier is None else self.sparsifier.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict or None
