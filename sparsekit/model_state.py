"""Every tensor of a model by the name it has when all layers are dense."""

from collections.abc import Iterator, Mapping
from functools import partial

from torch import Tensor, nn

from sparsekit.lazy import Lazy
from sparsekit.weights import Weight


class ModelState:
    """Reads and restores a model whose weights a Sparsifier owns.

    Args:
        weights: {name: weight}, in whatever form they are stored.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, Weight]):
        self.model, self.weights = model, weights

    def tensors(self) -> Mapping[str, Tensor]:
        """The weights, dense, and all other parameters and buffers; made when read."""
        others = {name: partial(_itself, tensor) for name, tensor in self._others()}
        return Lazy({name: w.dense for name, w in self.weights.items()} | others)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Trainable weights, and all other tensors, become what they are in `tensors`.

        Absent weights stay zero.
        """
        for name, weight in self.weights.items():
            weight.rewind(tensors[name])
        for name, tensor in self._others():
            tensor.copy_(tensors[name])

    def _others(self) -> Iterator[tuple[str, Tensor]]:
        owned = {id(t) for w in self.weights.values() for t in w.stored()}
        for name, parameter in self.model.named_parameters():
            if id(parameter) not in owned:
                yield name, parameter.detach()
        for name, buffer in self.model.named_buffers():
            if id(buffer) not in owned:
                yield name, buffer


def _itself(tensor: Tensor) -> Tensor:
    return tensor
