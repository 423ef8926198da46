"""Layers that store values train as masked dense ones do, bit for bit.

With a fused optimizer up to rounding: its kernel rounds the last entries of a tensor
otherwise than those before, so a weight's last bit depends on its place among others.
AdamW amplifies a last bit without bound, so these are compared a step at a time.
"""

import torch

from sparsekit.execution.layer import SparseLayer
from sparsekit.method import Method
from sparsekit.parameters import weights
from sparsekit.testing.repetition import check_scaler, resumed
from sparsekit.testing.subject import Subject
from sparsekit.testing.training import FAMILIES, Training, load, require, require_equal


def check_backends(subject: Subject) -> None:
    """A training in values mode equals the masked one, and keeps no dense tensor.

    So do its resumption from a checkpoint of either, hooks, and a skipped step.
    """
    for optimizer in FAMILIES:
        check_same(subject, optimizer)
    check_same(subject, "Adam, amsgrad", moments="mean")
    check_values_resume(subject)
    check_scaler(subject, ["AdamW"], values=True)  # a skipped step leaves no gradient


def check_same(subject: Subject, optimizer: str, moments: str = "zero") -> None:
    """After each step; every other weight is frozen in steps that cannot move one."""
    masked = subject.training(optimizer=optimizer, moments=moments)
    stored = subject.training(optimizer=optimizer, moments=moments, values=True)
    for t in range(subject.steps):
        where = f"step {t} in values mode with {optimizer}"
        for training in (masked, stored):
            freeze_half(training, when=t % 2 == 1 and not subject.method.due(t))
            training.step(t)
        fused = "fused" in optimizer
        found, expected = stored.tensors(), masked.tensors()
        require_equal(found, expected, where, tolerance=1e-4 if fused else 0.0)
        if fused:
            take_over(stored, masked)
        if not gathering(subject.method, t + 1):
            check_nothing_dense(stored, where)


@torch.no_grad()
def take_over(stored: Training, masked: Training) -> None:
    """Makes the state of a training in values mode that of a masked one, to the bit."""
    twins = dict(masked.model.named_parameters())
    for name, held in weights(stored.model).items():
        layer = held if isinstance(held, SparseLayer) else None
        parameter = held.values if isinstance(held, SparseLayer) else held
        states = masked.optimizer.state.get(twins[name], {})
        mine = stored.optimizer.state.get(parameter, {})
        for to, value in [
            (parameter, twins[name]),
            *((mine[k], states[k]) for k in mine),
        ]:
            if layer is not None and value.shape == twins[name].shape:
                value = value.flatten()[layer.positions()]
            to.copy_(value)
    for (_, to), (_, value) in zip(buffers(stored), buffers(masked), strict=True):
        to.copy_(value)


def buffers(training: Training) -> list[tuple[str, torch.Tensor]]:
    """Of layers that both have."""
    own = {
        id(buffer)
        for held in weights(training.model).values()
        if isinstance(held, SparseLayer)
        for buffer in held.buffers()
    }
    return [b for b in training.model.named_buffers() if id(b[1]) not in own]


def gathering(method: Method, step: int) -> bool:
    """Whether gradients of steps before `step` may be kept for an update to come."""
    later = range(step, step + method.gradient_steps - 1)
    return any(method.due(due) for due in later)


def freeze_half(training: Training, when: bool) -> None:
    sparsifier = training.sparsifier
    for name, mask in sparsifier.alive.items():
        odd = torch.arange(mask.numel()).view(mask.shape) % 2 == 1
        sparsifier.set_trainable(name, odd if when else torch.ones_like(odd))


def check_nothing_dense(training: Training, when: str) -> None:
    """Between steps, what belongs to a weight is as long as its values."""
    for name, weight in training.sparsifier._weights.items():
        states = training.optimizer.state.get(weight.parameter, {})
        found = [*vars(weight).values(), weight.parameter.grad, *states.values()]
        sizes = [t.numel() for t in found if isinstance(t, torch.Tensor)]
        allowed = max(weight.n_alive, (weight.numel + 7) // 8)
        require(
            max(sizes) <= allowed,
            f"{when}: {name!r} keeps a tensor of {max(sizes)} entries, but has "
            f"{weight.n_alive} weights alive",
        )


def check_values_resume(subject: Subject) -> None:
    """From any step, and from a checkpoint that a masked training saved."""
    training, masked, saved = (
        subject.training(optimizer="AdamW", values=True),
        subject.training(optimizer="AdamW"),
        {},
    )
    for t in range(subject.steps):
        training.step(t)
        masked.step(t)
        saved[t + 1] = training.save()
        found, expected = (
            packed_masks(load(x.save())["sparsifier"]) for x in (training, masked)
        )
        require_equal(found, expected, f"the checkpoint in values mode, step {t}")
    for cut in range(1, subject.steps):
        again = resumed(subject, "AdamW", load(saved[cut]), order=cut % 3, values=True)
        again.run(cut, subject.steps)
        require_equal(
            again.tensors(),
            training.tensors(),
            f"in values mode, resumed after {cut} of {subject.steps} steps",
        )


def packed_masks(state: dict) -> dict[str, torch.Tensor]:
    return {
        f"{kind} mask of {name}": mask
        for kind in ("alive", "trainable", "visited")
        for name, mask in state[kind].items()
    }
