"""The gradient of absent weights, for layers that do not store them."""

from collections.abc import Sequence
from math import log2

import torch
import torch.distributed as dist
from torch import Tensor

from sparsekit.execution.layer import SparseLayer


class DenseGradient:
    """What a layer's probe collects from now on, as if it were part of `values.grad`.

    Whatever happens to the gradient of the values happens to the dense one: it adds up
    over micro-batches, and it starts anew after `zero_grad`, before or after the
    forward pass. Both are noticed when a backward pass reaches the layer. What changes
    the numbers in place, such as GradScaler, is settled by `collect`.
    """

    def __init__(self, name: str, layer: SparseLayer):
        self.name = name
        layer.watch_dense_gradient()
        assert layer.probe is not None
        self.layer, self.probe, self.scale = layer, layer.probe, 1.0
        self._averaged: Tensor | None = None
        self._seen = self._state()
        values = layer.values
        self._handles = [
            self.probe.register_hook(self._follow),
            values.register_hook(self._follow),
            values.register_post_accumulate_grad_hook(self._added),
        ]

    def end(self) -> None:
        for handle in self._handles:
            handle.remove()
        if self.layer.probe is self.probe:
            self.layer.take_dense_gradient()

    def _state(self) -> tuple[Tensor | None, int]:
        grad = self.layer.values.grad
        return grad, -1 if grad is None else grad._version

    def _follow(self, _: Tensor) -> None:
        """Before anything is added: was the gradient of the values reset meanwhile?"""
        grad, version = self._state()
        if grad is self._seen[0] and version == self._seen[1]:
            return
        if grad is None or not grad.any():
            self.probe.grad = None
            self._seen = (grad, version)

    def _added(self, _: Tensor) -> None:
        self._seen = self._state()

    def average(self) -> None:
        """Over the processes, once, though it is asked for again after an error."""
        if not is_distributed() or self.layer.values.grad is None:
            return
        if self._averaged is not None and self.probe.grad is self._averaged:
            return
        grad = self.probe.grad  # None where this process did not use the layer
        grad = torch.zeros_like(self.probe) if grad is None else grad.clone()
        used = torch.tensor(float(self.probe.grad is not None), device=grad.device)
        dist.all_reduce(used)
        if used > 0:
            dist.all_reduce(grad.div_(dist.get_world_size()))
            self.probe.grad = self._averaged = grad


def collect(gradients: Sequence[DenseGradient]) -> None:
    """Makes dense gradients agree with those of the values, in place of the optimizer.

    They are averaged over the processes. Their `scale` is how many times larger than
    `values.grad` they are: the factor of a GradScaler that has unscaled what the
    optimizer holds, or that of clipping before. It is measured where both are known,
    and a power of two, which GradScaler uses, is found exactly.

    Raises:
        RuntimeError: naming a layer whose dense gradient was not collected.
    """
    product = square = 0.0
    for gradient in gradients:
        gradient.average()
        values, dense = gradient.layer.values.grad, gradient.probe.grad
        if values is None:
            continue
        if dense is None:
            raise not_collected(gradient.name)
        found = dense.flatten()[gradient.layer.positions()].double()
        product += float(found @ values.double())
        square += float(values.double().square().sum())
    ratio = product / square if square > 0 else 1.0
    scale = _power_of_two(ratio) if 0 < ratio < float("inf") else 1.0
    for gradient in gradients:
        gradient.scale = scale


def not_collected(name: str) -> RuntimeError:
    return RuntimeError(
        f"the gradient of absent weights of {name!r} was not collected: run the "
        "forward and the backward pass of a step after the Sparsifier was built or "
        "loaded, and after after_step of the step before"
    )


def _power_of_two(ratio: float) -> float:
    """The nearest power of two if rounding explains the difference, else `ratio`."""
    nearest = 2.0 ** round(log2(ratio))
    return nearest if abs(ratio / nearest - 1) < 1e-3 else ratio


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
