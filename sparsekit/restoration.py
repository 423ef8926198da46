"""Values that are put back after something else has written to their tensor."""

from torch import Tensor


class Frozen:
    """Alive weights that may not change: put back after the step, bit for bit.

    A gradient mask is not enough, since momentum and weight decay move a weight too.
    On an accelerator, where picking entries waits for all work before, all are copied.
    """

    def __init__(self, alive: Tensor, trainable: Tensor):
        self.alive, self.trainable = alive, trainable
        self.versions: tuple[int, int] | None = None
        self.where: Tensor | None = None
        self.values: Tensor | None = None

    def save(self, parameter: Tensor) -> None:
        if (self.alive._version, self.trainable._version) != self.versions:
            self.trainable.logical_and_(self.alive)  # a user may have set it all True
            where = self.alive & ~self.trainable
            self.where = where if where.any() else None
            self.versions = (self.alive._version, self.trainable._version)
        if self.where is not None:
            on_cpu = parameter.is_cpu
            self.values = parameter[self.where] if on_cpu else parameter.clone()

    def restore(self, parameter: Tensor) -> None:
        if self.where is None or self.values is None:
            return
        if parameter.is_cpu:
            parameter[self.where] = self.values
        else:
            parameter.copy_(parameter.where(~self.where, self.values))


class Removed:
    """What the first masks cleared, in case a checkpoint is loaded in their place."""

    def __init__(self) -> None:
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self.versions: list[int] = []

    def add(self, tensor: Tensor, where: Tensor) -> None:
        self.parts.append((tensor, where, tensor[where]))

    def seal(self) -> None:
        self.versions = [tensor._version for tensor, _, _ in self.parts]

    def restore(self) -> None:
        """Puts it back, except into tensors that were written to since."""
        for (tensor, where, values), version in zip(
            self.parts, self.versions, strict=True
        ):
            if tensor._version == version:
                tensor[where] = values
        self.parts, self.versions = [], []
