"""What an unlearning method sees and must answer; `unlearners/` has one file a method.

A method is a frozen dataclass of its settings with one function, `run`. It changes
`problem.model`, which is the original model on entry, and returns the unlearned one.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from apps.common.images import Split
from apps.common.options import field_values
from apps.common.seeds import mixed
from apps.common.training import freeze_batchnorm
from apps.unlearning.fitting import Loss, Recipe, batches
from apps.unlearning.stages import Stage, Stages
from sparsekit import fixed
from sparsekit.data_pruning.per_sample import cross_entropy
from sparsekit.discovery import classes_in
from sparsekit.spelling import choice


@dataclasses.dataclass
class Problem:
    """One request: a model, what it may keep, what it must forget.

    Args:
        model: the original model; a copy, which a method may change.
        retain: records that stay. forget: records to be forgotten.
        masks: {name: bool} of a sparse model, {} of a dense one.
        seed: of everything that a method draws.
        recipe: how the original was trained, for methods that train anew.
        build_model: seed -> untrained model of the same architecture.
        held_out: records that no model has seen, for stop rules, or None.
        removed_class: a class that no longer exists afterwards, if one is forgotten.
        loss: (outputs, y) -> [B].
        stage: keeps the state after every epoch.
    """

    model: nn.Module
    retain: Split
    forget: Split
    masks: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    seed: int = 0
    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    build_model: Callable[[int], nn.Module] | None = None
    held_out: Split | None = None
    removed_class: int | None = None
    loss: Loss = cross_entropy
    stage: Stage = dataclasses.field(default_factory=lambda: Stages().begin("unlearn"))

    def sgd(self, lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
        """The optimizer of the papers; absent weights stay zero, without momentum."""
        optimizer = torch.optim.SGD(
            self.model.parameters(), lr, momentum, weight_decay=weight_decay
        )
        fixed.keep(self.model, optimizer, self.masks)
        return optimizer

    def epochs(self, n: int, **parts: Any) -> Iterator[int]:
        """0 ... n - 1, or what an interruption has left of them."""
        return self.stage.epochs(n, model=self.model, **parts)

    def batches(
        self, split: Split, batch: int, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """All records once, in a random order; the last batch may be smaller, and takes
        a single record that would be left."""
        seed = mixed(self.seed, 7)
        return batches(split, batch, seed, epoch, drop_last=False)

    def train_on(self, split: Split) -> None:
        """Training mode; of a single record batch norm has no statistics to take."""
        self.model.train()
        if len(split) == 1:
            freeze_batchnorm(self.model)

    def classes(self) -> int:
        """How many outputs the model has; ValueError if they are not logits [B, K]."""
        self.model.eval()
        with torch.no_grad():
            outputs = self.model(self.retain.x[:1])
        if not isinstance(outputs, Tensor) or outputs.dim() != 2:
            raise ValueError("this method needs a model that returns logits [B, K]")
        return outputs.shape[1]

    def record(self, **row: float) -> None:
        """One row of the log."""
        self.stage.rows.append({"stage": self.stage.name, **row})


class Unlearner:
    """The common part of all methods. Subclass it as a frozen dataclass in one file."""

    exact: ClassVar[bool] = False  # no trace of the forget set remains, by construction
    uses: ClassVar[tuple[str, ...]] = ("retain",)  # sets that it reads

    def run(self, problem: Problem) -> nn.Module:
        """The unlearned model."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Descent(Unlearner):
    """Settings of methods that take SGD steps, with the papers' defaults."""

    epochs: int = 10
    lr: float = 0.01
    batch: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch < 1:
            raise ValueError(
                f"epochs must be at least 0 and batch at least 1, got {self.epochs} "
                f"and {self.batch}"
            )
        if not (self.lr > 0 and 0 <= self.momentum < 1 and self.weight_decay >= 0):
            raise ValueError(
                "lr must be positive, momentum in [0, 1) and weight_decay at least 0, "
                f"got {self.lr}, {self.momentum} and {self.weight_decay}"
            )


def discover() -> dict[str, type[Unlearner]]:
    """Every method in `unlearners/`, by file name, without registration.

    >>> discover()["finetune"].__name__
    'Finetune'
    """
    import apps.unlearning.unlearners as package

    return classes_in(package, Unlearner)


def build(
    method: str | Unlearner, options: Mapping[str, Any] | None = None
) -> Unlearner:
    """A method from its name and a table of its fields.

    Raises ValueError for an unknown name or option, or a wrong type.

    >>> build("finetune", {"epochs": 2}).epochs
    2
    """
    options = options or {}
    if isinstance(method, Unlearner):
        return dataclasses.replace(method, **options)  # type: ignore[type-var]
    known = discover()
    if method not in known:
        raise ValueError(choice(f"method {method!r} is unknown", method, known))
    cls = known[method]
    return cls(**field_values(cls, f"method {method!r}", options))
