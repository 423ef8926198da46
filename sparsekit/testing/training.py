"""A small training that repeats bit for bit: the stage of every check."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from sparsekit.execution.layer import SparseLayer
from sparsekit.method import Method
from sparsekit.parameters import weights
from sparsekit.sparsifier import Sparsifier
from sparsekit.testing.reference_layer import in_values_mode

BATCH = 10

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "learning rate 0": lambda p: SGD(p, 0.0),
    "SGD": lambda p: SGD(p, 0.1, foreach=False),
    "momentum": lambda p: SGD(
        p, 0.1, 0.9, weight_decay=0.1, nesterov=True, foreach=False
    ),
    "momentum, foreach": lambda p: SGD(p, 0.1, 0.9, weight_decay=0.1, foreach=True),
    "momentum, fused": lambda p: SGD(p, 0.1, 0.9, weight_decay=0.1, fused=True),
    "Adam, amsgrad": lambda p: Adam(p, 0.03, weight_decay=0.1, amsgrad=True),
    "AdamW": lambda p: AdamW(p, 0.03, foreach=False),
    "AdamW, foreach": lambda p: AdamW(p, 0.03, foreach=True),
    "AdamW, fused": lambda p: AdamW(p, 0.03, fused=True),
}
FAMILIES = ("SGD", "momentum", "AdamW", "AdamW, fused")
"""One of each kind: what takes long is checked with these."""


def network(init: int = 0, magnitude: float | None = None) -> nn.Sequential:
    """Convolution, batch norm, two linear layers: 618 weights in three tensors.

    Rounded to multiples of 1/32, so that equal magnitudes and zeros are common; with
    `magnitude`, all are that far from zero.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init)
        model = nn.Sequential(
            nn.Conv2d(2, 5, 3),
            nn.BatchNorm2d(5),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(45, 11),
            nn.Tanh(),
            nn.Linear(11, 3),
        )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(32).round_().div_(32)
                if magnitude is not None:
                    parameter.copy_(magnitude * (1 - 2 * (parameter < 0).float()))
    return model


def batch(t: int) -> tuple[Tensor, Tensor]:
    """Inputs (10, 2, 5, 5) and targets (10, 3) of step t, always the same.

    The second input channel is zero: its weights have gradients of exactly zero, which
    is a tie.
    """
    generator = torch.Generator().manual_seed(1000 + t)
    x = torch.randn(BATCH, 2, 5, 5, generator=generator)
    x[:, 1] = 0
    return x, torch.randn(BATCH, 3, generator=generator)


def loss_of(model: nn.Module, t: int) -> Tensor:
    x, y = batch(t)
    dtype = next(model.parameters()).dtype
    return (model(x.to(dtype)) - y.to(dtype)).square().mean()


def objective(model: nn.Module) -> Tensor:
    """For methods that score weights before training; smooth, so that H exists."""
    return loss_of(model, -1)


# For methods that score weights by gradients of named losses, as TDM does.
LOSSES = {
    "current": lambda model: loss_of(model, -2),
    "buffer": lambda model: loss_of(model, -3),
}


class Training:
    """Model, optimizer and sparsifier; `step` is the loop of the documentation.

    Args:
        method: None trains densely.
        sparsifier: the class under test.
        optimizer: a key of OPTIMIZERS.
        init, magnitude: of the model's weights, see `network`.
        attached: hooks instead of the two lines.
        clip: largest gradient norm, clipped between the two lines.
        loaded: checkpoint that model and optimizer take before the sparsifier is built.
        compiler: makes the model's forward from the model, such as torch.compile.
        values: layers that store alive weights only, in the place of dense ones.
        moments: policy for grown weights.
    """

    def __init__(
        self,
        method: Method | None,
        sparsifier: type[Sparsifier] = Sparsifier,
        optimizer: str = "AdamW",
        init: int = 0,
        magnitude: float | None = None,
        attached: bool = False,
        clip: float | None = None,
        loaded: dict[str, Any] | None = None,
        compiler: Callable[[nn.Module], Callable] | None = None,
        values: bool = False,
        moments: str = "zero",
    ):
        self.model: nn.Module = network(init, magnitude)
        if values:
            self.model = in_values_mode(self.model)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.clip = clip
        self.explicit = method is not None and not attached
        if loaded is not None:
            self.model.load_state_dict(loaded["model"])
            self.optimizer.load_state_dict(loaded["optimizer"])
        self._sparsifier: Sparsifier | None = None
        if method is not None:
            self._sparsifier = sparsifier(
                self.model,
                self.optimizer,
                method,
                moments=moments,
                seed=7,
                objective=objective,
                losses=LOSSES,
            )
            if attached:
                self._sparsifier.attach()
        self.forward: Any = compiler(self.model) if compiler else self.model

    @property
    def sparsifier(self) -> Sparsifier:
        assert self._sparsifier is not None
        return self._sparsifier

    def gradient(self, t: int) -> None:
        self.optimizer.zero_grad()
        loss_of(self.forward, t).backward()

    def update(self) -> None:
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()

    def step(self, t: int) -> None:
        self.gradient(t)
        if self.explicit:
            self.sparsifier.before_step()
        self.update()
        if self.explicit:
            self.sparsifier.after_step()

    def run(self, *steps: int) -> "Training":
        for t in range(*steps):
            self.step(t)
        return self

    def save(self) -> bytes:
        buffer = io.BytesIO()
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sparsifier": self.sparsifier.state_dict(),
        }
        torch.save(state, buffer)
        return buffer.getvalue()

    def tensors(self, buffers: bool = True) -> dict[str, Tensor]:
        """Copies of all that a training consists of, by name."""
        found = dict(self._live(buffers))
        return {name: tensor.detach().clone() for name, tensor in found.items()}

    def _live(self, buffers: bool) -> Iterator[tuple[str, Tensor]]:
        """Of a layer in values mode what its dense twin would have."""
        layers = []
        for name, held in weights(self.model).items():
            layer = held if isinstance(held, SparseLayer) else None
            parameter = held.values if isinstance(held, SparseLayer) else held
            if layer is not None:
                layers.append(layer)
            yield f"weight {name}", parameter if layer is None else layer.to_dense()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    if layer is not None and value.shape == parameter.shape:
                        value = layer.scatter(value)
                    yield f"moment {key} of {name}", value
        if buffers:
            own = {id(b) for layer in layers for b in layer.buffers(recurse=False)}
            for name, value in self.model.named_buffers():
                if id(value) not in own:
                    yield f"buffer {name}", value
        if self._sparsifier is not None:
            for kind in ("alive", "trainable", "visited"):
                for name, mask in getattr(self._sparsifier, kind).items():
                    yield f"{kind} mask of {name}", mask


@contextmanager
def one_thread() -> Iterator[None]:
    """Tiny tensors are faster in one thread, and sums have one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def load(saved: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(saved), weights_only=True)


def require(correct: bool | Tensor, message: str) -> None:
    """AssertionError unless correct; unlike `assert`, also under `python -O`."""
    if not bool(correct):
        raise AssertionError(message)


def require_equal(
    found: dict[str, Tensor],
    expected: dict[str, Tensor],
    what: str,
    tolerance: float = 0.0,
) -> None:
    """All tensors equal bit for bit; real numbers within a relative tolerance."""
    different = sorted(found.keys() ^ expected.keys())
    require(not different, f"{what}: only one has {different[:1]}")
    for name, tensor in expected.items():
        different_entries = found[name] != tensor
        if tolerance and tensor.is_floating_point():
            different_entries &= ~torch.isclose(found[name], tensor, tolerance, 1e-7)
        if different_entries.any():
            count = int(different_entries.sum())
            raise AssertionError(
                f"{what}: {count} of {tensor.numel()} entries of {name!r} differ"
            )
