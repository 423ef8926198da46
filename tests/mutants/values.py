"""Sparsifiers that are broken on purpose for layers that store values."""

from dataclasses import dataclass

from sparsekit import Sparsifier, moments
from sparsekit.dense_gradient import DenseGradient
from sparsekit.masks import pack
from sparsekit.methods.rigl import RigL
from sparsekit.values import ValuesWeight


@dataclass(frozen=True)
class Growing(RigL):
    """Grown weights take part in the step that grows them."""

    replaces_step = False


class InValuesMode(Sparsifier):
    """Drives every layer in values mode through the class `weight`."""

    weight = ValuesWeight

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        for weight in self._weights.values():
            if isinstance(weight, ValuesWeight):
                weight.__class__ = self.weight


class LeavesMoments(InValuesMode):
    """Values move to other places, their moments do not."""

    class weight(ValuesWeight):
        def _carry(self, mask, policy):
            states = list(moments.shaped_state(self.optimizer, self.parameter))
            before = {name: state.clone() for name, state in states}
            super()._carry(mask, policy)
            for name, state in states:
                if state.shape == self.parameter.shape:
                    state.copy_(before[name])


class LeavesGradient(InValuesMode):
    """Values move to other places, their gradient does not."""

    class weight(ValuesWeight):
        def _carry(self, mask, policy):
            before = self.parameter.grad.clone()
            super()._carry(mask, policy)
            if self.parameter.grad.shape == before.shape:
                self.parameter.grad.copy_(before)


class InheritsMoments(InValuesMode):
    """A grown weight has the moments of a neighbour."""

    class weight(ValuesWeight):
        def _carry(self, mask, policy):
            old = self.alive.clone()
            super()._carry(mask, policy)
            grown = (mask & ~old).flatten()[self.layer.positions()]
            for _, state in moments.shaped_state(self.optimizer, self.parameter):
                state[grown] = state[~grown][0]


class LeavesTrainable(InValuesMode):
    """Other weights are frozen after a move."""

    class weight(ValuesWeight):
        def set_trainable(self, mask):
            super().set_trainable(mask.flip(0))


class LetsFrozenDrift(InValuesMode):
    """Freezes by a zero gradient, which momentum and weight decay ignore."""

    class weight(ValuesWeight):
        def after_step(self):
            self._frozen = None


class ForgetsVisited(InValuesMode):
    """Counts the connections of today only."""

    class weight(ValuesWeight):
        def move(self, mask, policy, undoable=False):
            self._visited = pack(mask)
            return super().move(mask, policy, undoable)


class KeepsDenseMask(InValuesMode):
    """Memory that grows with the dense weight."""

    class weight(ValuesWeight):
        def after_step(self):
            super().after_step()
            self.mask = self.alive


class LosesFirstMove(InValuesMode):
    """What the first masks took is lost, though a checkpoint is loaded later."""

    class weight(ValuesWeight):
        def load(self, *masks):
            self._start = None
            super().load(*masks)


class AddsSkippedGradient(InValuesMode):
    """zero_grad does not reach the gradient of absent weights."""

    def _watch(self):
        super()._watch()
        for weight in self._weights.values():
            if isinstance(weight, ValuesWeight) and weight.watcher is not None:
                for handle in weight.watcher._handles:
                    handle.remove()


class ShowsScaledGradient(InValuesMode):
    """A grown weight starts with a gradient that GradScaler has multiplied."""

    class weight(ValuesWeight):
        def _carry(self, mask, policy):
            if self.watcher is not None:
                self.watcher.scale = 1.0
            super()._carry(mask, policy)


class DoublesDenseGradient(InValuesMode):
    """A grown weight starts with twice its gradient."""

    class weight(ValuesWeight):
        def _carry(self, mask, policy):
            if self.watcher is not None:
                self.watcher.scale = 0.5
            super()._carry(mask, policy)


class SeesOwnHalf(InValuesMode):
    """The gradient of absent weights is that of a process, not of all."""

    def _update(self):
        average, DenseGradient.average = DenseGradient.average, lambda self: None
        try:
            super()._update()
        finally:
            DenseGradient.average = average


class MovesLate(InValuesMode):
    """Asks for the gradient of absent weights a step too late."""

    def _watch(self):
        self.step -= 1
        super()._watch()
        self.step += 1


class WatchesTheLastStepOnly(InValuesMode):
    """The gradient of absent weights is computed in the step that moves, not before."""

    def _watch(self):
        for weight in self._weights.values():
            weight.watch(self.method.due(self.step))


class KeepsSum(InValuesMode):
    """A dense sum stays after the move that it was for."""

    def _update(self):
        super()._update()
        for weight in self._weights.values():
            if isinstance(weight, ValuesWeight):
                weight.summed = weight.layer.scatter(weight.parameter.grad)
