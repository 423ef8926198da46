"""What a sparsity method sees, what it must answer, and how methods are found.

A method decides *where* weights live. It never touches one: it reads a `Context` and
returns boolean masks. `sparsekit.Sparsifier` does everything else.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from numbers import Integral, Real

import torch
from torch import Tensor, nn

from sparsekit.allocation import apportion, global_budget, uniform
from sparsekit.discovery import classes_in
from sparsekit.masks import topk_mask
from sparsekit.modes import in_mode
from sparsekit.patterns import Pattern, Unstructured
from sparsekit.scores import random
from sparsekit.values import plain

Masks = dict[str, Tensor]
Shape = tuple[int, ...]
Allocation = Callable[[Mapping[str, Shape], float], dict[str, int]]


class _Evaluated(nn.Module):
    """A function of a model, as a module: `functional_call` can swap its tensors."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module], Tensor]):
        super().__init__()
        self.model = model
        self.function = function

    def forward(self) -> Tensor:
        return self.function(self.model)


@dataclass(frozen=True)
class Objective:
    """The user's scalar function of the model, evaluated with other tensors in place.

    `objective(values)` substitutes `values` (parameters or buffers, by name) and calls
    the function. The model is left as it was: its buffers are copied first, its mode is
    restored, and the global random state is not advanced. Where the model has layers in
    values mode, a copy with dense ones is evaluated.
    """

    model: nn.Module
    function: Callable[[nn.Module], Tensor] | None

    def __call__(self, values: Mapping[str, Tensor], training: bool = True) -> Tensor:
        if self.function is None:
            raise ValueError(
                "this method scores weights by an objective: pass "
                "Sparsifier(..., objective=lambda model: loss), a scalar that can be "
                "differentiated"
            )
        model = plain(self.model)
        tensors = {name: b.clone() for name, b in model.named_buffers()}
        tensors |= values
        with (
            in_mode(model, training),
            torch.random.fork_rng(),
            torch.enable_grad(),
        ):
            torch.manual_seed(0)
            return torch.func.functional_call(
                _Evaluated(model, self.function),
                {f"model.{name}": t for name, t in tensors.items()},
            )


@dataclass(frozen=True)
class Context:
    """What a method may see. Nothing in it may be changed.

    Every mapping is by parameter name and in the same order. `grads` is the gradient of
    the current step, averaged over processes, or the sum over the method's last
    `gradient_steps` steps; it covers absent weights only for a method with
    `needs_dense_gradient`, and holds zeros there otherwise. In `start`, all gradients
    are None.
    """

    step: int  # optimizer steps completed so far
    weights: Mapping[str, Tensor]  # float, detached
    grads: Mapping[str, Tensor | None]  # float
    masks: Mapping[str, Tensor]  # bool, True = the weight exists
    visited: Mapping[str, Tensor]  # bool, True = the weight existed at some time
    generator: torch.Generator  # CPU: the same numbers on every device and process
    objective: Objective
    state: Mapping[str, Tensor]  # every parameter and buffer of the model, detached
    # {loss: {name: gradient}} of the user's named losses, 0 for absent weights; each
    # reading is a backward pass. None for a loss with nothing to evaluate.
    loss_grads: Mapping[str, Mapping[str, Tensor] | None] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: tuple(weight.shape) for name, weight in self.weights.items()}


class Method(ABC):
    """Where weights live, as a function of time. Subclass it as a frozen dataclass.

    The first field is `sparsity`; times are in optimizer steps and are called `begin`,
    `end`, `every` or `at`. The class attributes below are part of the contract.

    With `gradient_steps` above 1, `update` sees the gradients of the current step and
    of those before it, that many in all, added up; fewer, if the last update or the
    beginning of the training is nearer. The Sparsifier keeps and saves the sum.
    """

    needs_dense_gradient = False  # reads gradients of absent weights in `update`
    gradient_steps: int = 1  # `update` sees the sum over that many, none before a move
    replaces_step = False  # no weight update in a step that moved connections
    rewind_to: int | None = None  # after a move, go back to this step's model

    @abstractmethod
    def start(self, context: Context) -> Masks:
        """Masks before the first step."""

    def due(self, step: int) -> bool:
        """Whether `update` is called in this step."""
        return False

    def update(self, context: Context) -> Masks:
        """New masks, from the weights before the step and its gradients."""
        raise NotImplementedError(f"{type(self).__name__} is due but has no update")

    @abstractmethod
    def sparsity_at(self, step: int) -> float:
        """Fraction of zeros over all masked tensors once `step`'s update is done.

        The masks then hold exactly `count_active(total, sparsity_at(step))` weights.
        """


def dense_masks(context: Context) -> Masks:
    """All weights alive."""
    return {
        name: torch.ones_like(weight, dtype=torch.bool)
        for name, weight in context.weights.items()
    }


def random_masks(context: Context, counts: Mapping[str, int]) -> Masks:
    """Uniformly random masks with exact counts, equal on every device."""
    masks = {}
    for name, weight in context.weights.items():
        noise = random(weight.shape, context.generator)
        masks[name] = topk_mask(noise, counts[name]).to(weight.device)
    return masks


def prune(
    scores: Mapping[str, Tensor],
    sparsity: float,
    pattern: Pattern,
    across_layers: bool,
    among: Mapping[str, Tensor] | None = None,
) -> Masks:
    """Masks of the highest scores, at `sparsity` within each tensor or over all.

    With `among`, only weights alive there can stay. Unstructured counts are exact in
    total; other patterns take the nearest count that they can reach in each tensor.

    Raises:
        ValueError: naming the tensor that a pattern does not fit.
    """
    if not isinstance(pattern, Unstructured):
        if across_layers:
            raise ValueError(f"across_layers needs Unstructured, got {pattern}")
        return {
            name: pattern.mask(_restricted(name, score, among), n_active, name)
            for name, score in scores.items()
            for n_active in [pattern.count(tuple(score.shape), sparsity, name)]
        }
    if across_layers:
        counts = global_budget(
            {n: _restricted(n, s, among) for n, s in scores.items()}, sparsity
        )
    else:
        counts = uniform({n: tuple(s.shape) for n, s in scores.items()}, sparsity)
        if among is not None:
            # A smaller total can give one tensor more by its largest remainder (the
            # Alabama paradox), but no tensor can keep more than it has.
            caps = {name: int(among[name].sum()) for name in scores}
            counts = apportion(counts, sum(counts.values()), caps)
    return {
        name: topk_mask(score, counts[name], among[name] if among else None)
        for name, score in scores.items()
    }


def _restricted(name: str, score: Tensor, among: Mapping[str, Tensor] | None) -> Tensor:
    """Scores with absent weights last; a finite score of an alive weight beats them."""
    return score if among is None else score.masked_fill(~among[name], -torch.inf)


def periodic(step: int, begin: int, every: int, end: int | None) -> bool:
    """Whether `step` is one of begin, begin + every, ... and at most `end`."""
    if step < begin or (end is not None and step > end):
        return False
    return (step - begin) % every == 0


def require_sparsity(sparsity: float) -> None:
    """ValueError unless 0 <= sparsity < 1."""
    if not isinstance(sparsity, Real) or not 0 <= sparsity < 1:
        raise ValueError(
            f"sparsity is the fraction of zeros, in [0, 1), got {sparsity!r}"
        )


def require_steps(**counts: int) -> None:
    """ValueError unless every named value is an integer of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} is a count of at least 1, got {value!r}")


def require_step(**steps: int) -> None:
    """ValueError unless every named value is an integer of at least 0."""
    for name, value in steps.items():
        if not isinstance(value, Integral) or value < 0:
            raise ValueError(f"{name} is a step, 0 or later, got {value!r}")


def require_fraction(**fractions: float) -> None:
    """ValueError unless every named value is in [0, 1]."""
    for name, value in fractions.items():
        if not isinstance(value, Real) or not 0 <= value <= 1:
            raise ValueError(f"{name} is a fraction in [0, 1], got {value!r}")


def require_weight(**weights: float) -> None:
    """ValueError unless every named value is a finite number of at least 0."""
    for name, value in weights.items():
        if not isinstance(value, Real) or not 0 <= value < inf:
            raise ValueError(f"{name} weighs a score, 0 or more, got {value!r}")


def discover() -> dict[str, type[Method]]:
    """Every method in `sparsekit/methods/`, by file name, without registration.

    >>> from sparsekit.method import discover
    >>> discover()["rigl"].__name__
    'RigL'
    """
    import sparsekit.methods as package

    return classes_in(package, Method)  # type: ignore[type-abstract]
