"""Data removal that is broken on purpose, each in one way."""

import torch

from sparsekit.data_pruning.removal import DataRemoval


class RemovesTheHardest(DataRemoval):
    """The other end of the order."""

    def _easiest(self, n):
        return super()._easiest(len(self))[-n:]


class IgnoresTheTie(DataRemoval):
    """Equal scores leave in the order of the examples, whatever `tie` says."""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.tie = None


class BringsBack(DataRemoval):
    """Chooses among all examples again at each stage's end."""

    def set_epoch(self, epoch):
        if epoch and epoch % self.stage == 0:
            self.kept[:] = True
        super().set_epoch(epoch)


class Truncates(DataRemoval):
    """Rounds what stays down."""

    def n_kept(self, epoch):
        done = min(epoch // self.stage, self.stages)
        return max(1, int(self.n_examples * (1 - self.share * done / self.stages)))


class AllAtOnce(DataRemoval):
    """The whole share at the end of the first stage."""

    def n_kept(self, epoch):
        return super().n_kept(self.stage * self.stages if epoch >= self.stage else 0)


class ForgetsTheStage(DataRemoval):
    """A checkpoint without what the stage has shown so far."""

    def state_dict(self):
        state = super().state_dict()
        return state | {
            k: torch.full_like(state[k], torch.nan) for k in ("own", "other")
        }


class DrawsAnew(DataRemoval):
    """Random removal by torch's global generator."""

    def _generator(self, purpose):
        return torch.Generator().manual_seed(int(torch.randint(2**31, ())))
