"""The one stateful class: it owns weights, gradients and moments of masked tensors."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsekit import checkpoint
from sparsekit import moments as moment_policy
from sparsekit.answer import checked, require_finite, require_method
from sparsekit.checkpoint import KINDS, Checkpoint
from sparsekit.dense_gradient import collect, is_distributed
from sparsekit.execution import blocked
from sparsekit.execution.layer import SparseLayer
from sparsekit.gathering import Gathering
from sparsekit.lazy import Lazy
from sparsekit.losses import Loss, LossGradients
from sparsekit.masks import pack
from sparsekit.method import Context, Masks, Method, Objective
from sparsekit.model_state import ModelState
from sparsekit.parameters import Params, select, unwrapped
from sparsekit.step_hooks import StepHooks
from sparsekit.values import ValuesWeight, require_equal_structure
from sparsekit.weights import MaskedWeight, Weight


class Sparsifier:
    """Trains a model with the connections that a method chooses.

    Use two lines around the optimizer step, or `attach()` once:

        loss.backward()
        sparsifier.before_step()  # moves connections if due, masks the gradient
        optimizer.step()          # clip between these two lines, if you clip
        sparsifier.after_step()   # absent weights are exactly zero

    Parameter names, the forward pass and the optimizer stay the user's. Weights are
    dense parameters, which are masked, or layers of `sparsekit.execution` that store
    what is alive only; both go by the name of the dense weight. A weight that is
    dropped becomes zero and loses its moments; one that is grown starts at zero with
    moments by the policy; its first update is in the same step if the method needs the
    dense gradient, else in the next. One dropped and grown in the same move keeps both.

    Args:
        model: any module; of torch.compile and DistributedDataParallel the one inside,
            whose names have no prefix. Build the sparsifier after moving the model to
            its device and loading its weights.
        optimizer: must hold every masked parameter.
        method: where weights live, see `sparsekit.methods`; different sparsities by
            its allocation, see `sparsekit.allocation.by_layer`.
        params: names of the parameters to mask, or a function (name, parameter) ->
            bool; a module's name stands for what is masked in it by default. Default:
            every trainable parameter with at least 2 dimensions, except those of
            embeddings and norms, and those of shape (1, ...) that belong to none of
            torch's layers: positions and class tokens.
        exclude: names of parameters or modules that stay dense.
        moments: "zero" (the papers' rule) or "mean" (second moments of grown weights
            start at the mean of the layer).
        seed: of the method's random choices. Same seed, same masks on every device.
        objective: model -> scalar, for methods that score weights before training
            (GraSP: the loss of a batch; SynFlow: the summed output for all-ones input).
        losses: {name: model -> scalar, or None if there is nothing to evaluate}, for
            methods that score weights by gradients of their own in the steps that move
            connections (TDM: "current" and "buffer").

    Attributes:
        alive: {name: bool mask}, True = the weight exists.
        trainable: {name: bool mask}, subset of alive, True = the weight may change;
            `set_trainable` freezes weights.
        visited: {name: bool mask}, True = the weight existed at some time.
        grads: {name: gradient, or None}, of alive weights, zeros for absent ones.
        loss_grads: {loss: {name: gradient}}, the same of `losses`; a backward pass for
            every reading.
        step: optimizer steps completed.

    Masks of dense parameters are changed in place: who holds one sees the moves. Those
    of a SparseLayer are made when they are read, and cannot be written to.

    With torch.distributed initialised, masks are those of rank 0; gradients must be
    averaged before `before_step`, as DistributedDataParallel does. It keeps the sizes
    of its parameters: wrap SparseLayers after the Sparsifier was built, and anew after
    a method changed their number of weights.

    A method that needs the gradient of absent weights gets it from a SparseLayer in the
    steps that move connections. There, forward and backward must both run between the
    `after_step` before and `before_step`. Micro-batches add up, `zero_grad` starts
    anew, before the forward pass or after it.

    >>> import torch
    >>> from sparsekit import Sparsifier
    >>> from sparsekit.methods.rigl import RigL
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Linear(20, 10)
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> sparsifier = Sparsifier(model, optimizer, RigL(sparsity=0.9, every=2, end=9))
    >>> for _ in range(10):
    ...     loss = model(torch.randn(8, 20)).square().mean()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     sparsifier.before_step()
    ...     optimizer.step()
    ...     sparsifier.after_step()
    >>> int(model.weight.count_nonzero()), sparsifier.density
    (20, 0.1)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        method: Method,
        *,
        params: Params | None = None,
        exclude: Iterable[str] = (),
        moments: str = "zero",
        seed: int = 0,
        objective: Callable[[nn.Module], Tensor] | None = None,
        losses: Mapping[str, Loss] | None = None,
    ):
        require_method(method)
        moment_policy.require_policy(moments)
        if not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed must be an integer of at least 0, got {seed!r}")
        model = unwrapped(model)
        self.model, self.optimizer, self.method = model, optimizer, method
        self.moments, self.seed, self.step = moments, int(seed), 0
        self._objective = Objective(model, objective)
        self._weights: dict[str, Weight] = {
            name: ValuesWeight(name, held, optimizer)
            if isinstance(held, SparseLayer)
            else MaskedWeight(name, held, optimizer)
            for name, held in select(model, optimizer, params, exclude).items()
        }
        self._shapes = {name: weight.shape for name, weight in self._weights.items()}
        self._state = ModelState(model, self._weights)
        self.grads = self._each(lambda weight: weight.gradient(dense=False))
        self.loss_grads = LossGradients(model, self._weights, losses or {})
        self._gathering = Gathering(
            self._weights, optimizer, method.needs_dense_gradient
        )
        self.alive = self._each(lambda weight: weight.alive)
        self.trainable = self._each(lambda weight: weight.trainable)
        self.visited = self._each(lambda weight: weight.visited)
        self._rewind: dict[str, Tensor] | None = None
        self._between = False
        self._hooks: StepHooks | None = None
        new = self._checked(method.start(self._context(start=True)))
        self._move(new, undoable=True)
        self._watch()

    # ---- the two lines -----------------------------------------------------------

    @torch.no_grad()
    def before_step(self) -> None:
        """Moves connections if the method is due, then masks the gradient.

        Call after `loss.backward()` and before clipping and `optimizer.step()`. Nothing
        has changed if it raises.
        """
        if self._between:
            raise RuntimeError(
                "before_step was called twice without after_step; use either the two "
                "lines or attach(), not both"
            )
        weights = self._weights.values()
        for weight in weights:
            weight.require_held(self.model)
            weight.require_usable()
        if all(weight.parameter.grad is None for weight in weights):
            raise RuntimeError(
                "no masked parameter has a gradient: call before_step after "
                "loss.backward(); closures (optimizer.step(closure)) are not "
                "supported. If another Sparsifier of this optimizer took the step for "
                "a move, as RigL's does, let one hold all layers, with "
                "RigL(..., allocation=by_layer({name: sparsity}))"
            )
        if self.method.due(self.step):
            self._update()
        elif self._gathers():
            self._collect()
            self._gathering.add(partial(require_finite, self.step))
        if self.method.rewind_to == self.step and self._rewind is None:
            self._rewind = {n: t.clone() for n, t in self._state.tensors().items()}
        for weight in weights:
            weight.before_step()
        self._between = True

    @torch.no_grad()
    def after_step(self) -> None:
        """Makes absent weights zero and puts frozen ones back. Call after the step."""
        if not self._between:
            raise RuntimeError("after_step was called without before_step")
        for weight in self._weights.values():
            weight.after_step()
        self._between = False
        self.step += 1
        self._watch()

    def attach(self) -> "Sparsifier":
        """Runs the two lines as hooks of the optimizer's step. Returns itself.

        Steps that a GradScaler skips are skipped here too. Clipping then happens before
        masking and sees the norm of the dense gradient, which is larger.
        """
        if self._hooks is None:
            self._hooks = StepHooks(self.optimizer, self.before_step, self.after_step)
        return self

    def detach(self) -> None:
        """Removes the hooks of `attach`."""
        if self._hooks is not None:
            self._hooks.remove()
        self._hooks = None

    def finalize(self) -> Masks:
        """Removes the hooks and returns copies of the masks; the model stays plain."""
        self.detach()
        for weight in self._weights.values():
            weight.watch(False)
        return {name: mask.clone() for name, mask in self.alive.items()}

    @torch.no_grad()
    def set_trainable(self, name: str, mask: Tensor) -> None:
        """Alive weights of `name` may change where `mask` is True; others are frozen.

        Frozen weights keep their bits and may not be dropped; weights grown later are
        trainable.

        Args:
            name: of a weight, as in `alive`.
            mask: bool, shape of the dense weight; all True thaws.
        """
        if name not in self._weights:
            raise ValueError(
                f"no weight {name!r}; there are {', '.join(self._weights)}"
            )
        weight = self._weights[name]
        if mask.dtype != torch.bool or tuple(mask.shape) != weight.shape:
            raise ValueError(
                f"trainable of {name!r} must be a bool mask of shape {weight.shape}, "
                f"got {mask.dtype} {tuple(mask.shape)}"
            )
        weight.set_trainable(mask)

    def set_method(self, method: Method) -> None:
        """From now on `method` decides where weights live; nothing moves by this call.

        For training in phases, such as tasks that come one after the other. Step count,
        masks and moments go on, gradients gathered for a move are forgotten, and
        `method.start` is not called. Before loading a checkpoint, set the method that
        was in charge when it was saved.

        Raises:
            RuntimeError: between `before_step` and `after_step`.
            ValueError: for a method that rewinds to a step that is past.
        """
        require_method(method)
        if self._between:
            raise RuntimeError("set the method after after_step, not between the lines")
        if method.rewind_to is not None and method.rewind_to < self.step:
            raise ValueError(
                f"{method} goes back to step {method.rewind_to}, which is past: this "
                f"is step {self.step}"
            )
        self.method, self._rewind = method, None
        self._gathering.clear()
        self._gathering.dense = method.needs_dense_gradient
        self._watch()

    # ---- what can be read --------------------------------------------------------

    @property
    def density(self) -> float:
        """Share of alive weights over all masked tensors."""
        weights = self._weights.values()
        return sum(w.n_alive for w in weights) / sum(w.numel for w in weights)

    @property
    def exploration(self) -> float:
        """In-time over-parameterisation R_s = |union over time of masks| / N.

        Source: Liu et al. 2021 (ITOP).
        """
        weights = self._weights.values()
        return sum(w.n_visited for w in weights) / sum(w.numel for w in weights)

    # ---- saving ------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Masks as bits, step, seed and gradients: loads with `weights_only=True`."""
        if self._between:
            raise RuntimeError("save after after_step, not between the two lines")
        packed = {
            kind: {n: pack(mask) for n, mask in getattr(self, kind).items()}
            for kind in KINDS
        }
        sums = self._gathering.state()
        return Checkpoint(
            self.step, self.seed, self._shapes, packed, self._rewind, sums
        ).state_dict()

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over masks, step, seed and gradients. Nothing has changed if it raises.

        Load the model and the optimizer as well; the order does not matter. Masks of
        dense parameters and of SparseLayers are saved in the same form.

        Raises:
            ValueError: for a checkpoint of another model, or a damaged one.
        """
        for weight in self._weights.values():
            weight.require_held(self.model)
        tensors, rewind_to = self._state.tensors(), self.method.rewind_to
        loaded = checkpoint.read(state, self._shapes, tensors, rewind_to)
        for name, weight in self._weights.items():
            weight.load(*(loaded.mask(k, name).to(weight.device) for k in KINDS))
        self._gathering.load(loaded.gradients)
        self.step, self.seed = loaded.step, loaded.seed
        self._rewind = None if loaded.rewind is None else dict(loaded.rewind)
        self._between = False
        self._watch()

    # ---- the parts ---------------------------------------------------------------

    def _each(self, read: Callable[[Weight], Any]) -> Mapping[str, Any]:
        return Lazy({n: partial(read, weight) for n, weight in self._weights.items()})

    def _gathers(self) -> bool:
        """Whether an update to come, or one in this step, sees this step's gradient."""
        end = self.step + self.method.gradient_steps
        return any(self.method.due(step) for step in range(self.step, end))

    def _watch(self) -> None:
        """Has the gradient of absent weights computed, where only a layer can."""
        watched = self.method.needs_dense_gradient and self._gathers()
        for weight in self._weights.values():
            weight.watch(watched)

    def _collect(self) -> None:
        """Has gradients of absent weights agree with those that the optimizer holds."""
        stored = [w for w in self._weights.values() if isinstance(w, ValuesWeight)]
        if is_distributed():
            require_equal_structure(stored)
        if self.method.needs_dense_gradient:
            collect([w.watcher for w in stored if w.watcher is not None])

    def _update(self) -> None:
        """Asks the method where weights live, and moves them."""
        self._collect()
        blocked.release()  # of activations: what chooses needs memory for itself
        new = self._checked(self.method.update(self._context()))
        self._gathering.clear()
        if not self.method.needs_dense_gradient:
            # Training that stores connections only has no gradient for new ones.
            for weight in self._weights.values():
                weight.hide_absent()
        if self._move(new):
            if self.method.rewind_to is not None:
                assert self._rewind is not None
                self._state.restore(self._rewind)
                moment_policy.reset(self.optimizer)
            if self.method.replaces_step:
                self.optimizer.zero_grad(set_to_none=True)

    def _context(self, start: bool = False) -> Context:
        weights = self._each(lambda weight: weight.dense())
        grads = self._each((lambda _: None) if start else self._gathering.total)
        for name, weight in self._weights.items():
            require_finite(self.step, f"weight {name!r}", weight.parameter)
        for name, grad in grads.items():
            require_finite(self.step, f"gradient of {name!r}", grad)
        moment = 0 if start else self.step + 1
        # torch's CPU generator uses 32 bits of a seed, so (seed, step) is hashed.
        mixed = np.random.SeedSequence((self.seed, moment)).generate_state(1)[0]
        return Context(
            step=self.step,
            weights=weights,
            grads=grads,
            masks=self.alive,
            visited=self.visited,
            generator=torch.Generator().manual_seed(int(mixed)),
            objective=self._objective,
            state=self._state.tensors(),
            loss_grads=self.loss_grads,
        )

    def _checked(self, new: Masks) -> Masks:
        return checked(type(self.method).__name__, new, self._weights)

    @torch.no_grad()
    def _move(self, new: Masks, undoable: bool = False) -> bool:
        """Applies new masks to masks, weights and moments; whether one has moved."""
        moved = [
            weight.move(new[name], self.moments, undoable)
            for name, weight in self._weights.items()
        ]
        return any(moved)
