"""One weight that a Sparsifier owns, behind one interface whatever stores it."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsekit import moments as moment_policy
from sparsekit.gates import Gate
from sparsekit.restoration import Frozen, Removed


class Weight(ABC):
    """Some connections of one weight, with their gradient and optimizer state.

    Two backends: a dense parameter with a mask (`MaskedWeight`), and a layer that
    stores the alive weights only (`sparsekit.values.ValuesWeight`). Masks and tensors
    that go in and out have the shape of the dense weight in both.

    Args:
        name: of the dense weight, such as "fc.weight".
        parameter: what the optimizer holds.
        shape: of the dense weight.
        optimizer: its state moves with the connections.
    """

    def __init__(
        self,
        name: str,
        parameter: nn.Parameter,
        shape: tuple[int, ...],
        optimizer: Optimizer,
    ):
        self.name, self.parameter, self.optimizer = name, parameter, optimizer
        self.shape, self.numel = shape, torch.Size(shape).numel()
        self.summed: Tensor | None = None  # gradients of earlier steps, dense shape

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the masks are."""

    # ---- what can be read: bool masks, and tensors with 0 for absent weights ---------

    @property
    @abstractmethod
    def alive(self) -> Tensor:
        """True = the weight exists."""

    @property
    @abstractmethod
    def trainable(self) -> Tensor:
        """True = the weight may change; alive ones only."""

    @property
    @abstractmethod
    def visited(self) -> Tensor:
        """True = the weight existed at some time."""

    @property
    def n_alive(self) -> int:
        return int(self.alive.sum())

    @property
    def n_visited(self) -> int:
        return int(self.visited.sum())

    @abstractmethod
    def frozen(self) -> Tensor | None:
        """Mask of alive weights that may not change; None if there is none."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The weight, detached."""

    @abstractmethod
    def gradient(self, dense: bool) -> Tensor | None:
        """The gradient, of absent weights too if `dense`; None if it has none."""

    @abstractmethod
    def spread(self, values: Tensor) -> Tensor:
        """A tensor like the parameter in the dense shape, 0 for absent weights."""

    @abstractmethod
    def stored(self) -> list[Tensor]:
        """The parameters and buffers of the model that this weight consists of."""

    @abstractmethod
    def require_held(self, model: nn.Module) -> None:
        """Raises ValueError if the model has another parameter or is elsewhere."""

    @abstractmethod
    def require_usable(self) -> None:
        """Raises if the weight or its gradient have a form that cannot be trained."""

    # ---- what can be done -----------------------------------------------------------

    @abstractmethod
    def set_trainable(self, mask: Tensor) -> None:
        """From now on, alive weights may change where `mask` is True."""

    @abstractmethod
    def move(self, mask: Tensor, moments: str, undoable: bool = False) -> bool:
        """Takes over a new mask; returns whether a connection moved.

        Kept weights keep value, gradient and moments; grown ones start at zero with
        moments by the policy, and keep the gradient they have. `undoable` remembers
        what went, until the next step.
        """

    @abstractmethod
    def before_step(self) -> None:
        """Only weights that may change keep a gradient."""

    @abstractmethod
    def after_step(self) -> None:
        """Absent weights are zero, frozen ones what they were."""

    @abstractmethod
    def hide_absent(self) -> None:
        """No gradient for absent weights."""

    @abstractmethod
    def rewind(self, old: Tensor) -> None:
        """Trainable weights become what they are in `old`."""

    @abstractmethod
    def load(self, alive: Tensor, trainable: Tensor, visited: Tensor) -> None:
        """Takes over the masks of a checkpoint, after undoing the first move."""

    @abstractmethod
    def watch(self, dense: bool) -> None:
        """Whether backward passes are to find the gradient of absent weights too."""


class MaskedWeight(Weight):
    """A dense parameter, and a mask that makes absent weights zero."""

    def __init__(self, name: str, parameter: nn.Parameter, optimizer: Optimizer):
        super().__init__(name, parameter, tuple(parameter.shape), optimizer)
        self._alive = torch.ones_like(parameter, dtype=torch.bool)
        self._trainable = torch.ones_like(self._alive)
        self._visited = torch.zeros_like(self._alive)
        self._alive_gate = Gate(self._alive)
        self._trainable_gate = Gate(self._trainable)
        self._frozen = Frozen(self._alive, self._trainable)
        self._removed: Removed | None = None
        self._version = parameter._version  # when absent weights were zero

    @property
    def device(self) -> torch.device:
        return self._alive.device

    @property
    def alive(self) -> Tensor:
        return self._alive

    @property
    def trainable(self) -> Tensor:
        return self._trainable

    @property
    def visited(self) -> Tensor:
        return self._visited

    def frozen(self) -> Tensor | None:
        frozen = self._alive & ~self._trainable
        return frozen if frozen.any() else None

    def dense(self) -> Tensor:
        return self.parameter.detach()

    def gradient(self, dense: bool) -> Tensor | None:
        if self.parameter.grad is None:
            return None
        grad = self.parameter.grad.detach()
        return grad if dense else self.spread(grad)

    def spread(self, values: Tensor) -> Tensor:
        return values.masked_fill(~self._alive, 0)

    def stored(self) -> list[Tensor]:
        return [self.parameter]

    def require_held(self, model: nn.Module) -> None:
        owner, _, attribute = self.name.rpartition(".")
        held = model.get_submodule(owner)._parameters.get(attribute)
        require_same(self.name, held, self.parameter, self.device)

    def require_usable(self) -> None:
        grad = self.parameter.grad
        if grad is not None and grad.layout != torch.strided:
            raise TypeError(
                f"the gradient of {self.name!r} is {grad.layout}; use dense gradients "
                "(nn.Embedding(..., sparse=False))"
            )
        if self.parameter._version != self._version and (
            self.parameter.masked_fill(self._alive, 0).any()
        ):
            raise ValueError(
                f"absent weights of {self.name!r} are not zero: something else wrote "
                "to them, such as model.load_state_dict with a dense checkpoint, which "
                "belongs before the Sparsifier is built"
            )

    def set_trainable(self, mask: Tensor) -> None:
        self._trainable.copy_(mask).logical_and_(self._alive)

    def move(self, mask: Tensor, moments: str, undoable: bool = False) -> bool:
        self._visited.logical_or_(mask)
        grown, dropped = mask & ~self._alive, self._alive & ~mask
        if not (grown.any() or dropped.any()):
            return False
        if undoable:
            self._removed = Removed()
            self._removed.add(self.parameter, dropped)
            for _, moment in moment_policy.shaped_state(self.optimizer, self.parameter):
                self._removed.add(moment, dropped)
        survived = self._alive & mask
        self._alive.copy_(mask)
        self._trainable.logical_or_(grown).logical_and_(mask)
        self.parameter.masked_fill_(dropped | grown, 0)
        moment_policy.clear(self.optimizer, self.parameter, ~survived)
        if moments == "mean":
            moment_policy.fill_mean(self.optimizer, self.parameter, grown, survived)
        if self._removed is not None:
            self._removed.seal()
        self._version = self.parameter._version
        return True

    def before_step(self) -> None:
        self._removed = None
        self._frozen.save(self.parameter)
        if self.parameter.grad is not None:
            self._trainable_gate.apply(self.parameter.grad)

    def after_step(self) -> None:
        self._alive_gate.apply(self.parameter)
        self._frozen.restore(self.parameter)
        self._version = self.parameter._version

    def hide_absent(self) -> None:
        if self.parameter.grad is not None:
            self._alive_gate.apply(self.parameter.grad)

    def rewind(self, old: Tensor) -> None:
        frozen = self._alive & ~self._trainable
        self.parameter.copy_(torch.where(frozen, self.parameter, old))
        self._alive_gate.apply(self.parameter)

    def load(self, alive: Tensor, trainable: Tensor, visited: Tensor) -> None:
        if self._removed is not None:
            self._removed.restore()  # if the model was loaded before we were built
        self._alive.copy_(alive)
        self._trainable.copy_(trainable)
        self._visited.copy_(visited)
        self._alive_gate.apply(self.parameter)
        moment_policy.clear(self.optimizer, self.parameter, ~self._alive)

    def watch(self, dense: bool) -> None:
        """They do in any case."""


def require_same(
    name: str, held: Tensor | None, parameter: Tensor, device: torch.device
) -> None:
    """Raises ValueError unless the model holds the parameter, where its masks are."""
    if held is not None and held.device != device:
        raise ValueError(
            f"{name!r} is on {held.device}, its mask on {device}: build the optimizer "
            "and the Sparsifier after model.to(device), then load_state_dict to keep "
            "the masks"
        )
    if held is not parameter:
        raise ValueError(
            f"{name!r} was replaced in the model since the Sparsifier was built: "
            "change parameters in place (load_state_dict without assign=True), or "
            "build the optimizer and the Sparsifier anew"
        )
