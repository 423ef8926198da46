"""DER++: dark experience replay, which replays logits and labels."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from apps.continual.strategy import Batch, Strategy


@dataclass
class DERpp(Strategy):
    """Replays what the model said when it saw an example, and what is true.

        loss = CE(f(x), y) + alpha MSE(f(x1), z1) + beta CE(f(x2), y2)

    (x1, z1) and (x2, y2) are two draws of the buffer; z are the logits of the step in
    which the example was stored, in training mode and of the augmented input. With
    alpha = beta = 0 it is fine-tuning, with alpha = 0 and beta = 1 it is ER, with
    beta = 0 it is DER.

    Buzzega et al.: Dark experience for general continual learning, 2020, equation 6.
    Settings: Mammoth's for Split-MNIST and a buffer of 500 are alpha 1, beta 0.5; for
    200 alpha 0.2, beta 1.
    """

    alpha: float = 1.0
    beta: float = 0.5

    uses_buffer = True
    stores_logits = True

    def loss_terms(self, batch: Batch) -> Iterator[Tensor]:
        logits = self.forward(batch.x)
        self.logits = logits.detach()
        yield self.cross_entropy(logits, batch.y)
        if self.replays and self.alpha:
            x, _, stored = self.draw()
            yield self.alpha * F.mse_loss(self.forward(x), stored)
        if self.replays and self.beta:
            x, y, _ = self.draw()
            yield self.beta * F.cross_entropy(self.forward(x), y)

    def after_step(self, batch: Batch) -> None:
        self.training.buffer.add(batch.raw, batch.y, self.logits)
