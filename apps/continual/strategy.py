"""What a continual learner does with a batch; `strategies/` has one file a strategy.

A strategy is a dataclass of its settings. The loop in `train.py` calls, in this order:

    begin_task(task)                 before a task
      begin_epoch(epoch)             before a pass over chosen(epoch) examples
        loss_terms(batch)            scalars whose sum is minimised; none: no step
        after_backward(batch)        gradients may be changed
        after_step(batch)            say, offer the batch to the buffer
      end_epoch(epoch)
    end_task(task)
    predict(x, task)                 logits, in tests

What it learns and must survive an interruption is named in `SAVED`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.common import options as methods
from apps.continual.config import Config
from sparsekit.discovery import classes_in
from sparsekit.method import Method
from sparsekit.spelling import choice


@dataclasses.dataclass(frozen=True)
class Batch:
    """Examples of one step.

    x: [B, ...] float, as the model sees them; y: [B] int64; raw: [B, ...] as stored,
    not augmented; index: [B] positions in the training part.
    """

    x: Tensor
    y: Tensor
    raw: Tensor
    index: Tensor


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long the training is: steps[task][epoch]. Known before the first step."""

    steps: tuple[tuple[int, ...], ...]

    @property
    def total(self) -> int:
        return sum(map(sum, self.steps))

    @property
    def per_epoch(self) -> int:
        """Of the first epoch."""
        return self.steps[0][0]

    def first_steps(self) -> list[int]:
        """The step in which each task begins."""
        starts, done = [], 0
        for epochs in self.steps:
            starts.append(done)
            done += sum(epochs)
        return starts


@dataclasses.dataclass
class Strategy:
    """The common part: plain training on what comes. Subclass it in one file.

    `training` holds model, optimizer, sparsifier (or None), buffer, stream, config and
    the random generator of draws, see `apps.continual.training.Training`.
    """

    SAVED: ClassVar[tuple[str, ...]] = ()  # attributes of a checkpoint
    uses_buffer: ClassVar[bool] = False
    stores_logits: ClassVar[bool] = False  # in the buffer
    needs_tasks: ClassVar[bool] = False  # must be told where a task begins and ends
    needs_task_id: ClassVar[bool] = False  # in tests as well: has Task-IL only
    masked_only: ClassVar[bool] = False  # keeps tensors of the weights' dense shapes
    dense_only: ClassVar[bool] = False  # takes no sparse method
    policy: ClassVar[str | None] = None  # of the buffer, where it is part of the method

    # ---- set by the loop ---------------------------------------------------------

    training: Any = dataclasses.field(default=None, init=False, repr=False)
    task: int = dataclasses.field(default=0, init=False, repr=False)

    def prepare(self, training: Any) -> None:
        """Called once, before the first task; training.model is untrained."""
        self.training = training

    # ---- what a strategy may define ----------------------------------------------

    def method(self, config: Config, plan: Plan) -> Method | None:
        """The sparse method of the model, None for dense."""
        return methods.build(
            config.method, config.sparsity, config.options, plan.per_epoch, plan.total
        )

    def masked(
        self, config: Config, model: nn.Module
    ) -> list[str] | Callable[[str, nn.Parameter], bool] | None:
        """Parameters that the method masks, as Sparsifier's `params` takes it.

        Names only where the strategy is `masked_only`.
        """
        return methods.maskable(config.keep_dense, model)

    def losses(self) -> Mapping[str, Callable[[nn.Module], Tensor | None]]:
        """Named losses whose gradients the method reads, as Sparsifier takes them."""
        return {}

    def sources(self, task: int) -> range:
        """Tasks whose training parts are passed over in `task`."""
        return range(task, task + 1)

    def n_chosen(self, task: int, epoch: int, n: int) -> int:
        """How many of the n examples `chosen` will give: known before the training."""
        return n

    def chosen(self, epoch: int, n: int) -> Tensor:
        """Positions of the examples of the coming epoch."""
        return torch.arange(n)

    def begin_task(self, task: int) -> None:
        """`self.task` is already the new one."""

    def begin_epoch(self, epoch: int) -> None: ...

    def loss_terms(self, batch: Batch) -> Iterator[Tensor]:
        """Terms of the loss, each made when it is asked for.

        The backward pass of a term is over before the next one is made, so that the
        activations of one forward pass are in memory at a time, not of all.
        """
        yield self.current_loss(batch)

    def after_backward(self, batch: Batch) -> None: ...

    def after_step(self, batch: Batch) -> None: ...

    def end_epoch(self, epoch: int) -> None: ...

    def end_task(self, task: int) -> None: ...

    def predict(self, x: Tensor, task: int) -> Tensor:
        """Logits [B, K] of a test; only Task-IL strategies may look at `task`."""
        return self.training.model(x)

    # ---- what strategies share ---------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Logits in training mode, counted in the FLOPs."""
        return self.training.forward(x)

    def current_loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of the current batch.

        `loss_over` says over which logits: DER's code takes all, SparCL's the current
        task's classes only.
        """
        return self.cross_entropy(self.forward(batch.x), batch.y)

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """Of examples of the current task."""
        return F.cross_entropy(self.restricted(logits), y)

    def restricted(self, logits: Tensor) -> Tensor:
        """Logits [B, K] with -inf for classes that `loss_over` leaves out."""
        config = self.training.config
        if config.scenario != "task" and config.loss_over == "all":
            return logits
        others = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
        others[list(self.training.stream.tasks[self.task].classes)] = False
        return logits.masked_fill(others, -torch.inf)

    @property
    def replays(self) -> bool:
        """Whether this step draws from the buffer; see `replay_from`."""
        buffer, config = self.training.buffer, self.training.config
        started = config.replay_from == "first" or self.task > 0
        return len(buffer) > 0 and started

    def draw(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """`replay_batch` examples of the buffer: x as seen in training, y, logits."""
        drawn = self.training.buffer.draw(self.training.config.replay_batch)
        return self.training.seen(drawn.raw), drawn.y, drawn.logits

    # ---- saving ------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.SAVED}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        device = self.training.device
        for name in self.SAVED:
            setattr(self, name, _moved(state[name], device))


def discover() -> dict[str, type[Strategy]]:
    """Every strategy in `strategies/`, by file name, without registration.

    >>> discover()["er"].__name__
    'ER'
    """
    import apps.continual.strategies as package

    return classes_in(package, Strategy)


def build(config: Config) -> Strategy:
    """The strategy of a config.

    Raises ValueError for an unknown name or option, listing the known ones, and for a
    config that the strategy cannot be trained with.
    """
    known = discover()
    if config.strategy not in known:
        refused = f"strategy {config.strategy!r} is unknown"
        raise ValueError(choice(refused, config.strategy, known))
    cls = known[config.strategy]
    what = f"strategy {config.strategy!r}"
    values = methods.field_values(cls, what, config.strategy_options)
    if cls.needs_tasks and config.online:
        raise ValueError(
            f"{config.strategy} must be told where tasks end, which online is not"
        )
    if cls.masked_only and config.backend == "values":
        raise ValueError(f"{config.strategy} keeps dense copies: use backend masked")
    if cls.dense_only and config.method != "dense":
        raise ValueError(f"{config.strategy} takes no sparse method: use method dense")
    if cls.needs_task_id and config.scenario != "task":
        raise ValueError(f"{config.strategy} needs the task in tests: scenario task")
    return cls(**values)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode for a while, without gradients."""
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was)


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(inner, device) for key, inner in value.items()}
    return value
