"""PackNet: each task packed into weights that the tasks before it left free."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from apps.common.training import freeze_batchnorm
from apps.continual.config import Config
from apps.continual.strategy import Batch, Plan, Strategy
from sparsekit.masks import topk_mask
from sparsekit.method import Context, Masks, Method

FREE = -1


@dataclass
class PackNet(Strategy):
    """Train, prune, retrain, freeze: a task never changes the weights of another.

    Every weight of a layer has an owner, a task or nobody. A task trains the free ones
    beside those that earlier tasks own, keeps the largest, per layer, as its own, and
    trains these on in the last part, `retrain`, of its steps. keep: the share of the
    free weights that it keeps; 0 for equal shares, 1 / (tasks that are still to come).
    A test of task j uses the weights of tasks 0 to j, so it is what it was when j was
    learned, bit for bit. The head is dense, with rows of its own for each task; biases
    and norms are those of the first task.

    In the sparsifier's words: `alive` are the owned weights and those in training,
    `trainable` the ones in training.

    Mallya, Lazebnik: PackNet: adding multiple tasks to a single network by iterative
    pruning, 2018. Differs from the paper: equal shares by default (50 or 75 % of what
    is free is pruned there).
    """

    keep: float = 0.0
    retrain: float = 1 / 3

    SAVED = ("owner",)
    needs_tasks = True
    needs_task_id = True
    dense_only = True  # the masks are its own
    masked_only = True

    def __post_init__(self) -> None:
        self.owner: dict[str, Tensor] = {}  # int16, shape of the weight
        if not (0 <= self.keep <= 1 and 0 < self.retrain < 1):
            raise ValueError(
                "packnet: keep is a share in [0, 1] and retrain one in (0, 1), got "
                f"{self.keep} and {self.retrain}"
            )

    def method(self, config: Config, plan: Plan) -> Method:
        if config.weight_decay:
            raise ValueError("packnet: weight_decay must be 0, heads would decay")
        n_tasks, at, keeps = len(plan.steps), {}, {}
        for task, first in enumerate(plan.first_steps()):
            n = sum(plan.steps[task])
            if n < 2:
                raise ValueError(f"packnet needs two steps a task, task {task} has {n}")
            at[first] = "train"
            at[first + min(n - 1, max(1, round(n * (1 - self.retrain))))] = "prune"
            keeps[task] = self.keep or 1 / (n_tasks - task)
        return Packing(at=at, owner=self.owner, keeps=keeps, strategy=self)

    def masked(self, config: Config, model: nn.Module) -> list[str]:
        """All weights but those of the head."""
        return [name for name, p in model.named_parameters() if p.dim() >= 2][:-1]

    def prepare(self, training: Any) -> None:
        super().prepare(training)
        for name, mask in training.sparsifier.alive.items():
            self.owner[name] = torch.full_like(mask, FREE, dtype=torch.int16)

    def loss_terms(self, batch: Batch) -> Iterator[Tensor]:
        if self.task:
            freeze_batchnorm(self.training.model)
        yield self.current_loss(batch)

    def after_backward(self, batch: Batch) -> None:
        """Biases and norms stay what the first task made them."""
        if not self.task:
            return
        named = list(self.training.model.named_parameters())
        head = {name for name, _ in named[-2:]}
        for name, parameter in named:
            if name not in self.owner and name not in head:
                parameter.grad = None

    def end_task(self, task: int) -> None:
        sparsifier = self.training.sparsifier
        for name, owner in self.owner.items():
            alive = sparsifier.alive[name]
            owner[alive & (owner == FREE)] = task
            sparsifier.set_trainable(name, torch.zeros_like(alive))

    def predict(self, x: Tensor, task: int) -> Tensor:
        model = self.training.model
        weights = {
            name: p * (self.owner[name] <= task) if name in self.owner else p
            for name, p in model.named_parameters()
        }
        return functional_call(model, weights, (x,))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, owner in state["owner"].items():
            self.owner[name].copy_(owner)  # the method holds these tensors too


@dataclass(frozen=True)
class Packing(Method):
    """All weights alive in the first part of a task, its own and older ones after."""

    at: dict[int, str]
    owner: dict[str, Tensor]
    keeps: dict[int, float]
    strategy: PackNet = field(repr=False)

    def start(self, context: Context) -> Masks:
        return {name: torch.ones_like(m) for name, m in context.masks.items()}

    def due(self, step: int) -> bool:
        return step in self.at

    def update(self, context: Context) -> Masks:
        if self.at[context.step] == "train":
            return self.start(context)
        masks = {}
        for name, weight in context.weights.items():
            free = self.owner[name] == FREE
            n_kept = round(self.keeps[self.strategy.task] * int(free.sum()))
            kept = topk_mask(weight.abs(), n_kept, free)
            masks[name] = kept | ~free
        return masks

    def sparsity_at(self, step: int) -> float:
        """Of the tasks done before `step`; 0 while all weights train."""
        done = sorted(s for s in self.at if s <= step)
        if not done or self.at[done[-1]] == "train":
            return 0.0
        free = 1.0
        for task in range(len(done) // 2):
            free *= 1 - self.keeps[task]
        return free
