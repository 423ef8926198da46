"""Learning on a device: batches come one by one, and the power may go at any time.

    learner = Learner(config, shape=(1, 28, 28), classes=10, folder="memory")
    learner.observe(images, labels)      # one step; on the disk before it returns
    learner.next_task()                  # if the device knows: new classes are coming
    learner.predict(images)              # [N] classes
    learner.export("model.safetensors")  # for sparsekit.execution.reader, without torch

A new Learner on the same folder goes on where the power went, to the same bits.
"""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apps.common.config import refuse_other_settings, settings
from apps.common.runs import RunFolder
from apps.continual import training
from apps.continual.config import Config
from apps.continual.journal import Journal
from apps.continual.strategy import Batch, evaluating
from apps.continual.streams import Part, Stream, Task
from apps.continual.train import step
from sparsekit.execution import dense_state_dict, export
from sparsekit.execution.export import Exported
from sparsekit.methods.tdm import TDM

NEXT_TASK = b"next task"
FOREVER = 1 << 60  # steps: nobody knows when a task ends


class Learner:
    """A replay strategy and a sparse model that learn from what they are shown.

    Every batch goes to a journal before it is learned, every `checkpoint_every` batches
    the whole state to a checkpoint, which ends the journal. After a power cut the last
    checkpoint is loaded and the journal learned again, bit for bit; a batch that was
    not on the disk yet was not observed, and `observed` says how many were.

    Args:
        config: of model, strategy (er or derpp), buffer, method, backend, optimizer.
            Nothing of its data is used. Method "tdm" expands at `next_task` and moves
            every `options["every"]` steps (default 100). SparCL's data removal is not
            here: a batch is seen once.
        shape: of one input; classes: how many there will ever be.
        mean, std: that inputs are standardised by, numbers or one a channel.
        folder: where checkpoint and journal are; None: nothing is kept.
        checkpoint_every: batches between two checkpoints.

    Raises:
        ValueError: for settings that cannot be trained online, or a folder that holds a
            learner of other settings.
    """

    def __init__(
        self,
        config: Config,
        shape: tuple[int, ...],
        classes: int,
        *,
        mean: float | Tensor = 127.5,
        std: float | Tensor = 127.5,
        folder: str | Path | None = None,
        checkpoint_every: int = 100,
    ):
        if config.strategy not in ("er", "derpp"):
            raise ValueError(
                f"a learner replays by er or derpp, got strategy {config.strategy!r}; "
                "its masks are those of method"
            )
        if checkpoint_every < 1:
            raise ValueError(
                f"checkpoint_every is a number of batches, got {checkpoint_every}"
            )
        config = replace(config, out=None, resume=False, loss_over="all",
                         replay_from="first", tasks=1)  # fmt: skip
        if config.method == "tdm":
            options = {"every": 100, **config.options, "end": FOREVER}
            config = replace(config, options=options)
        self.config = config
        stream = _unseen(shape, classes, mean, std)
        self.state = training.build(config, stream)
        self.shape, self.classes = shape, classes
        self.every, self.observed = checkpoint_every, 0
        self._saved = 0  # batches that the checkpoint knows
        self.folder = None if folder is None else RunFolder(Path(folder))
        self.journal: Journal | None = None
        if self.folder is not None:
            self._open()

    # ---- what a device calls ---------------------------------------------------------

    def observe(self, raw: Tensor, y: Tensor) -> float:
        """Learns from a batch, in one step; returns the loss before it.

        raw: [B, *shape] uint8; y: [B] int64, in 0 ... classes - 1. When it returns, the
        batch is on the disk. A ValueError or an OSError, say of a full disk, has
        changed nothing.
        """
        self._require(raw, y)
        if self.folder is not None and self.observed - self._saved >= self.every:
            self.save()
        if self.journal is not None:
            self.journal.append(_packed(raw, y))
        return self._learn(raw, y)

    def next_task(self) -> None:
        """A new task begins: method "tdm" grows weights for it. Others do nothing."""
        if self.journal is not None:
            self.journal.append(NEXT_TASK)
        self._begin_task()

    def predict(self, raw: Tensor, batch: int = 256) -> Tensor:
        """[N] classes of inputs [N, *shape] uint8."""
        view, model = self.state.stream.view, self.state.model
        with evaluating(model):
            parts = [model(view(part)).argmax(1) for part in raw.split(batch)]
        return torch.cat(parts)

    def export(self, path: str | Path, values: str = "float32") -> Exported:
        """One file for `sparsekit.execution.reader`, checked against the model.

        It takes standardised inputs, (raw - mean) / std.
        """
        example = self.state.stream.view(torch.zeros((2, *self.shape)).byte())
        example[1] = torch.linspace(-1, 1, example[1].numel()).view_as(example[1])
        return export.save(self.plain(), example, path, self.state.masks, values)

    def plain(self) -> nn.Module:
        """A copy of the model in dense layers, with zeros for absent weights."""
        model = self.state.fresh_model()
        model.load_state_dict(dense_state_dict(self.state.model))
        return model.eval()

    def save(self) -> None:
        """Writes a checkpoint, which ends the journal."""
        if self.folder is None:
            raise ValueError("this learner was built without a folder")
        self.folder.write_checkpoint(
            {
                "observed": self.observed,
                "begin": self._begin,
                "training": self.state.state_dict(),
                "settings": settings(self.config) | self._inputs(),
            }
        )
        self._saved = self.observed
        old, self.journal = self.journal, Journal(self._journal_path())
        if old is not None and old.path != self.journal.path:
            old.remove()

    # ---- how -------------------------------------------------------------------------

    def _learn(self, raw: Tensor, y: Tensor) -> float:
        state = self.state
        state.model.train()
        loss = step(state, Batch(state.seen(raw), y, raw, torch.arange(len(y))))
        assert loss is not None
        self.observed += 1
        return float(loss)

    @property
    def _begin(self) -> int:
        method = self.state.sparsifier and self.state.sparsifier.method
        return method.begin if isinstance(method, TDM) else 0

    def _begin_task(self, begin: int | None = None) -> None:
        sparsifier = self.state.sparsifier
        if sparsifier is not None and isinstance(sparsifier.method, TDM):
            begin = sparsifier.step if begin is None else begin
            sparsifier.set_method(replace(sparsifier.method, begin=begin))

    def _require(self, raw: Tensor, y: Tensor) -> None:
        if raw.dtype != torch.uint8 or tuple(raw.shape[1:]) != self.shape:
            raise ValueError(
                f"inputs are uint8 [B, {', '.join(map(str, self.shape))}], got "
                f"{raw.dtype} {list(raw.shape)}"
            )
        if y.dtype != torch.int64 or y.shape != raw.shape[:1] or not len(y):
            raise ValueError(
                f"labels are int64, one for each of {len(raw)} inputs, got {y.dtype} "
                f"{list(y.shape)}"
            )
        if not 0 <= int(y.min()) <= int(y.max()) < self.classes:
            raise ValueError(
                f"labels are 0 ... {self.classes - 1}, got {int(y.min())} ... "
                f"{int(y.max())}"
            )

    def _open(self) -> None:
        """Takes up the checkpoint and learns the journal again."""
        assert self.folder is not None
        saved = self.folder.read_checkpoint()
        if saved is None:
            self.save()
            return
        _refuse_another(self, saved["settings"])
        self._begin_task(saved["begin"])
        self.state.load_state_dict(saved["training"])
        self.observed = self._saved = saved["observed"]
        self.journal = Journal(self._journal_path())
        for path in self.folder.path.glob("*.journal"):
            if path != self.journal.path:
                path.unlink()
        for record in list(self.journal.records()):
            if record == NEXT_TASK:
                self._begin_task()
            else:
                self._learn(*_unpacked(record, self.shape))

    def _journal_path(self) -> Path:
        assert self.folder is not None
        return self.folder.path / f"{self.observed}.journal"

    def _inputs(self) -> dict[str, Any]:
        stream = self.state.stream
        return {
            "shape": list(self.shape),
            "classes": self.classes,
            "mean": stream.mean.flatten().tolist(),
            "std": stream.std.flatten().tolist(),
        }


def _refuse_another(learner: Learner, saved: dict[str, Any]) -> None:
    """Raises ValueError if a folder holds a learner of other settings."""
    assert learner.folder is not None
    mine = learner._inputs()
    theirs = {name: saved[name] for name in mine}
    if mine != theirs:
        raise ValueError(
            f"{learner.folder.path} holds a learner of {theirs}, not of {mine}"
        )
    rest = {name: value for name, value in saved.items() if name not in mine}
    refuse_other_settings(learner.config, rest, learner.folder.path)


def _unseen(
    shape: tuple[int, ...], classes: int, mean: float | Tensor, std: float | Tensor
) -> Stream:
    """A stream of which nothing is known but the form."""
    part = Part(
        torch.zeros((1, *shape), dtype=torch.uint8),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, dtype=torch.int64),
    )
    task = Task(tuple(range(classes)), part, part, part)
    names = tuple(map(str, range(classes)))
    moments = [torch.as_tensor(m, dtype=torch.float32) for m in (mean, std)]
    wide = [m.view(-1, *[1] * (len(shape) - 1)) for m in moments]
    return Stream((task,), classes, names, "device", *wide)


def _packed(raw: Tensor, y: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, raw=raw.numpy(), y=y.numpy())
    return buffer.getvalue()


def _unpacked(record: bytes, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    with np.load(io.BytesIO(record), allow_pickle=False) as arrays:
        raw, y = arrays["raw"], arrays["y"]
    return torch.from_numpy(raw).view(-1, *shape), torch.from_numpy(y)
