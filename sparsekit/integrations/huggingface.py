"""Sparse training in Hugging Face's Trainer: `pip install 'sparsekit[huggingface]'`."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from sparsekit import atomic
from sparsekit.integrations import build
from sparsekit.method import Method
from sparsekit.sparsifier import Sparsifier

FILE = "sparsifier.pt"


class SparseTraining(TrainerCallback):
    """Trains a model with the connections that a method chooses.

    Each checkpoint folder gets a file sparsifier.pt with the masks; a training that is
    resumed equals one without a break. Gradient clipping happens before masking and
    sees the norm of the dense gradient, which is larger. Times of the method are
    optimizer steps, `state.global_step`.

    Args:
        method: where weights live, see `sparsekit.methods`.
        resume_from: folder of the checkpoint to go on from; default: that of the step
            in `output_dir`.
        options: of `Sparsifier`: params, exclude, moments, seed, objective, losses.

    Attributes:
        sparsifier: from the beginning of the training on; `sparsifier.alive` are the
            masks.

    Raises:
        FileNotFoundError: for a resumed training without its file.

    >>> from sparsekit.methods.rigl import RigL
    >>> callback = SparseTraining(RigL(sparsity=0.9, every=100, end=7500))
    >>> # Trainer(model, arguments, callbacks=[callback], ...).train()
    """

    def __init__(
        self, method: Method, resume_from: str | Path | None = None, **options: Any
    ):
        self.method, self.resume_from, self.options = method, resume_from, options
        self.sparsifier: Sparsifier | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        saved = self._saved(args, state) if state.global_step else None
        plain: Optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's
        self.sparsifier = build(model, plain, self.method, saved, **self.options)
        self.sparsifier.attach()

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        assert self.sparsifier is not None
        if state.is_world_process_zero:
            content = io.BytesIO()
            torch.save(self.sparsifier.state_dict(), content)
            atomic.write_bytes(_folder(args, state) / FILE, content.getvalue())

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        assert self.sparsifier is not None
        self.sparsifier.detach()

    def _saved(self, args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
        path = Path(self.resume_from or _folder(args, state)) / FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing, without which the masks of step "
                f"{state.global_step} are unknown: give the checkpoint's folder as "
                "SparseTraining(method, resume_from=FOLDER)"
            )
        return torch.load(path, weights_only=True, map_location="cpu")


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    assert args.output_dir is not None
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
