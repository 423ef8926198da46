"""The backend that stores alive weights only: layers in values mode."""

import copy
import zlib
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsekit import moments as moment_policy
from sparsekit.dense_gradient import DenseGradient, not_collected
from sparsekit.execution.layer import SparseLayer, carry
from sparsekit.masks import pack, unpack
from sparsekit.weights import Weight, require_same


class ValuesWeight(Weight):
    """The values of a SparseLayer: nothing of the dense shape is kept between steps.

    Which weights are alive is read from the layer, `trainable` is one bool a value and
    `visited` one bit an entry. Masks are made when they are read, so that writing to
    one would be lost: torch refuses it ("inplace update to inference tensor").
    """

    def __init__(self, name: str, layer: SparseLayer, optimizer: Optimizer):
        super().__init__(name, layer.values, layer.dense_shape, optimizer)
        self.layer = layer
        self.watcher: DenseGradient | None = None
        self._trainable: Tensor | None = None  # (nnz,) bool; None = all
        self._frozen: Tensor | None = None  # their values, during a step
        self._visited = torch.zeros(
            (self.numel + 7) // 8, dtype=torch.uint8, device=layer.col.device
        )
        self._start: _Start | None = None
        self._note_structure()

    @property
    def device(self) -> torch.device:
        return self._visited.device

    @property
    def alive(self) -> Tensor:
        with torch.inference_mode():
            return self.layer.mask()

    @property
    def trainable(self) -> Tensor:
        if self._trainable is None:
            return self.alive
        with torch.inference_mode():
            return self.layer.scatter(self._trainable)

    @property
    def visited(self) -> Tensor:
        with torch.inference_mode():
            return unpack(self._visited, self.shape)

    @property
    def n_alive(self) -> int:
        return self.layer.nnz

    @property
    def n_visited(self) -> int:
        return sum(int(((self._visited >> bit) & 1).sum()) for bit in range(8))

    def frozen(self) -> Tensor | None:
        trainable = self._trainable
        return None if trainable is None else self.layer.scatter(~trainable)

    def dense(self) -> Tensor:
        return self.layer.to_dense()

    def gradient(self, dense: bool) -> Tensor | None:
        grad = self.parameter.grad
        if grad is None:
            return None
        if not dense:
            return self.spread(grad.detach())
        if self.watcher is None or self.watcher.probe.grad is None:
            raise not_collected(self.name)
        full, scale = self.watcher.probe.grad, self.watcher.scale
        if scale != 1:  # else without a copy: what it holds of the values is the same
            full = full / scale
        full.view(-1)[self.layer.positions()] = grad.detach()
        return full

    def spread(self, values: Tensor) -> Tensor:
        return self.layer.scatter(values)

    def stored(self) -> list[Tensor]:
        return [self.parameter, *self.layer.buffers()]

    def require_held(self, model: nn.Module) -> None:
        held = model.get_submodule(self.name.removesuffix("weight").removesuffix("."))
        parameter = held.values if isinstance(held, SparseLayer) else None
        require_same(self.name, parameter, self.parameter, self.device)

    def require_usable(self) -> None:
        col = self.layer.col
        if (col is not self._col or col._version != self._version) and (
            self.structure != structure(self.layer)
        ):
            raise ValueError(
                f"the connections of {self.name!r} were changed by something else, "
                "such as model.load_state_dict: load the optimizer and the Sparsifier "
                "from the same checkpoint too"
            )

    def set_trainable(self, mask: Tensor) -> None:
        trainable = mask.to(self.device).flatten()[self.layer.positions()]
        self._trainable = None if trainable.all() else trainable

    def move(self, mask: Tensor, moments: str, undoable: bool = False) -> bool:
        self._visited.bitwise_or_(pack(mask))
        if mask.equal(self.alive):
            return False
        if undoable:
            self._start = _Start(self)
        self._carry(mask, moments)
        if self._start is not None:
            self._start.seal(self)
        return True

    def _carry(self, mask: Tensor, moments: str) -> None:
        """Everything that belongs to the values moves with them."""
        grad, watcher = self.parameter.grad, self.watcher
        states = dict(moment_policy.shaped_state(self.optimizer, self.parameter))
        source = self.layer.move(mask)
        if self.layer.density < 1:  # while all exist, layers compute without indices
            self.layer.build()
        self._note_structure()
        held = self.optimizer.state[self.parameter] if states else {}
        for key, state in states.items():
            held[key] = _moved(state, carry(state, source))
        if moments == "mean":
            grown = source < 0
            moment_policy.fill_mean(self.optimizer, self.parameter, grown, ~grown)
        if self._trainable is not None:
            kept = self._trainable[source.clamp(min=0)] | (source < 0)
            self._trainable = None if kept.all() else kept
        if grad is not None:
            moved = carry(grad, source)
            if watcher is not None and watcher.probe.grad is not None:
                dense = watcher.probe.grad.flatten()[self.layer.positions()]
                moved = torch.where(source < 0, dense / watcher.scale, moved)
            self.parameter.grad = _moved(grad, moved)

    def _note_structure(self) -> None:
        self._col, self._version = self.layer.col, self.layer.col._version
        self.structure = structure(self.layer)

    def before_step(self) -> None:
        self._start = None
        if self._trainable is not None:
            self._frozen = self.parameter[~self._trainable]
            if self.parameter.grad is not None:
                self.parameter.grad.masked_fill_(~self._trainable, 0)

    def after_step(self) -> None:
        if self._trainable is not None and self._frozen is not None:
            self.parameter[~self._trainable] = self._frozen
        self._frozen = None

    def hide_absent(self) -> None:
        """They have none."""

    def rewind(self, old: Tensor) -> None:
        values = old.flatten()[self.layer.positions()]
        if self._trainable is not None:
            values = torch.where(self._trainable, values, self.parameter)
        self.parameter.copy_(values)

    def load(self, alive: Tensor, trainable: Tensor, visited: Tensor) -> None:
        if self._start is not None:
            self._start.restore(self)
            self._start = None
        self._trainable = None  # it may be of another number of values
        if not alive.equal(self.layer.mask()):
            self._carry(alive, "zero")
        self._note_structure()
        self.set_trainable(trainable)
        self._visited = pack(visited).to(self.device)

    def watch(self, dense: bool) -> None:
        if self.watcher is not None:
            self.watcher.end()
        self.watcher = DenseGradient(self.name, self.layer) if dense else None


class _Start:
    """What the first move took away, in case a checkpoint is loaded in its place."""

    def __init__(self, weight: ValuesWeight):
        self.mask = pack(weight.layer.mask())
        self.values = weight.parameter.clone()
        states = moment_policy.shaped_state(weight.optimizer, weight.parameter)
        self.states = {name: state.clone() for name, state in states}

    def seal(self, weight: ValuesWeight) -> None:
        self.version = weight.parameter._version
        states = moment_policy.shaped_state(weight.optimizer, weight.parameter)
        self.moved = {name: (state, state._version) for name, state in states}

    def restore(self, weight: ValuesWeight) -> None:
        """Puts it back, except into tensors that were written to since."""
        layer, held = weight.layer, weight.optimizer.state.get(weight.parameter, {})
        if weight.parameter._version == self.version:
            layer.move(unpack(self.mask, weight.shape))
            layer.values.copy_(self.values)
        for name, (state, version) in self.moved.items():
            if held.get(name) is state and state._version == version:
                held[name] = self.states[name]


def _moved(old: Tensor, new: Tensor) -> Tensor:
    """`new`, in the memory of `old` if it fits: others may hold that tensor."""
    return old.copy_(new) if len(old) == len(new) else new


def structure(layer: SparseLayer) -> int:
    """A number that two layers share if their values lie in the same places."""
    number = zlib.crc32(layer.crow.cpu().numpy().tobytes())
    return zlib.crc32(layer.col.cpu().numpy().tobytes(), number)


def require_equal_structure(weights: Sequence[ValuesWeight]) -> None:
    """Raises on every process if the processes have connections in other places."""
    here = torch.tensor([weight.structure for weight in weights])
    there = here.clone()
    dist.broadcast(there, src=0)
    differs = here != there
    dist.all_reduce(differs, op=dist.ReduceOp.MAX)
    for weight, different in zip(weights, differs.tolist(), strict=True):
        if different:
            raise ValueError(
                f"the connections of {weight.name!r} are not the same on every "
                "process: load the same checkpoint on all of them"
            )


def plain(model: nn.Module) -> nn.Module:
    """The model with dense layers, a copy; itself if it has no layer in values mode.

    Names of weights are those that a Sparsifier uses.

    Raises:
        ValueError: naming a layer that cannot be made dense.
    """
    if not any(isinstance(module, SparseLayer) for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    if isinstance(model, SparseLayer):
        return model.to_module()
    for name, module in list(model.named_modules()):
        if isinstance(module, SparseLayer):
            model.set_submodule(name, module.to_module())
    return model
