"""Named losses of the user, and their gradients, computed when a method reads them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparsekit.dense_gradient import is_distributed
from sparsekit.execution.layer import SparseLayer
from sparsekit.lazy import Lazy
from sparsekit.modes import in_mode
from sparsekit.weights import Weight

Loss = Callable[[nn.Module], Tensor | None]
Gradients = Mapping[str, Tensor]


class LossGradients(Mapping[str, Gradients | None]):
    """{loss: {weight: gradient}}, of alive weights; a backward pass for every reading.

    The model computes in the form that it has, so that layers in values mode need no
    more memory than in training. It is left as it was: buffers are put back, its mode
    is restored, and neither gradients nor the global random state are touched.

    Args:
        model: what the losses are called with.
        weights: by name; gradients have their dense shapes, zeros for absent weights.
        losses: by name; a function may return None if there is nothing to evaluate.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, Weight],
        losses: Mapping[str, Loss],
    ):
        self._model, self._weights, self._losses = model, weights, losses

    def __getitem__(self, name: str) -> Gradients | None:
        if name not in self._losses:
            raise ValueError(
                f"this method reads the gradient of a loss named {name!r}: pass "
                f"Sparsifier(..., losses={{{name!r}: lambda model: loss}})"
            )
        parameters = {n: w.parameter for n, w in self._weights.items()}
        with as_it_was(self._model), torch.enable_grad():
            loss = self._losses[name](self._model)
            if loss is None:
                return None
            found = torch.autograd.grad(
                loss, list(parameters.values()), materialize_grads=True
            )
        if is_distributed():
            for grad in found:
                dist.all_reduce(grad.div_(dist.get_world_size()))
        pairs = zip(self._weights.items(), found, strict=True)
        return Lazy({n: partial(weight.spread, grad) for (n, weight), grad in pairs})

    def __iter__(self) -> Iterator[str]:
        return iter(self._losses)

    def __len__(self) -> int:
        return len(self._losses)


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """In training mode inside; buffers, modes and the random state are put back."""
    indices = {
        id(buffer)
        for layer in model.modules()
        if isinstance(layer, SparseLayer)
        for buffer in layer.buffers()
    }
    buffers = [b for b in model.buffers() if id(b) not in indices]
    before = [buffer.clone() for buffer in buffers]
    try:
        with in_mode(model, training=True), torch.random.fork_rng():
            torch.manual_seed(0)
            yield
    finally:
        with torch.no_grad():
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)
