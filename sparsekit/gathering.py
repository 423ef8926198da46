"""The gradients that a method sees: those of one step, or of several, added up."""

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.optim import Optimizer

from sparsekit.weights import Weight


class Gathering:
    """Sums of gradients over steps, for methods with `gradient_steps` above 1.

    A sum is part of its weight, `Weight.summed`: dense, and only there between the
    first step that an update will see and that update.

    Args:
        weights: by name.
        optimizer: which may hold the factor of a GradScaler.
        dense: whether gradients of absent weights count.
    """

    def __init__(
        self, weights: Mapping[str, Weight], optimizer: Optimizer, dense: bool
    ):
        self.weights, self.optimizer, self.dense = weights, optimizer, dense

    def add(self, check: Callable[[str, Tensor | None], None]) -> None:
        """Adds the gradients of this step; none if `check` raises for one of them."""
        grads = {name: self._current(weight) for name, weight in self.weights.items()}
        for name, grad in grads.items():
            check(f"gradient of {name!r}", grad)
        for name, weight in self.weights.items():
            grad, summed = grads[name], weight.summed
            if grad is not None:
                weight.summed = grad.clone() if summed is None else summed.add_(grad)

    def total(self, weight: Weight) -> Tensor | None:
        """Of this step and of those that were added; None if no step had one."""
        grad, summed = self._current(weight), weight.summed
        if grad is None or summed is None:
            return summed if grad is None else grad
        return summed + grad

    def clear(self) -> None:
        for weight in self.weights.values():
            weight.summed = None

    def state(self) -> dict[str, Tensor]:
        sums = {name: weight.summed for name, weight in self.weights.items()}
        return {n: summed.clone() for n, summed in sums.items() if summed is not None}

    def load(self, sums: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            summed = sums.get(name)
            weight.summed = (
                None if summed is None else summed.to(weight.parameter, copy=True)
            )

    def _current(self, weight: Weight) -> Tensor | None:
        """Of this step, without the factor of a GradScaler."""
        grad = weight.gradient(self.dense)
        scale = getattr(self.optimizer, "grad_scale", None)
        return grad if grad is None or scale is None else grad / scale
