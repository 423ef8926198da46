"""FLOPs of the trainings in SparCL's table: by its rule, and by an honest one.

    training_flops("resnet18-cifar", "derpp")                            1.39e16
    training_flops("resnet18-cifar", "derpp", rule="honest")             2.17e16

A multiply-add is 2 FLOPs. What a training of this app spends is counted as it runs, see
`cost.TrainingFlops`; this file is about the published schedules.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from apps.continual import models
from sparsekit.accounting import forward_flops
from sparsekit.spelling import choice

RULES = ("published", "honest")


@dataclass(frozen=True)
class Schedule:
    """A published training: ResNet-18 of width 64 on `tasks` tasks, one after another.

    size: of the images; examples: of a task; epochs: of a task.
    """

    size: int
    classes: int
    tasks: int
    examples: int
    epochs: int

    @property
    def presented(self) -> int:
        """Examples of current tasks that are presented, over all epochs."""
        return self.tasks * self.examples * self.epochs


SCHEDULES = {
    "resnet18-cifar": Schedule(32, 10, 5, 10_000, 50),
    "resnet18-tiny": Schedule(64, 200, 10, 10_000, 100),
}
FORWARDS = {  # batches that a step passes forward
    "ewc": 1, "lwf": 1, "packnet": 1, "lps": 1,
    "er": 2, "agem": 2, "icarl": 2,
    "derpp": 3, "fdr": 3,
}  # fmt: skip
SPARSE = ("snip", "rigl", "tdm", "sparcl")
BATCH = 32
EVERY = 5  # epochs between SparCL's mask updates, and between its data removals
STAGES = 4  # data removals of a task
REMOVED = 0.3  # share of a task's examples that is gone in the end


def training_flops(
    network: str,
    method: str,
    sparsity: float = 0.0,
    rule: str = "published",
    updated: float = 0.8,
) -> float:
    """FLOPs of a training, all tasks together.

        published:  f N (n + 2) d r
            f  forward FLOPs of one example, N  presented examples
            n  batches that a step passes forward: 1 (EWC, LwF), 2 (ER, A-GEM, iCaRL),
               3 (DER++, FDR); the backward pass is 2, once a step
            d  share of the FLOPs that is left: (1 - s) 0.9855 + 0.0145, since SparCL
               masks the 3x3 convolutions of the stages
            r  0.7 for SparCL, which removes 30 % of the data, else 1

        honest:  every example that is back-propagated costs a forward pass, the
            gradient of the activations and that of the weights, each at its density;
            replay begins with the second task; data are removed as they are, in four
            steps; the first layer's input needs no gradient; gradient masking saves
            its share of the weight gradient; EWC's Fisher, LwF's second model and
            SparCL's importance gradients are counted.

    Args:
        network: "resnet18-cifar" (Split-CIFAR-10, 5 tasks, 50 epochs) or
            "resnet18-tiny" (Split-Tiny-ImageNet, 10 tasks, 100 epochs).
        method: ewc, lwf, packnet, er, agem, icarl, derpp, fdr; or sparse, with snip-,
            rigl-, tdm- or sparcl- in front of it, as "sparcl-derpp".
        sparsity: of the masked convolutions; 0 for a dense method.
        rule: "published" or "honest".
        updated: share of the live weights that SparCL's gradient mask lets move, for
            the honest rule: 0.8 in its code for sparsity 0.75.

    >>> [round(training_flops("resnet18-cifar", m) / 1e15, 1) for m in ("er", "derpp")]
    [11.1, 13.9]
    >>> round(training_flops("resnet18-cifar", "sparcl-derpp", 0.95) / 1e15, 1)
    0.6
    >>> honest = training_flops("resnet18-cifar", "sparcl-derpp", 0.95, "honest")
    >>> round(honest / 1e15, 1)
    1.0

    Source: Wang et al. 2022 (SparCL), tables 1 and 2. The code of its count was never
    released; this rule reproduces the table, PackNet's and LPS's entries excepted.
    """
    if network not in SCHEDULES:
        raise ValueError(choice(f"network {network!r} is unknown", network, SCHEDULES))
    if rule not in RULES:
        raise ValueError(choice(f"rule {rule!r} is unknown", rule, RULES))
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is a fraction of zeros in [0, 1), got {sparsity}")
    prefix, _, base = method.rpartition("-")
    if base not in FORWARDS or prefix not in ("", *SPARSE):
        known = choice(f"method {method!r} is unknown", base, FORWARDS)
        sparse = " or ".join(SPARSE)
        raise ValueError(f"{known}, with {sparse} and a hyphen before it if sparse")
    if sparsity and not prefix and base not in ("packnet", "lps"):
        raise ValueError(f"{method} is dense: sparsity must be 0, or say sparcl-{base}")
    schedule = SCHEDULES[network]
    if rule == "published":
        kept = 1 - REMOVED if prefix == "sparcl" else 1.0
        forward, masked, _ = layers(schedule.size, schedule.classes)
        left = forward - sparsity * masked
        return left * schedule.presented * (FORWARDS[base] + 2) * kept
    return _honest(schedule, prefix, base, sparsity, updated)


def _honest(
    schedule: Schedule, prefix: str, base: str, sparsity: float, updated: float
) -> float:
    if base in ("icarl", "packnet", "lps"):
        raise ValueError(f"the honest rule is not worked out for {base}")
    if prefix == "rigl":
        raise ValueError("the honest rule for RigL depends on its interval; use tdm")
    forward, masked, first = layers(schedule.size, schedule.classes)
    sparse = forward - sparsity * masked
    live = (1 - sparsity) * masked
    weight_gradient = sparse - (live * (1 - updated) if prefix == "sparcl" else 0)
    step = sparse + (sparse - first) + weight_gradient  # of one example
    later = (schedule.tasks - 1) / schedule.tasks
    share = data_used(schedule.epochs) if prefix == "sparcl" else 1.0
    presented = schedule.presented * share
    total = presented * (1 + (FORWARDS[base] - 1) * later) * step
    if base == "lwf":
        total += presented * later * sparse
    if base == "ewc":  # once over a task at its end, the last excepted
        total += (schedule.tasks - 1) * schedule.examples * step
    if prefix in ("sparcl", "tdm"):  # a batch of each, at every mask update
        updates = schedule.tasks * len(range(0, schedule.epochs, EVERY))
        total += updates * 2 * BATCH * step
    return total


def data_used(
    epochs: int, removed: float = REMOVED, stages: int = STAGES, every: int = EVERY
) -> float:
    """Mean over the epochs of the share of the data that is still there.

    removed / stages is taken away after every `every` epochs, `stages` times.

    >>> round(data_used(50), 4), round(data_used(100), 4)
    (0.775, 0.7375)
    """
    gone = [min(epoch // every, stages) * removed / stages for epoch in range(epochs)]
    return 1 - sum(gone) / epochs


@lru_cache(maxsize=4)
def layers(size: int, classes: int) -> tuple[int, int, int]:
    """Forward FLOPs of one image: all, those of the masked layers, the first layer's.

    >>> layers(32, 10)
    (1110845440, 1094713344, 3538944)
    """
    model = models.build("resnet18", 64, 0, classes, (3, size, size))
    counted = forward_flops(model, torch.zeros(1, 3, size, size))
    masked = sum(counted.parameters[name] for name in masked_by_sparcl(model))
    return counted.total, masked, counted.parameters["stem.weight"]


def masked_by_sparcl(model: torch.nn.Module) -> Sequence[str]:
    """The 3x3 convolutions of the stages, by parameter name."""
    return [
        name
        for name, p in model.named_parameters()
        if name.startswith("blocks.") and p.dim() == 4 and p.shape[2] == 3
    ]
