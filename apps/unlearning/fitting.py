"""The plain training loop: the original, the retrained reference, every SISA slice."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.common import processes
from apps.common.images import Split
from apps.unlearning.masking import keep
from apps.unlearning.stages import Stage, Stages

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
        common = {"lr": self.lr, "weight_decay": self.weight_decay, "fused": True}
        if self.optimizer == "adamw":
            return torch.optim.AdamW(model.parameters(), **common)
        return torch.optim.SGD(model.parameters(), momentum=0.9, **common)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(logits)[y] of each sample, [B]."""
    return F.cross_entropy(logits, y, reduction="none")


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
    if masks:
        keep(model, optimizer, masks)
    forward = processes.shared(model)
    steps = len(train) // recipe.batch
    end = recipe.epochs if end is None else end
    for epoch in stage.epochs(end, begin, model=model, optimizer=optimizer):
        model.train()
        summed = torch.zeros((), device=train.y.device)
        step = epoch * steps
        for x, y in batches(train, recipe.batch, seed, epoch, recipe.augment):
            factor = learning_rate_factor(recipe.schedule, step, recipe.epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * factor
            mean = loss(forward(x), y).mean()
            optimizer.zero_grad()
            mean.backward()
            processes.average(model.parameters())
            optimizer.step()
            summed += mean.detach()
            step += 1
        average = float(summed) / steps
        if not math.isfinite(average):
            raise ValueError(
                f"the loss is {average} in epoch {epoch + 1}: lower lr (now "
                f"{recipe.lr}) or look at the data"
            )
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


def learning_rate_factor(schedule: str, step: int, total: int) -> float:
    """Share of the peak learning rate in step 0 ... total - 1.

    one-cycle rises linearly in the first tenth, then follows a cosine to 0; steps is
    divided by ten after a half and after three quarters.

    >>> [round(learning_rate_factor("one-cycle", t, 20), 2) for t in (0, 1, 2, 11, 19)]
    [0.5, 1.0, 1.0, 0.5, 0.01]
    >>> [learning_rate_factor("steps", t, 20) for t in (9, 10)]
    [1.0, 0.1]
    """
    if schedule == "constant":
        return 1.0
    if schedule == "steps":
        return 0.1 ** ((2 * step >= total) + (4 * step >= 3 * total))
    rise = max(1, round(0.1 * total)) if schedule == "one-cycle" else 0
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step - rise) / max(1, total - rise))) / 2


def mixed(*numbers: int) -> int:
    """One seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, batch: int = 1000) -> Tensor:
    """Logits [N, K] in evaluation mode, in the order of the records."""
    model.eval()
    return torch.cat([model(x) for x in split.x.split(batch)])
