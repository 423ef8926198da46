"""The plain training loop: the original, the retrained reference, every SISA slice."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.common import processes
from apps.common.images import Split
from apps.common.seeds import mixed
from apps.common.training import (
    build_optimizer,
    learning_rate_factor,
    require_finite,
    set_learning_rate,
)
from apps.unlearning.stages import Stage, Stages
from sparsekit import fixed
from sparsekit.data_pruning.per_sample import cross_entropy

Loss = Callable[[Any, Tensor], Tensor]  # (outputs, y [B]) -> [B]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; the fields are those of `Config`."""

    epochs: int = 20
    batch: int = 100
    optimizer: str = "adamw"
    lr: float = 0.01
    schedule: str = "one-cycle"
    weight_decay: float = 0.1
    augment: bool = False

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(self, model, nesterov=False)


def fit(
    model: nn.Module,
    train: Split,
    recipe: Recipe,
    *,
    seed: int,
    masks: Mapping[str, Tensor] | None = None,
    begin: int = 0,
    end: int | None = None,
    stage: Stage | None = None,
    loss: Loss = cross_entropy,
) -> nn.Module:
    """Trains `model` in place, from epoch `begin` of the recipe to epoch `end`.

    Args:
        seed: of the order of the data; epoch e's order depends on (seed, e) alone.
        masks: {name: bool}: absent weights are zero from the start and stay so.
        begin: epoch that the weights come from, for rewinding; end: default the last.
        stage: keeps the state after every epoch.

    Raises ValueError if there is less than a batch, or the loss is not finite.
    """
    if recipe.batch > len(train):
        raise ValueError(
            f"batch {recipe.batch} exceeds the {len(train)} training records"
        )
    stage = Stages().begin("fit") if stage is None else stage
    optimizer = recipe.build_optimizer(model)
    fixed.keep(model, optimizer, masks or {})
    forward = processes.shared(model)
    steps = len(train) // recipe.batch
    end = recipe.epochs if end is None else end
    for epoch in stage.epochs(end, begin, model=model, optimizer=optimizer):
        model.train()
        summed = torch.zeros((), device=train.y.device)
        step = epoch * steps
        for x, y in batches(train, recipe.batch, seed, epoch, recipe.augment):
            factor = learning_rate_factor(recipe.schedule, step, recipe.epochs * steps)
            set_learning_rate(optimizer, recipe.lr * factor)
            mean = loss(forward(x), y).mean()
            optimizer.zero_grad()
            mean.backward()
            processes.average(model.parameters())
            optimizer.step()
            summed += mean.detach()
            step += 1
        average = float(summed) / steps
        require_finite(average, f"epoch {epoch + 1}", recipe.lr)
        stage.rows.append({"stage": stage.name, "epoch": epoch + 1, "loss": average})
    return model


def batches(
    split: Split,
    batch: int,
    seed: int,
    epoch: int,
    augment: bool = False,
    drop_last: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(x, y) of an epoch in an order that depends on (seed, epoch) alone.

    Without `drop_last`, a single record that is left joins the last batch.
    """
    generator = torch.Generator().manual_seed(mixed(seed, epoch))
    order = torch.randperm(len(split), generator=generator)
    if drop_last:
        order = order[: len(order) - len(order) % batch]
    parts = list(order.to(split.y.device).split(batch))
    if len(parts) > 1 and len(parts[-1]) == 1:  # batch norm needs two
        parts[-2:] = [torch.cat(parts[-2:])]
    for chosen in parts:
        x = split.x[chosen]
        yield (cropped_and_flipped(x, generator) if augment else x), split.y[chosen]


def cropped_and_flipped(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random crops of images padded by 4 pixels of 0, half of them mirrored."""
    n, _, height, width = x.shape
    padded = F.pad(x, (4,) * 4)
    top, left = (torch.randint(0, 9, (n,), generator=generator) for _ in range(2))
    flip = torch.rand(n, generator=generator) < 0.5
    # Three small tensors are drawn on the CPU; all that is large is made where x is.
    top, left, flip = (t.to(x.device)[:, None] for t in (top, left, flip))
    rows = top + torch.arange(height, device=x.device)  # [N, H]
    columns = torch.arange(width, device=x.device).expand(n, -1)
    columns = torch.where(flip, width - 1 - columns, columns) + left
    index = torch.arange(n, device=x.device)[:, None, None]
    pixels = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None]]
    return pixels.permute(0, 3, 1, 2)
