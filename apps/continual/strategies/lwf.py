"""LwF: learning without forgetting, by distilling the model of the task before."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from apps.continual.strategy import Batch, Strategy, evaluating


@dataclass
class LwF(Strategy):
    """Keeps what the previous model says about the current inputs.

        loss = CE(f(x), y) + weight KL(softmax(g(x) / T) || softmax(f(x) / T))

    g is the model at the end of the previous task; the second term is over the classes
    of earlier tasks. No data is stored. With weight 0 it is fine-tuning.

    Li, Hoiem: Learning without forgetting, 2016 (T = 2). Differs from the paper: one
    head, no warm-up of the new outputs; KL instead of the cross-entropy, which has the
    same gradient.
    """

    weight: float = 1.0
    temperature: float = 2.0

    SAVED = ("previous",)
    needs_tasks = True
    masked_only = True

    def __post_init__(self) -> None:
        self.previous: dict[str, Tensor] = {}  # parameters and buffers of g

    def loss_terms(self, batch: Batch) -> Iterator[Tensor]:
        logits = self.forward(batch.x)
        loss = self.cross_entropy(logits, batch.y)
        if not self.previous or not self.weight:
            yield loss
            return
        training = self.training
        with evaluating(training.model):
            training.flops.add_forward(len(batch.x), back_propagated=False)
            before = functional_call(training.model, self.previous, (batch.x,))
        old = self.old_classes()
        yield loss + self.weight * distillation(
            logits[:, old], before[:, old], self.temperature
        )

    def old_classes(self) -> list[int]:
        """Classes of the tasks before, ascending."""
        tasks = self.training.stream.tasks[: self.task]
        return sorted({c for task in tasks for c in task.classes})

    def end_task(self, task: int) -> None:
        state = self.training.model.state_dict()
        self.previous = {name: t.detach().clone() for name, t in state.items()}


def distillation(logits: Tensor, before: Tensor, temperature: float) -> Tensor:
    """KL(softmax(before / T) || softmax(logits / T)), the mean over the batch.

    >>> import torch
    >>> z = torch.tensor([[1.0, 2.0]])
    >>> float(distillation(z, z, 2.0))
    0.0
    """
    log_p = F.log_softmax(before / temperature, 1)
    log_q = F.log_softmax(logits / temperature, 1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
