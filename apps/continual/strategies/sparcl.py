"""SparCL: sparse continual learning, around any strategy that replays."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.common import options as methods
from apps.continual.config import Config
from apps.continual.gradient_mask import GradientMask, Scores
from apps.continual.strategy import Batch, Plan, Strategy, discover
from sparsekit.data_pruning.dynamics import (
    aum,
    forgetting,
    misclassified,
    summed_loss,
)
from sparsekit.data_pruning.removal import DataRemoval
from sparsekit.lazy import Lazy
from sparsekit.method import Method
from sparsekit.methods.static import Static
from sparsekit.methods.tdm import TDM
from sparsekit.scores import gradient, random
from sparsekit.spelling import choice

TIES = {"margin": aum, "loss": summed_loss, "order": None}
OURS = ("begin", "end", "every", "variant")  # of TDM's options


@dataclass
class SparCL(Strategy):
    """Three parts, each of which can be switched off, around a replay strategy.

    TDM, the masks: with method "tdm", which moves connections at the ends of stages and
        grows some for a new task (`sparsekit.methods.tdm`). Another method, or "dense",
        in its place. Its numbers are `options`: alpha = 0 and beta = 0 is the control
        that drops by magnitude alone.
    DDR, data removal: the easiest examples of a task leave, at the ends of its first
        stages (`sparsekit.data_pruning.removal`).
    DGM, gradient masks: of the weights that exist only those with large gradients
        train (`apps.continual.gradient_mask`).

    With ddr and dgm off it is the replay strategy with that method, bit for bit, and
    with method dense the replay strategy alone.

    Args:
        replay: the strategy that replays, as "er" or "derpp".
        alpha, beta: of the replay strategy, if it has them.
        variant: "paper": two gradients decide, of the current task's classes and of the
            buffer, for two more backward passes in the steps that choose; the first
            task grows nothing on top; who was wrong least often leaves.
            "released": the gradient of the whole loss decides; the first task is like
            the others, 1 % of all weights move at a time and none in the last stage;
            who was forgotten least often leaves.
        stage: epochs of a stage.
        ddr, dgm: on, off, or random: the control that chooses as many at random.
        removed: share of a task's examples that leaves in the end.
        removal_stages: over how many stages.
        tie: what decides between equally easy examples: margin, loss or order.
        updated: share of the alive weights that trains.
        every: steps that a gradient mask lasts.

    Wang et al.: SparCL: sparse continual learning on the edge, 2022, and its released
    code, which trains DER++ only. The paper's numbers are recalled, not read there.
    """

    replay: str = "derpp"
    alpha: float = 0.1
    beta: float = 0.5
    variant: Literal["paper", "released"] = "paper"
    stage: int = 5
    ddr: Literal["on", "off", "random"] = "on"
    dgm: Literal["on", "off", "random"] = "on"
    removed: float = 0.3
    removal_stages: int = 4
    tie: Literal["margin", "loss", "order"] = "margin"
    updated: float = 0.8
    every: int = 30

    needs_tasks = True

    def __post_init__(self) -> None:
        replaying = {
            name: cls
            for name, cls in discover().items()
            if cls.uses_buffer is True and not cls.dense_only and not cls.needs_task_id
        }
        if self.replay not in replaying:
            refused = f"replay {self.replay!r} is no strategy that replays"
            raise ValueError(choice(refused, self.replay, replaying))
        cls = replaying[self.replay]
        own = {f.name for f in fields(cls) if f.init} & {"alpha", "beta"}
        self.inner = cls(**{name: getattr(self, name) for name in own})
        self.masked_only = cls.masked_only
        self.mask = GradientMask(self.updated, self.every)
        self.data: DataRemoval | None = None
        self.tasks: list[TDM] = []  # the method of each task
        self.logits: Tensor | None = None  # of the current batch
        self._removal(1)  # raises for numbers that are out of range

    @property
    def uses_buffer(self) -> bool:  # type: ignore[override]
        return self.inner.uses_buffer

    @property
    def stores_logits(self) -> bool:  # type: ignore[override]
        return self.inner.stores_logits

    @property
    def policy(self) -> str | None:  # type: ignore[override]
        return self.inner.policy

    def prepare(self, training: Any) -> None:
        super().prepare(training)
        self.inner.prepare(training)
        self.inner.forward = self._forward  # type: ignore[method-assign]

    # ---- TDM -------------------------------------------------------------------------

    def method(self, config: Config, plan: Plan) -> Method | None:
        if config.method == "dense" and self.dgm != "off":
            return Static(0.0)  # all weights; its masks say which of them train
        if config.method != "tdm":
            return super().method(config, plan)
        wrong = sorted(set(config.options) & set(OURS))
        if wrong:
            raise ValueError(
                f"option {wrong[0]!r} of tdm follows from stage, variant and the "
                "tasks' lengths: leave it out"
            )
        per_epoch, total = plan.per_epoch, plan.total
        made = methods.build("tdm", config.sparsity, config.options, per_epoch, total)
        starts = plan.first_steps()
        self.tasks = [
            self.schedule(made, config, task, start, plan.steps[task])
            for task, start in enumerate(starts)
        ]
        return self.tasks[0]

    def schedule(
        self, made: Any, config: Config, task: int, begin: int, epochs: tuple[int, ...]
    ) -> TDM:
        """TDM of a task of so many steps an epoch, at the ends of its stages."""
        stages = tuple(
            sum(epochs[e : e + self.stage]) for e in range(0, len(epochs), self.stage)
        )
        released = self.variant == "released"
        numbers = {"inter": 0.01, "intra": 0.01 if released else 0.005}
        numbers = {k: v for k, v in numbers.items() if k not in config.options}
        if task == 0 and not released:
            numbers["inter"] = 0.0
        last = begin + sum(stages) - 1  # what was grown on top must go by then
        rests = released and len(stages) > 1
        return replace(
            made,
            begin=begin,
            every=stages[:-1] or stages,
            end=begin + sum(stages[:-1]) if rests else last,
            variant=self.variant,
            **numbers,
        )

    def losses(self) -> Mapping[str, Callable[[nn.Module], Tensor | None]]:
        """For the gradients that decide in the paper's variant."""
        return {"current": self._current_task_loss, "buffer": self._buffer_loss}

    def _current_task_loss(self, model: nn.Module) -> Tensor:
        """Over the current task's classes only: the others' logits are -inf."""
        logits = self.training.forward(self.batch.x)
        others = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
        others[list(self.training.stream.tasks[self.task].classes)] = False
        return F.cross_entropy(logits.masked_fill(others, -torch.inf), self.batch.y)

    def _buffer_loss(self, model: nn.Module) -> Tensor | None:
        """Of a draw of its own."""
        if not self.replays:
            return None
        x, y, _ = self.draw()
        return F.cross_entropy(self.training.forward(x), y)

    # ---- DDR -------------------------------------------------------------------------

    def _removal(self, n: int) -> DataRemoval:
        score = misclassified if self.variant == "paper" else forgetting
        seed = 0 if self.training is None else self.training.config.seed
        return DataRemoval(
            n,
            share=self.removed,
            stage=self.stage,
            stages=self.removal_stages,
            score=None if self.ddr == "random" else score,
            tie=TIES[self.tie],
            seed=1000 * seed + self.task,
        )

    def n_chosen(self, task: int, epoch: int, n: int) -> int:
        if self.ddr == "off":
            return self.inner.n_chosen(task, epoch, n)
        return self._removal(n).n_kept(epoch)

    def chosen(self, epoch: int, n: int) -> Tensor:
        return self.inner.chosen(epoch, n) if self.data is None else self.data.indices

    # ---- DGM -------------------------------------------------------------------------

    def _mask_gradients(self) -> None:
        sparsifier = self.training.sparsifier
        if self.dgm != "off" and sparsifier is not None:
            self.mask.update(sparsifier, self._update_importance)

    def _update_importance(self) -> Scores:
        sparsifier = self.training.sparsifier
        if self.dgm == "random":
            draws = self.training.draws
            return {
                name: random(mask.shape, draws).to(mask.device)
                for name, mask in sparsifier.alive.items()
            }
        if self.variant == "released":
            grads = sparsifier.grads
            return Lazy(
                {name: partial(_importance, name, [(1.0, grads)]) for name in grads}
            )
        tdm = sparsifier.method if isinstance(sparsifier.method, TDM) else TDM(0.0)
        current = sparsifier.loss_grads["current"]
        buffer = sparsifier.loss_grads["buffer"]
        terms = [(tdm.alpha, current)]
        if buffer is not None:
            terms.append((tdm.beta, buffer))
        return Lazy({name: partial(_importance, name, terms) for name in current})

    # ---- the loop's calls ------------------------------------------------------------

    def begin_task(self, task: int) -> None:
        self._enter(task)
        self.inner.begin_task(task)

    def _enter(self, task: int) -> None:
        self.inner.task = task
        if self.tasks:
            self.training.sparsifier.set_method(self.tasks[task])
        if self.ddr != "off":
            parts = (self.training.stream.tasks[t].train for t in self.sources(task))
            self.data = self._removal(sum(map(len, parts)))

    def begin_epoch(self, epoch: int) -> None:
        self.mask.restart()
        if self.data is not None:
            self.data.set_epoch(epoch)
        self.inner.begin_epoch(epoch)

    def loss_terms(self, batch: Batch) -> Iterator[Tensor]:
        self.batch, self.logits = batch, None
        yield from self.inner.loss_terms(batch)

    def _forward(self, x: Tensor) -> Tensor:
        """The replay strategy's; its first pass in a step begins with the batch."""
        logits = self.training.forward(x)
        if self.logits is None:
            self.logits = logits[: len(self.batch.y)].detach()
        return logits

    def after_backward(self, batch: Batch) -> None:
        self.inner.after_backward(batch)
        self._mask_gradients()

    def after_step(self, batch: Batch) -> None:
        self.inner.after_step(batch)
        if self.data is not None and self.logits is not None:
            self.data.record(batch.index, self.logits, batch.y)

    def end_epoch(self, epoch: int) -> None:
        self.inner.end_epoch(epoch)

    def end_task(self, task: int) -> None:
        self.inner.end_task(task)

    def predict(self, x: Tensor, task: int) -> Tensor:
        return self.inner.predict(x, task)

    # ---- saving ----------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "inner": self.inner.state_dict(),
            "task": self.task,
            "since": self.mask.since,
            "data": None if self.data is None else self.data.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.task = state["task"]
        self._enter(self.task)
        self.inner.load_state_dict(state["inner"])
        self.mask.since = state["since"]
        if self.data is not None:
            self.data.load_state_dict(state["data"])


def _importance(name: str, terms: list[tuple[float, Scores]]) -> Tensor | None:
    """Sum of factor |gradient| of a weight: of one at a time, since it is dense."""
    total = None
    for factor, grads in terms:
        grad = grads[name]
        if grad is not None:
            scaled = factor * gradient(grad)
            total = scaled if total is None else total + scaled
    return total
