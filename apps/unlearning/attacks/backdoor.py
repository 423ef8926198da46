"""Whether a backdoor is still open."""

import torch
from torch import nn

from apps.common.images import Split
from apps.common.training import evaluate
from apps.unlearning.data import subset
from apps.unlearning.forget import TARGET, patched


def attack_success(model: nn.Module, fresh: Split) -> torch.Tensor:
    """1 for each fresh record that the patch moves to the backdoor's class, [N].

    Records of that class are left out: they need no attack. The mean is the attack
    success rate (ASR); a model without a backdoor has about its error rate there.

    Source: Gu et al. 2017 (BadNets), as in Jia et al. 2023, arXiv 2304.04934, whose
    code counts records of the target class as successes.
    """
    others = subset(fresh, (fresh.y != TARGET).nonzero().squeeze(1))
    if len(others) == 0:
        raise ValueError(f"all fresh records are of the backdoor's class {TARGET}")
    # The patch takes the whole set's largest value, as in training.
    moved = Split(patched(fresh.x)[fresh.y != TARGET], others.y)
    return (evaluate(model, moved).argmax(1) == TARGET).double()
