"""What `update` sees of the gradients: of one step, or of several, added up."""

import torch
from torch import Tensor

from sparsekit.method import Context, Masks
from sparsekit.testing.subject import Subject, Watched
from sparsekit.testing.training import Training, require

Gradients = dict[str, Tensor]


class Shown(Watched):
    """A method whose `update` notes the gradients that it is shown."""

    def update(self, context: Context) -> Masks:
        self.grads = {n: g.clone() for n, g in context.grads.items() if g is not None}
        return super().update(context)


def check_sums(subject: Subject) -> None:
    """`update` sees the sum over `gradient_steps` steps, none before the last update.

    Of absent weights too, if it asks for them, and zeros there otherwise.
    """
    method = Shown(subject.method)
    training = subject.training(method, optimizer="momentum")
    past: list[Gradients] = []
    for t in range(subject.steps):
        training.gradient(t)
        past.append(_gradients(training, method.needs_dense_gradient))
        training.sparsifier.before_step()
        if method.due(t):
            _compare(method.grads, past[-method.gradient_steps :], t)
            past = []
        training.update()
        training.sparsifier.after_step()


def _gradients(training: Training, dense: bool) -> Gradients:
    named = dict(training.model.named_parameters())
    found = {}
    for name, mask in training.sparsifier.alive.items():
        grad = named[name].grad
        if grad is not None:
            found[name] = grad.clone() if dense else grad.masked_fill(~mask, 0)
    return found


def _compare(shown: Gradients, past: list[Gradients], step: int) -> None:
    for name in past[-1]:
        total = torch.stack([grads[name] for grads in past]).double().sum(0)
        require(
            torch.allclose(shown[name].double(), total, rtol=1e-5, atol=1e-7),
            f"step {step}: the gradient of {name!r} that update sees is not the sum "
            f"over the last {len(past)} steps",
        )
