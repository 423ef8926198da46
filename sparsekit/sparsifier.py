"""The one stateful class: it owns weights, gradients and moments of masked tensors."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsekit import checkpoint
from sparsekit import moments as moment_policy
from sparsekit.checkpoint import Checkpoint
from sparsekit.gates import Gate
from sparsekit.masks import pack, unpack
from sparsekit.method import Context, Masks, Method, Objective
from sparsekit.parameters import Params, select
from sparsekit.restoration import Frozen, Removed


class Sparsifier:
    """Trains a plain model with the connections that a method chooses.

    Use two lines around the optimizer step, or `attach()` once:

        loss.backward()
        sparsifier.before_step()  # moves connections if due, masks the gradient
        optimizer.step()          # clip between these two lines, if you clip
        sparsifier.after_step()   # absent weights are exactly zero

    Parameter names, the forward pass and the optimizer stay the user's. A weight that
    is dropped becomes zero and loses its moments; one that is grown starts at zero with
    moments by the policy; its first update is in the same step if the method needs the
    dense gradient, else in the next. One dropped and grown in the same move keeps both.

    Args:
        model: any module. Build the sparsifier after moving the model to its device.
        optimizer: must hold every masked parameter.
        method: where weights live, see `sparsekit.methods`.
        params: names of the parameters to mask, or a function (name, parameter) ->
            bool. Default: every trainable parameter with at least 2 dimensions outside
            `nn.Embedding`; biases and norms stay dense.
        moments: "zero" (the papers' rule) or "mean" (second moments of grown weights
            start at the mean of the layer).
        seed: of the method's random choices. Same seed, same masks on every device.
        objective: model -> scalar, for methods that score weights before training
            (GraSP: the loss of a batch; SynFlow: the summed output for all-ones input).

    Attributes:
        alive: {name: bool mask}, True = the weight exists.
        trainable: {name: bool mask}, subset of alive, True = the weight may change.
            Change it in place (copy_, &=) to freeze weights.
        visited: {name: bool mask}, True = the weight existed at some time.
        step: optimizer steps completed.

    With torch.distributed initialised, masks are those of rank 0; gradients must be
    averaged before `before_step`, as DistributedDataParallel does.

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
        moments: str = "zero",
        seed: int = 0,
        objective: Callable[[nn.Module], Tensor] | None = None,
    ):
        if not isinstance(method, Method):
            raise TypeError(
                f"method must be a sparsekit.method.Method, got {method!r}; a class "
                "needs its arguments: RigL(sparsity=0.9)"
            )
        if moments not in moment_policy.POLICIES:
            raise ValueError(
                f"moments must be one of {moment_policy.POLICIES}, got {moments!r}"
            )
        if not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed must be an integer of at least 0, got {seed!r}")
        self.model, self.optimizer, self.method = model, optimizer, method
        self.moments, self.seed, self.step = moments, int(seed), 0
        self._objective = Objective(model, objective)
        self._parameters = select(model, optimizer, params)
        self.alive = _masks(self._parameters, True)
        self.trainable = _masks(self._parameters, True)
        self.visited = _masks(self._parameters, False)
        self._alive_gates = {n: Gate(m) for n, m in self.alive.items()}
        self._trainable_gates = {n: Gate(m) for n, m in self.trainable.items()}
        self._frozen = {n: Frozen(m, self.trainable[n]) for n, m in self.alive.items()}
        self._rewind: dict[str, Tensor] | None = None
        self._between = False
        self._skipped = False
        self._handles: list[Any] = []

        new = self._checked(method.start(self._context(start=True)))
        self._removed = Removed()
        for name, parameter in self._parameters.items():
            self._removed.add(parameter, ~new[name])
            for _, moment in moment_policy.shaped_state(optimizer, parameter):
                self._removed.add(moment, ~new[name])
        self._move(new)
        self._visit()
        self._removed.seal()

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
        self._require_maskable()
        if all(p.grad is None for p in self._parameters.values()):
            raise RuntimeError(
                "no masked parameter has a gradient: call before_step after "
                "loss.backward(); closures (optimizer.step(closure)) are not supported"
            )
        if self.method.due(self.step):
            new = self._checked(self.method.update(self._context()))
            if not self.method.needs_dense_gradient:
                # Training that stores connections only has no gradient for new ones.
                for name, parameter in self._parameters.items():
                    if parameter.grad is not None:
                        self._alive_gates[name].apply(parameter.grad)
            if self._move(new):
                self._visit()
                if self.method.rewind_to is not None:
                    self._restore_rewind_point()
                if self.method.replaces_step:
                    self.optimizer.zero_grad(set_to_none=True)
        if self.method.rewind_to == self.step and self._rewind is None:
            self._rewind = {n: t.clone() for n, t in self._model_tensors()}
        self._removed = Removed()
        for name, parameter in self._parameters.items():
            self._frozen[name].save(parameter)
            if parameter.grad is not None:
                self._trainable_gates[name].apply(parameter.grad)
        self._between = True

    @torch.no_grad()
    def after_step(self) -> None:
        """Makes absent weights zero and puts frozen ones back. Call after the step."""
        if not self._between:
            raise RuntimeError("after_step was called without before_step")
        for name, parameter in self._parameters.items():
            self._alive_gates[name].apply(parameter)
            self._frozen[name].restore(parameter)
        self._between = False
        self.step += 1

    def attach(self) -> "Sparsifier":
        """Runs the two lines as hooks of the optimizer's step. Returns itself.

        Steps that a GradScaler skips are skipped here too. Clipping then happens before
        masking and sees the norm of the dense gradient, which is larger.
        """
        if not self._handles:
            self._handles = [
                self.optimizer.register_step_pre_hook(self._before_hook),
                self.optimizer.register_step_post_hook(self._after_hook),
            ]
        return self

    def detach(self) -> None:
        """Removes the hooks of `attach`."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def finalize(self) -> Masks:
        """Removes the hooks and returns copies of the masks; the model stays plain."""
        self.detach()
        return {name: mask.clone() for name, mask in self.alive.items()}

    # ---- what can be read --------------------------------------------------------

    @property
    def density(self) -> float:
        """Share of alive weights over all masked tensors."""
        return _share(self.alive)

    @property
    def exploration(self) -> float:
        """In-time over-parameterisation R_s = |union over time of masks| / N.

        Source: Liu et al. 2021 (ITOP).
        """
        return _share(self.visited)

    # ---- saving ------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Masks as bits, the step and the seed: loads with `weights_only=True`."""
        if self._between:
            raise RuntimeError("save after after_step, not between the two lines")
        return Checkpoint(
            self.step,
            self.seed,
            self.alive,
            self.trainable,
            self.visited,
            self._rewind,
        ).state_dict()

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over masks, step and seed. Nothing has changed if it raises.

        Load the model and the optimizer as well; the order does not matter.

        Raises:
            ValueError: for a checkpoint of another model, or a damaged one.
        """
        self._require_maskable()
        tensors = dict(self._model_tensors())
        loaded = checkpoint.read(state, self.alive, tensors, self.method.rewind_to)
        self._removed.restore()  # if the model was loaded before we were built
        for name, parameter in self._parameters.items():
            self.alive[name].copy_(loaded.alive[name])
            self.trainable[name].copy_(loaded.trainable[name])
            self.visited[name].copy_(loaded.visited[name])
            self._alive_gates[name].apply(parameter)
            moment_policy.clear(self.optimizer, parameter, ~self.alive[name])
        self.step, self.seed = loaded.step, loaded.seed
        self._rewind = None if loaded.rewind is None else dict(loaded.rewind)
        self._between = False

    # ---- the parts ---------------------------------------------------------------

    def _require_maskable(self) -> None:
        for name, parameter in self._parameters.items():
            owner, _, attribute = name.rpartition(".")
            held = self.model.get_submodule(owner)._parameters.get(attribute)
            device = self.alive[name].device
            if held is not None and held.device != device:
                raise ValueError(
                    f"{name!r} is on {held.device}, its mask on {device}: build the "
                    "optimizer and the Sparsifier after model.to(device), then "
                    "load_state_dict to keep the masks"
                )
            if held is not parameter:
                raise ValueError(
                    f"{name!r} was replaced in the model since the Sparsifier was "
                    "built: change parameters in place (load_state_dict without "
                    "assign=True), or build the optimizer and the Sparsifier anew"
                )
            if parameter.grad is not None and parameter.grad.layout != torch.strided:
                raise TypeError(
                    f"the gradient of {name!r} is {parameter.grad.layout}; use dense "
                    "gradients (nn.Embedding(..., sparse=False))"
                )

    def _context(self, start: bool = False) -> Context:
        for name, parameter in self._parameters.items():
            _require_finite(f"weight {name!r}", parameter, self.step)
        scale = getattr(self.optimizer, "grad_scale", None)
        grads: dict[str, Tensor | None] = {}
        for name, parameter in self._parameters.items():
            grad = None if start else parameter.grad
            if grad is not None:
                grad = grad.detach() if scale is None else grad.detach() / scale
                if not self.method.needs_dense_gradient:
                    grad = grad.masked_fill(~self.alive[name], 0)
                _require_finite(f"gradient of {name!r}", grad, self.step)
            grads[name] = grad
        moment = 0 if start else self.step + 1
        # torch's CPU generator uses 32 bits of a seed, so (seed, step) is hashed.
        mixed = np.random.SeedSequence((self.seed, moment)).generate_state(1)[0]
        return Context(
            step=self.step,
            weights={n: p.detach() for n, p in self._parameters.items()},
            grads=grads,
            masks=self.alive,
            visited=self.visited,
            generator=torch.Generator().manual_seed(int(mixed)),
            objective=self._objective,
            state=dict(self._model_tensors()),
        )

    def _checked(self, new: Masks) -> Masks:
        """The method's answer, validated, and equal on every process."""
        who = type(self.method).__name__
        if not isinstance(new, Mapping):
            raise TypeError(f"{who} must return {{name: bool mask}}, got {new!r}")
        if new.keys() != self.alive.keys():
            wrong = sorted(new.keys() ^ self.alive.keys())
            raise ValueError(f"{who} must return one mask a weight; differs in {wrong}")
        for name, old in self.alive.items():
            mask = new[name]
            if not isinstance(mask, Tensor):
                raise TypeError(f"{who} must return a bool tensor for {name!r}")
            if mask.dtype != torch.bool or mask.shape != old.shape:
                raise ValueError(
                    f"{who} must return a bool mask of shape {tuple(old.shape)} for "
                    f"{name!r}, got {mask.dtype} {tuple(mask.shape)}"
                )
            frozen = old & ~self.trainable[name]
            if (frozen & ~mask.to(old.device)).any():
                raise ValueError(
                    f"{who} drops frozen weights of {name!r}: exclude it through "
                    "params, or set trainable to True there first"
                )
        new = {n: new[n].to(mask.device) for n, mask in self.alive.items()}
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            new = {name: _from_rank_0(mask) for name, mask in new.items()}
        return new

    @torch.no_grad()
    def _move(self, new: Masks) -> bool:
        """Applies new masks to masks, weights and moments, in place."""
        moved = False
        for name, parameter in self._parameters.items():
            old = self.alive[name]
            grown, dropped = new[name] & ~old, old & ~new[name]
            if not (grown.any() or dropped.any()):
                continue
            moved = True
            survived = old & new[name]
            old.copy_(new[name])
            self.trainable[name].logical_or_(grown).logical_and_(old)
            parameter.masked_fill_(dropped | grown, 0)
            moment_policy.clear(self.optimizer, parameter, ~survived)
            if self.moments == "mean":
                moment_policy.fill_mean(self.optimizer, parameter, grown, survived)
        return moved

    def _visit(self) -> None:
        for name, mask in self.alive.items():
            self.visited[name].logical_or_(mask)

    def _restore_rewind_point(self) -> None:
        assert self._rewind is not None
        for name, tensor in self._model_tensors():
            old = self._rewind[name]
            if name in self.alive:
                frozen = self.alive[name] & ~self.trainable[name]
                old = torch.where(frozen, tensor, old)
            tensor.copy_(old)
        for name, parameter in self._parameters.items():
            self._alive_gates[name].apply(parameter)
        moment_policy.reset(self.optimizer)

    def _model_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.model.named_parameters():
            yield name, tensor.detach()
        yield from self.model.named_buffers()

    def _before_hook(self, _: Optimizer, args: tuple, kwargs: dict) -> None:
        if any(callable(value) for value in (*args, *kwargs.values())):
            raise ValueError(
                "optimizer.step(closure) makes its gradient inside the step, too late "
                "to mask: call loss.backward() first, then optimizer.step()"
            )
        # Fused optimizers get GradScaler's verdict and skip inside their kernel.
        found_inf = getattr(self.optimizer, "found_inf", None)
        self._skipped = found_inf is not None and bool(found_inf > 0)
        if not self._skipped:
            self.before_step()

    def _after_hook(self, _: Optimizer, args: tuple, kwargs: dict) -> None:
        if not self._skipped:
            self.after_step()


def _masks(parameters: Mapping[str, Tensor], value: bool) -> Mapping[str, Tensor]:
    """A mask a parameter, in a mapping that refuses others in their place."""
    return MappingProxyType(
        {
            name: torch.full(p.shape, value, dtype=torch.bool, device=p.device)
            for name, p in parameters.items()
        }
    )


def _share(masks: Mapping[str, Tensor]) -> float:
    total = sum(mask.numel() for mask in masks.values())
    return sum(int(mask.sum()) for mask in masks.values()) / total


def _require_finite(what: str, tensor: Tensor, step: int) -> None:
    if not torch.isfinite(tensor).all():
        raise ValueError(
            f"{what} has NaN or infinite entries in step {step}, so connections cannot "
            "be chosen; nothing was changed. Skip the step, or use attach() with a "
            "GradScaler, which skips it"
        )


def _from_rank_0(mask: Tensor) -> Tensor:
    packed = pack(mask)
    dist.broadcast(packed, src=0)
    return unpack(packed, mask.shape)
