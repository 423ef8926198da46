"""What holds in every step: counts, zeros, moves, frozen weights."""

import torch
from torch import Tensor, nn

from sparsekit.masks import count_active
from sparsekit.method import Method
from sparsekit.testing.subject import Subject, Watched
from sparsekit.testing.training import OPTIMIZERS, Training, require


def check_form(subject: Subject) -> None:
    """A frozen dataclass without tensors, whose clock is a pure function."""
    method = subject.method
    who = type(method).__name__
    require(isinstance(method, Method), f"{who} must subclass sparsekit.method.Method")
    frozen = getattr(getattr(method, "__dataclass_params__", None), "frozen", False)
    require(frozen, f"{who} must be a @dataclass(frozen=True)")
    for name, value in vars(method).items():
        require(
            not isinstance(value, (Tensor, torch.Generator, nn.Module)),
            f"{who}.{name} is a {type(value).__name__}: a method holds settings only; "
            "the Sparsifier keeps and saves all state",
        )
    for step in range(subject.steps):
        due, sparsity = method.due(step), method.sparsity_at(step)
        require(isinstance(due, bool), f"{who}.due({step}) must be a bool, got {due!r}")
        require(
            isinstance(sparsity, float) and 0 <= sparsity < 1,
            f"{who}.sparsity_at({step}) must be a float in [0, 1), got {sparsity!r}",
        )
    for wrong in (-0.1, 1.0, 1.5, float("nan")):
        try:
            subject.make(wrong)
        except ValueError:
            continue
        raise AssertionError(
            f"{who}(sparsity={wrong}) must raise a ValueError: call "
            "sparsekit.method.require_sparsity in __post_init__"
        )


def check_steps(subject: Subject, optimizer: str, clip: float | None = None) -> None:
    """Walks through a training and looks at everything between the lines."""
    method = Watched(subject.method)
    training = subject.training(method, optimizer=optimizer, clip=clip)
    same = _Objects(training)
    if not method.due(0):
        check_counts(training, 0, "before the first step")
    rewind_point: dict[str, Tensor] = {}
    for t in range(subject.steps):
        when = f"step {t} with {optimizer}"
        if method.rewind_to == t:
            rewind_point = training.tensors(buffers=False)
        before, done = training.tensors(), len(method.updates)
        training.gradient(t)
        training.sparsifier.before_step()
        require(
            method.updates[done:] == ([t] if method.due(t) else []),
            f"{when}: due({t}) is {method.due(t)}, but update was called in steps "
            f"{method.updates[done:]}",
        )
        check_move(training, before, rewind_point, when)
        if clip is not None:
            check_clipping(training, clip, when)
        training.update()
        training.sparsifier.after_step()
        check_counts(training, t, f"after {when}")
        check_zeros(training, f"after {when}")
        same.check(training, when)


def check_ties(subject: Subject) -> None:
    """Counts are exact though all weights are equal, and stay so.

    Next to 4096, a small number that is to break ties vanishes in float32.
    """
    for magnitude in (0.125, 4096.0):
        training = subject.training(magnitude=magnitude, optimizer="learning rate 0")
        for t in range(subject.steps):
            training.step(t)
            check_counts(training, t, f"all weights +-{magnitude:g}, after step {t}")


def check_counts(training: Training, step: int, when: str) -> None:
    """Exactly count_active(total, sparsity_at(step)) weights are alive."""
    sparsifier = training.sparsifier
    total = sum(mask.numel() for mask in sparsifier.alive.values())
    alive = sum(int(mask.sum()) for mask in sparsifier.alive.values())
    sparsity = sparsifier.method.sparsity_at(step)
    wanted = count_active(total, sparsity)
    require(
        alive == wanted,
        f"{when}: wrong count, {alive} of {total} weights are alive, sparsity "
        f"{sparsity:.4g} wants {wanted}",
    )
    for name, mask in sparsifier.alive.items():
        require(
            not (sparsifier.trainable[name] & ~mask).any(),
            f"{when}: {name!r} has absent weights that are trainable",
        )
        require(
            not (mask & ~sparsifier.visited[name]).any(),
            f"{when}: {name!r} has alive weights that are not marked as visited",
        )


def check_zeros(training: Training, when: str) -> None:
    """Absent weights are zero, in the parameter and in every moment of it."""
    named = dict(training.model.named_parameters())
    for name, mask in training.sparsifier.alive.items():
        parameter = named[name]
        require(parameter.isfinite().all(), f"{when}: {name!r} is not finite")
        require(
            (parameter[~mask] == 0).all(),
            f"{when}: weight of {name!r} not zero where the connection is absent",
        )
        for key, value in training.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.shape == mask.shape:
                require(
                    (value[~mask] == 0).all(),
                    f"{when}: moment {key!r} of {name!r} not zero where the "
                    "connection is absent",
                )


def check_move(
    training: Training,
    before: dict[str, Tensor],
    rewind_point: dict[str, Tensor],
    when: str,
) -> None:
    """Between the lines: what was moved, what was kept, and the gradient."""
    sparsifier, named = training.sparsifier, dict(training.model.named_parameters())
    moved = any(
        not mask.equal(before[f"alive mask of {name}"])
        for name, mask in sparsifier.alive.items()
    )
    rewound = moved and sparsifier.method.rewind_to is not None
    origin = rewind_point if rewound else before
    for name, mask in sparsifier.alive.items():
        parameter, old = named[name], before[f"alive mask of {name}"]
        require(
            parameter[mask & old].equal(origin[f"weight {name}"][mask & old]),
            f"{when}: moving changed weights of {name!r} that were kept"
            + (", or rewound them to something else" if rewound else ""),
        )
        require(
            (parameter[mask & ~old] == 0).all(),
            f"{when}: grown weights of {name!r} do not start at zero",
        )
        for key, value in training.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.shape == mask.shape:
                require(
                    (value[mask & ~old] == 0).all(),
                    f"{when}: moment {key!r} of grown weights of {name!r} is not zero",
                )
        if moved and sparsifier.method.replaces_step:
            require(parameter.grad is None, f"{when}: the step must be replaced")
        elif parameter.grad is not None:
            hidden = ~sparsifier.trainable[name]
            require(
                (parameter.grad[hidden] == 0).all(),
                f"{when}: gradient of {name!r} not masked",
            )
    check_zeros(training, f"between the lines of {when}")


def check_clipping(training: Training, clip: float, when: str) -> None:
    """The norm that clipping sees is that of the weights that may change."""
    squares = 0.0
    trainable = training.sparsifier.trainable
    for name, parameter in training.model.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad.double()
            grad = grad[trainable[name]] if name in trainable else grad
            squares += float(grad.square().sum())
    norm = nn.utils.get_total_norm(
        [p.grad for p in training.model.parameters() if p.grad is not None]
    )
    require(
        abs(float(norm) - squares**0.5) <= 1e-5 * squares**0.5,
        f"{when}: clipping sees the gradient norm {float(norm):.6g}, over trainable "
        f"weights it is {squares**0.5:.6g}",
    )


def check_frozen(subject: Subject, optimizer: str) -> None:
    """Weights that are not trainable keep their bits, whatever the optimizer does.

    They are frozen in the steps without a move, since a method may not drop them.
    """
    training = subject.training(optimizer=optimizer)
    sparsifier, method = training.sparsifier, subject.method
    named = dict(training.model.named_parameters())
    for t in range(subject.steps):
        frozen = {}
        for name, mask in sparsifier.alive.items():
            every_other = torch.arange(mask.numel()).view(mask.shape) % 2 == 0
            frozen[name] = mask & every_other & (not method.due(t))
            sparsifier.set_trainable(name, mask & ~frozen[name])
        before = training.tensors()
        training.step(t)
        for name, where in frozen.items():
            require(
                named[name][where].equal(before[f"weight {name}"][where]),
                f"step {t} with {optimizer}: frozen weights of {name!r} drifted",
            )
        check_zeros(training, f"after step {t} with frozen weights")


class _Objects:
    """Masks are changed in place: whoever holds one sees the moves."""

    def __init__(self, training: Training):
        self.held = {
            (kind, name): mask
            for kind in ("alive", "trainable", "visited")
            for name, mask in getattr(training.sparsifier, kind).items()
        }

    def check(self, training: Training, when: str) -> None:
        for (kind, name), mask in self.held.items():
            require(
                getattr(training.sparsifier, kind)[name] is mask,
                f"{when}: the {kind} mask of {name!r} was rebound to another tensor; "
                "masks must be changed in place",
            )


def check_optimizers(subject: Subject) -> None:
    """The steps with plain, momentum, Adam, foreach and fused optimizers."""
    for optimizer in OPTIMIZERS:
        check_steps(subject, optimizer)
    check_ties(subject)
    check_steps(subject, "momentum", clip=0.01)
    for optimizer in ("momentum", "AdamW", "AdamW, fused"):
        check_frozen(subject, optimizer)
