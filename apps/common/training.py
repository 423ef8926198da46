"""What the training loops of the apps share; the loops themselves are in full view."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from apps.common.images import Split


def build_optimizer(
    config: Any, model: nn.Module, nesterov: bool = True
) -> torch.optim.Optimizer:
    """adamw, or sgd with momentum 0.9. config: has optimizer, lr and weight_decay."""
    common = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), **common)
    return torch.optim.SGD(
        model.parameters(), momentum=0.9, nesterov=nesterov, **common
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def cosine(step: int, last: int, floor: float = 0.0) -> float:
    """From 1 in step 0 to `floor` in step `last` by half a cosine.

    >>> cosine(0, 20), round(cosine(10, 20), 3), cosine(20, 20, floor=0.01)
    (1.0, 0.5, 0.01)
    """
    return floor + (1 - floor) * (1 + math.cos(math.pi * step / last)) / 2


def learning_rate_factor(schedule: str, step: int, total: int) -> float:
    """Share of the peak learning rate in step 0 ... total - 1.

    one-cycle rises linearly in the first tenth, then follows a cosine to 0; cosine does
    so from the start; steps is divided by ten after a half and after three quarters.

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
    return cosine(step - rise, max(1, total - rise))


def require_finite(loss: float, when: str, lr: float) -> None:
    """ValueError for a loss that is not a number. when: as in "epoch 3"."""
    if not math.isfinite(loss):
        raise ValueError(
            f"the loss is {loss} in {when}: lower lr (now {lr}) or look at the data"
        )


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, batch: int = 1000) -> Tensor:
    """Logits [N, K] in evaluation mode, in the order of the samples."""
    model.eval()
    return torch.cat([model(x) for x in split.x.split(batch)])


def freeze_batchnorm(model: nn.Module) -> None:
    """Batch norm by its running statistics, which then do not change."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def clones(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that later steps do not change."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
