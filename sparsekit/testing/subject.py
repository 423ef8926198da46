"""What is checked: a method at any sparsity, and the Sparsifier that trains it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor

from sparsekit.method import Context, Masks, Method
from sparsekit.sparsifier import Sparsifier
from sparsekit.testing.training import Training, require

# For a training of a few steps; a method takes those that it has fields for.
SMALL = {
    "begin": 1, "at": 2, "every": 3, "end": 9, "rewind_to": 1, "rounds": 3,
    "gradient_steps": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A method to check: `make(sparsity)` builds it."""

    make: Callable[[float], Method]
    sparsity: float
    steps: int
    sparsifier: type[Sparsifier] = Sparsifier

    @property
    def method(self) -> Method:
        return self.make(self.sparsity)

    def training(self, method: Method | None = None, **options: Any) -> Training:
        return Training(method or self.method, self.sparsifier, **options)


def factory(
    cls_or_factory: type[Method] | Callable[[float], Method],
) -> Callable[[float], Method]:
    """sparsity -> method; of a class, with times that fit a training of few steps."""
    if not inspect.isclass(cls_or_factory):
        return cls_or_factory
    cls: Any = cls_or_factory
    require(
        issubclass(cls, Method) and is_dataclass(cls),
        f"{cls.__name__} must be a frozen dataclass that subclasses "
        "sparsekit.method.Method",
    )
    names = [field.name for field in fields(cls) if field.init]
    require(
        names[:1] == ["sparsity"],
        f"the first field of {cls.__name__} must be `sparsity`, got {names[:1]}",
    )
    values: Mapping[str, Any] = {n: v for n, v in SMALL.items() if n in names}

    def make(sparsity: float) -> Method:
        try:
            return cls(sparsity, **values)
        except TypeError as error:
            raise ValueError(
                f"{cls.__name__} needs more than a sparsity and {sorted(values)}: pass "
                "check_method(lambda sparsity: ...) that builds it"
            ) from error

    return make


class Watched(Method):
    """A method whose every answer is watched for what it may not do."""

    def __init__(self, method: Method):
        self.method = method
        self.needs_dense_gradient = method.needs_dense_gradient
        self.gradient_steps = method.gradient_steps
        self.replaces_step = method.replaces_step
        self.rewind_to = method.rewind_to
        self.updates: list[int] = []

    def start(self, context: Context) -> Masks:
        return self._watch("start", context)

    def update(self, context: Context) -> Masks:
        self.updates.append(context.step)
        return self._watch("update", context)

    def due(self, step: int) -> bool:
        return self.method.due(step)

    def sparsity_at(self, step: int) -> float:
        return self.method.sparsity_at(step)

    def _watch(self, call: str, context: Context) -> Masks:
        before = _copies(context)
        beginning = context.generator.get_state()
        first = _masks(getattr(self.method, call)(context))
        after = context.generator.get_state()
        context.generator.set_state(beginning)
        second = _masks(getattr(self.method, call)(context))
        who = f"{type(self.method).__name__}.{call}"
        for name, tensor in _copies(context).items():
            require(
                tensor.equal(before[name]),
                f"{who} changed the context: {name!r}; it may only read it",
            )
        for name, mask in first.items():
            require(
                mask.equal(second[name]),
                f"{who} gave two masks of {name!r} for the same context: take "
                "randomness from context.generator only, and keep no state",
            )
        context.generator.set_state(after)
        return first


def _masks(masks: Masks) -> Masks:
    require(
        isinstance(masks, Mapping)
        and all(isinstance(m, Tensor) for m in masks.values()),
        f"a method must return {{name: mask}}, got {type(masks).__name__}",
    )
    return {name: mask.clone() for name, mask in masks.items()}


def _copies(context: Context) -> dict[str, Tensor]:
    kinds = ("weights", "grads", "masks", "visited", "state")
    return {
        f"{kind}[{name}]": tensor.clone()
        for kind in kinds
        for name, tensor in getattr(context, kind).items()
        if tensor is not None
    }
