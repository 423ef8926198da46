"""GDumb: stores examples, and learns from the store alone. The sanity check."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from apps.common import processes
from apps.common.training import cosine, set_learning_rate
from apps.continual.strategy import Batch, Strategy


@dataclass
class GDumb(Strategy):
    """Keeps a class-balanced buffer; at the end of a task trains anew on it.

    Whatever a replay method has beyond this number, it learned from the stream, not
    from its buffer. passes: over the buffer, in batches of `batch`; the learning rate
    falls from `lr` to lr / 100 by a cosine.

    Prabhu, Torr, Dokania: GDumb: a simple approach that questions our progress in
    continual learning, 2020. Differs from the paper: one cosine, no CutMix; a full
    class goes on as a reservoir where the paper's sampler keeps the first to come.
    """

    passes: int = 30

    uses_buffer = True
    needs_tasks = True
    dense_only = True
    policy = "balanced"

    def loss_terms(self, batch: Batch) -> Iterator[Tensor]:
        """Nothing is learned during a task."""
        yield from ()

    def after_step(self, batch: Batch) -> None:
        self.training.buffer.add(batch.raw, batch.y)

    def end_task(self, task: int) -> None:
        training = self.training
        if not len(training.buffer):
            return
        training.restart()
        held, config = training.buffer.everything(), training.config
        n = max(1, len(held) // config.batch)
        training.model.train()
        for step in range(self.passes * n):
            if step % n == 0:
                order = torch.randperm(len(held), generator=training.draws)
            batch = order[step % n * config.batch :][: config.batch]
            lr = config.lr * cosine(step, self.passes * n, floor=0.01)
            set_learning_rate(training.optimizer, lr)
            x = training.seen(held.raw[batch.to(held.raw.device)])
            loss = F.cross_entropy(self.forward(x), held.y[batch.to(held.y.device)])
            training.optimizer.zero_grad()
            loss.backward()
            processes.average(training.model.parameters())
            training.optimizer.step()
        set_learning_rate(training.optimizer, config.lr)
