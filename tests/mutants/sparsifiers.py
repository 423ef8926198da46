"""Sparsifiers that are broken on purpose, each in one way that a library has been."""

import torch
import torch.distributed as dist

from sparsekit import Sparsifier
from sparsekit.gates import Gate
from sparsekit.losses import LossGradients


def parameters(sparsifier):
    return [(name, w.parameter) for name, w in sparsifier._weights.items()]


class KeepsMoments(Sparsifier):
    """Dropped weights keep their momentum."""

    def _move(self, new, undoable=False):
        for weight in self._weights.values():
            weight.optimizer = torch.optim.SGD(self.model.parameters(), 1.0)
        return super()._move(new, undoable)


class RegrowsStaleValues(Sparsifier):
    """A connection that comes back has the value it had when it went."""

    @torch.no_grad()
    def _move(self, new, undoable=False):
        if not hasattr(self, "stale"):
            self.stale = {n: p.detach().clone() for n, p in parameters(self)}
        grown = {name: new[name] & ~mask for name, mask in self.alive.items()}
        for name, parameter in parameters(self):
            dropped = self.alive[name] & ~new[name]
            self.stale[name][dropped] = parameter.detach()[dropped]
        moved = super()._move(new, undoable)
        for name, parameter in parameters(self):
            parameter[grown[name]] = self.stale[name][grown[name]]
        return moved


class TakesAnyWeights(Sparsifier):
    """Does not ask whether absent weights are zero: what makes others mutants."""

    def before_step(self):
        for weight in self._weights.values():
            weight._version = weight.parameter._version
        super().before_step()


class MasksGradientsOnly(TakesAnyWeights):
    """Takes a zero gradient for a zero weight."""

    @torch.no_grad()
    def _move(self, new, undoable=False):
        values = {n: p.detach().clone() for n, p in parameters(self)}
        moved = super()._move(new, undoable)
        for name, parameter in parameters(self):
            parameter.copy_(values[name])
        return moved

    def after_step(self):
        self._between = False
        self.step += 1


class LetsFrozenDrift(Sparsifier):
    """Freezes by a zero gradient, which momentum and weight decay ignore."""

    @torch.no_grad()
    def after_step(self):
        for weight in self._weights.values():
            weight._alive_gate.apply(weight.parameter)
        self._between = False
        self.step += 1


class RebindsMasks(Sparsifier):
    """Moves make new mask tensors; who holds an old one misses them."""

    def _move(self, new, undoable=False):
        moved = super()._move(new, undoable)
        for weight in self._weights.values():
            weight._alive = weight._frozen.alive = weight._alive.clone()
            weight._alive_gate = Gate(weight._alive)
        return moved


class ForgetsStep(Sparsifier):
    """Resumes with the schedule at its beginning."""

    def load_state_dict(self, state):
        super().load_state_dict({**state, "step": 0})


class ForgetsVisited(Sparsifier):
    """Resumes without the union of past masks."""

    def load_state_dict(self, state):
        super().load_state_dict({**state, "visited": state["alive"]})


class ForgetsRewindPoint(Sparsifier):
    """Resumes with the current weights as those to rewind to."""

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self._rewind = {n: t.clone() for n, t in self._state.tensors().items()}


class LosesRemovedWeights(Sparsifier):
    """What the first masks cleared is lost, though a checkpoint is loaded later."""

    def load_state_dict(self, state):
        for weight in self._weights.values():
            weight._removed = None
        super().load_state_dict(state)


class UsesGlobalRandomState(Sparsifier):
    """Seeds the process, so that everything else draws other numbers."""

    def _context(self, start=False):
        torch.manual_seed(self.seed)
        return super()._context(start)


class ClipsDenseGradient(Sparsifier):
    """Masks the gradient after the optimizer's step, too late for clipping."""

    def before_step(self):
        grads = {n: p.grad for n, p in parameters(self)}
        copies = {n: g.clone() for n, g in grads.items() if g is not None}
        super().before_step()
        for name, parameter in parameters(self):
            if parameter.grad is not None:
                parameter.grad.copy_(copies[name])


class ShowsDenseGradients(Sparsifier):
    """New connections learn from a gradient that sparse training does not have."""

    def before_step(self):
        old = {name: mask.clone() for name, mask in self.alive.items()}
        grads = {n: p.grad.clone() for n, p in parameters(self)}
        super().before_step()
        for name, parameter in parameters(self):
            grown = self.alive[name] & ~old[name]
            if parameter.grad is not None:
                parameter.grad[grown] = grads[name][grown]


class StepsWhenScalerSkips(Sparsifier):
    """Counts a step that GradScaler skipped in a fused optimizer."""

    def attach(self):
        self.optimizer.register_step_pre_hook(lambda *_: self.before_step())
        self.optimizer.register_step_post_hook(lambda *_: self.after_step())
        return self


class ChoosesByRank(TakesAnyWeights):
    """Every process draws its own masks."""

    def _checked(self, new):
        return {name: mask.clone() for name, mask in new.items()}

    def _context(self, start=False):
        context = super()._context(start)
        context.generator.manual_seed(dist.get_rank() if dist.is_initialized() else 0)
        return context


class ShowsLastGradient(Sparsifier):
    """Growth is decided by the last batch alone."""

    def before_step(self):
        self._gathering.clear()
        super().before_step()


class KeepsSum(Sparsifier):
    """Gradients that have decided a move decide the next one too."""

    def _update(self):
        super()._update()
        for name, parameter in parameters(self):
            self._weights[name].summed = parameter.grad.clone()


class SumsMaskedGradients(Sparsifier):
    """The gradient is masked before it is added: absent weights never grow by it."""

    def before_step(self):
        if not self.method.due(self.step):
            for name, parameter in parameters(self):
                parameter.grad.masked_fill_(~self.alive[name], 0)
        super().before_step()


class AliasesGradient(Sparsifier):
    """The sum is the gradient itself, which is masked right after."""

    def before_step(self):
        super().before_step()
        for name, parameter in parameters(self):
            if self._weights[name].summed is not None:
                self._weights[name].summed = parameter.grad


class ForgetsSum(Sparsifier):
    """Resumes without the gradients that were gathered."""

    def load_state_dict(self, state):
        super().load_state_dict({**state, "gradients": {}})


class _Evaluates(LossGradients):
    """Evaluates a loss as one would in a training loop."""

    def __getitem__(self, name):
        parameters = {n: w.parameter for n, w in self._weights.items()}
        with torch.enable_grad():
            loss = self._losses[name](self._model)
            found = torch.autograd.grad(loss, list(parameters.values()))
        return {n: g for n, g in zip(parameters, found, strict=True)}


class LetsLossesTrainNorms(Sparsifier):
    """A loss that is only looked at moves the batch norm's running statistics."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        losses = self.loss_grads._losses
        self.loss_grads = _Evaluates(self.model, self._weights, losses)


class AddsLossesToGradient(Sparsifier):
    """Gradients of losses that are only looked at are left in `grad`."""

    def __init__(self, *args, losses=None, **options):
        def added(name):
            def loss(model):
                value = losses[name](model)
                value.backward(retain_graph=True)
                return value

            return loss

        super().__init__(*args, losses={n: added(n) for n in losses}, **options)
