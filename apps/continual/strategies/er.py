"""ER: experience replay."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from apps.continual.strategy import Batch, Strategy


@dataclass
class ER(Strategy):
    """Trains on the current batch and on one of the buffer.

        loss = CE(f(x), y) + CE(f(x_buffer), y_buffer)

    The mean over each batch by itself, in two forward passes: batch norm sees the two
    batches apart. With an empty buffer it is fine-tuning, bit for bit.

    Riemer et al.: Learning to learn without forgetting by maximizing transfer and
    minimizing interference, 2019; Chaudhry et al.: On tiny episodic memories in
    continual learning, 2019. Differs from Mammoth's code: that passes the concatenation
    of both batches forward once and takes one mean.
    """

    uses_buffer = True

    def loss_terms(self, batch: Batch) -> Iterator[Tensor]:
        yield self.current_loss(batch)
        if self.replays:
            x, y, _ = self.draw()
            yield F.cross_entropy(self.forward(x), y)

    def after_step(self, batch: Batch) -> None:
        self.training.buffer.add(batch.raw, batch.y)
