"""Two trainings that must be the same, bit for bit."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsekit.testing.subject import Subject
from sparsekit.testing.training import Training, load, loss_of, require, require_equal


def check_seed(subject: Subject) -> None:
    """One seed gives one result; the global random state is neither read nor moved."""
    results: list[dict[str, Tensor]] = []
    with torch.random.fork_rng(devices=[]):
        for elsewhere in (1, 2):
            torch.manual_seed(elsewhere)
            before = torch.get_rng_state()
            results.append(subject.training().run(subject.steps).tensors())
            require(
                torch.get_rng_state().equal(before),
                "the global random state was used: draw from context.generator, such "
                "as with sparsekit.scores.random",
            )
    first, second = results
    require_equal(second, first, "the same seed gave different results in two runs")


def check_resume(subject: Subject) -> None:
    """Saved after any step, loaded into a new model, it goes on as if nothing was.

    Model and optimizer are loaded before the sparsifier is built, before it is loaded
    or after it, in turn.
    """
    for optimizer in ("momentum", "AdamW"):
        training, saved = subject.training(optimizer=optimizer), {}
        for t in range(subject.steps):
            training.step(t)
            saved[t + 1] = training.save()
        for cut in range(1, subject.steps):
            again = resumed(subject, optimizer, load(saved[cut]), order=cut % 3)
            require(
                again.sparsifier.step == cut,
                f"resumed after {cut} steps, the sparsifier is at step "
                f"{again.sparsifier.step}",
            )
            again.run(cut, subject.steps)
            require_equal(
                again.tensors(),
                training.tensors(),
                f"resumed after {cut} of {subject.steps} steps with {optimizer}, it "
                "differs from a training without a break",
            )


def resumed(
    subject: Subject, optimizer: str, state: dict, order: int, values: bool = False
) -> Training:
    """A new training that has taken over a checkpoint."""
    loaded = state if order == 0 else None
    training = subject.training(
        optimizer=optimizer, init=99, loaded=loaded, values=values
    )
    if order == 1:
        training.model.load_state_dict(state["model"])
        training.optimizer.load_state_dict(state["optimizer"])
    training.sparsifier.load_state_dict(state["sparsifier"])
    if order == 2:
        training.model.load_state_dict(state["model"])
        training.optimizer.load_state_dict(state["optimizer"])
    return training


def check_forms(subject: Subject) -> None:
    """The two lines and `attach()` do the same."""
    for optimizer in ("momentum", "AdamW, fused"):
        explicit = subject.training(optimizer=optimizer).run(subject.steps)
        attached = subject.training(optimizer=optimizer, attached=True)
        require_equal(
            attached.run(subject.steps).tensors(),
            explicit.tensors(),
            f"attach() differs from the two lines with {optimizer}",
        )


def check_dense(subject: Subject) -> None:
    """At sparsity 0 the training is that of a model without a sparsifier.

    Nothing to check if the method refuses a sparsity of 0 with a ValueError.
    """
    try:
        method = subject.make(0.0)
    except ValueError:
        return
    if any(method.sparsity_at(step) > 0 for step in range(subject.steps)):
        return
    for optimizer in ("momentum", "AdamW"):
        sparse = subject.training(method, optimizer=optimizer).run(subject.steps)
        dense = Training(None, optimizer=optimizer).run(subject.steps)
        found = {n: t for n, t in sparse.tensors().items() if " mask of " not in n}
        require_equal(
            found, dense.tensors(), f"sparsity 0 differs from dense with {optimizer}"
        )


def check_gradients(subject: Subject) -> None:
    """Without `needs_dense_gradient`, gradients of absent weights have no influence."""
    if subject.method.needs_dense_gradient:
        return
    honest, blind = subject.training(), subject.training()
    for t in range(subject.steps):
        honest.step(t)
        blind.gradient(t)
        for name, parameter in blind.model.named_parameters():
            if name in blind.sparsifier.alive and parameter.grad is not None:
                parameter.grad[~blind.sparsifier.alive[name]] = 1000.0
        blind.sparsifier.before_step()
        blind.update()
        blind.sparsifier.after_step()
    require_equal(
        blind.tensors(),
        honest.tensors(),
        f"{type(subject.method).__name__} has needs_dense_gradient = False, but with "
        "another gradient of absent weights",
    )


def check_scaler(
    subject: Subject,
    optimizers: Sequence[str] = ("momentum", "AdamW", "AdamW, fused"),
    values: bool = False,
) -> None:
    """GradScaler: a step skipped for an infinite gradient is as if it had not been.

    The scale is a power of two, so the result equals that without a scaler exactly.
    """
    due = [t for t in range(1, subject.steps - 1) if subject.method.due(t)]
    for optimizer in optimizers:
        for skipped in {1, *due[:1]}:
            scaled = subject.training(optimizer=optimizer, attached=True, values=values)
            run_scaled(scaled, subject.steps, skipped)
            plain = subject.training(optimizer=optimizer, values=values)
            for t in range(subject.steps):
                if t != skipped:
                    plain.step(t)
            require_equal(
                scaled.tensors(buffers=False),
                plain.tensors(buffers=False),
                f"{'in values mode, ' if values else ''}GradScaler with {optimizer} "
                f"that skips step {skipped}",
            )


def run_scaled(training: Training, steps: int, skipped: int) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for t in range(steps):
        training.optimizer.zero_grad()
        loss = loss_of(training.model, t)
        scaler.scale(loss * float("inf") if t == skipped else loss).backward()
        before = training.tensors(buffers=False)
        scaler.step(training.optimizer)
        scaler.update()
        if t == skipped:
            require_equal(
                training.tensors(buffers=False), before, f"skipped step {t} changed it"
            )
