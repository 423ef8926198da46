"""What a Sparsifier saves, and reading it back: all of it is valid, or nothing is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsekit.masks import unpack

KINDS = ("alive", "trainable", "visited")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a Sparsifier, by weight name; masks are packed to bits."""

    step: int
    seed: int
    shapes: Mapping[str, tuple[int, ...]]
    masks: Mapping[str, Mapping[str, Tensor]]  # by kind, then by name
    rewind: Mapping[str, Tensor] | None  # the whole model at the step to rewind to
    gradients: Mapping[
        str, Tensor
    ]  # summed for the next update; dense, a name may lack

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors: loads with weights_only=True."""
        return {
            "step": self.step,
            "seed": self.seed,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            **{kind: dict(self.masks[kind]) for kind in KINDS},
            "rewind": self.rewind,
            "gradients": dict(self.gradients),
        }

    def mask(self, kind: str, name: str) -> Tensor:
        return unpack(self.masks[kind][name], self.shapes[name])


def read(
    state: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Tensor],
    rewind_to: int | None,
) -> Checkpoint:
    """A checkpoint from what `Checkpoint.state_dict` returned, checked in all parts.

    Args:
        state: what was saved.
        shapes: of the weights it is meant for.
        tensors: weights, parameters and buffers of that model.
        rewind_to: of the method; None ignores a saved model to rewind to.

    Raises:
        ValueError: naming the entry that is missing, damaged or of another model.
    """
    if not isinstance(state, Mapping):
        raise _not_a_state(f"got {type(state).__name__}")
    missing = {"step", "seed", "shapes", "rewind", "gradients", *KINDS} - state.keys()
    if missing:
        raise _not_a_state(f"{sorted(missing)} missing")
    for name in ("step", "seed"):
        value = state[name]
        if not isinstance(value, int) or value < 0:
            raise _not_a_state(f"{name!r} must be an integer of at least 0: {value!r}")
    _require_same_shapes(_mapping(state, "shapes"), shapes)
    packed = {
        kind: {name: _mask(state, kind, name, shapes[name]) for name in shapes}
        for kind in KINDS
    }
    for name in shapes:
        alive, trainable, visited = (packed[kind][name] for kind in KINDS)
        if (trainable & ~alive).any() or (alive & ~visited).any():
            raise _not_a_state(
                f"the masks of {name!r} contradict each other (trainable weights are "
                "alive, alive ones visited)"
            )
    rewind = None
    if rewind_to is not None:
        rewind = _rewind(state, tensors, rewind_to)
    gradients = _gradients(state, shapes)
    return Checkpoint(state["step"], state["seed"], shapes, packed, rewind, gradients)


def _not_a_state(problem: str) -> ValueError:
    return ValueError(
        f"not a Sparsifier's state, or damaged: {problem}. Nothing was loaded; pass "
        "what Sparsifier.state_dict() returned"
    )


def _mapping(state: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    if not isinstance(state[key], Mapping):
        raise _not_a_state(f"{key!r} must be by name, got {type(state[key]).__name__}")
    return state[key]


def _require_same_shapes(
    saved: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    here = {name: list(shape) for name, shape in shapes.items()}
    names = sorted(here.keys() | saved.keys())
    different = [name for name in names if here.get(name) != saved.get(name)]
    if different:
        name = different[0]
        raise ValueError(
            f"the checkpoint is of another model or other params: {name!r} has shape "
            f"{saved.get(name)} there and {here.get(name)} here ({len(different)} "
            "differ). Nothing was loaded; build the model and the Sparsifier as they "
            "were when it was saved"
        )


def _mask(
    state: Mapping[str, Any], kind: str, name: str, shape: tuple[int, ...]
) -> Tensor:
    """The bits, known to be a mask of this shape."""
    packed = _mapping(state, kind).get(name)
    if not isinstance(packed, Tensor):
        raise _not_a_state(f"no {kind!r} mask of {name!r}")
    try:
        unpack(packed, shape)
    except ValueError as error:
        raise _not_a_state(f"{kind!r} mask of {name!r}: {error}") from None
    return packed


def _gradients(
    state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """The sums that the next update is to see, finite and of the weights' shapes."""
    saved = dict(_mapping(state, "gradients"))
    for name, summed in saved.items():
        shape = shapes.get(name)
        if (
            not isinstance(summed, Tensor)
            or tuple(summed.shape) != shape
            or not summed.is_floating_point()
            or not torch.isfinite(summed).all()
        ):
            raise _not_a_state(
                f"the gradient of {name!r} must be finite numbers of shape {shape}"
            )
    return saved


def _rewind(
    state: Mapping[str, Any], tensors: Mapping[str, Tensor], rewind_to: int
) -> dict[str, Tensor] | None:
    if state["rewind"] is None:
        if state["step"] > rewind_to:
            raise ValueError(
                f"the checkpoint is of step {state['step']} and holds no model of step "
                f"{rewind_to}, to which the method rewinds. Nothing was loaded; save "
                "it from a training with the same method"
            )
        return None
    saved = _mapping(state, "rewind")
    for name in sorted(tensors.keys() | saved.keys()):
        here, there = tensors.get(name), saved.get(name)
        if here is None or not isinstance(there, Tensor) or there.shape != here.shape:
            raise _not_a_state(
                f"the model to rewind to is another one: {name!r} differs in shape"
            )
    with torch.no_grad():
        return {n: t.clone().to(tensors[n].device) for n, t in saved.items()}
