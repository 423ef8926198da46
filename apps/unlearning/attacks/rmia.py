"""RMIA: is the model more sure of this record than models that never saw it would be?

    attack = rmia(target, references, forget, fresh, population)

Calibrated for each record by one to four reference models, which is what the population
attacks lack. The default audit: it needs no shadow models.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from apps.common.images import Split
from apps.common.roc import Attack, attack
from apps.common.training import evaluate
from apps.unlearning.attacks.scores import confidence


def rmia(
    target: nn.Module,
    references: Sequence[nn.Module],
    forget: Split,
    fresh: Split,
    population: Split,
    *,
    a: float = 0.3,
    gamma: float = 1.0,
    fpr: float = 0.01,
) -> Attack:
    """Attacks `target` on the forget set (members) against fresh records (others).

    Args:
        references: models trained on neither; a retrained one is. Leave the one out
            that is itself the target.
        population: records that no model saw, other than `fresh`.
        a, gamma: see `ratios` and `wins`.

    The null is the AUC of a retrained target, not 1/2; an AUC below it is over-
    forgetting, and a leak as well. Both sets should have the same classes.
    """
    if not references:
        raise ValueError("rmia needs at least one reference model, got none")

    def relative(split: Split) -> Tensor:
        own = confidence(evaluate(target, split).double(), split.y)
        outs = [confidence(evaluate(m, split).double(), split.y) for m in references]
        return ratios(own, torch.stack(outs), a)

    z = relative(population)
    return attack(
        wins(relative(forget), z, gamma), wins(relative(fresh), z, gamma), fpr
    )


def ratios(own: Tensor, references: Tensor, a: float = 0.3) -> Tensor:
    """p(x) / p-bar(x), [N]: how much more likely the target finds a record.

        p-bar(x) = (1 + a) / 2 mean_references p(x) + (1 - a) / 2

    own: [N]; references: [R, N], of models that never saw the records. a in [0, 1]
    turns the mean over models without x into one over all models.

    Source: Zarifzadeh, Liu & Shokri 2024, arXiv 2312.03262, offline form.

    >>> ratios(torch.tensor([1.0]), torch.tensor([[0.5], [0.5]]), a=1.0)
    tensor([2.])
    """
    if not 0 <= a <= 1:
        raise ValueError(f"a must be in [0, 1], got {a}")
    return own / ((1 + a) / 2 * references.mean(0) + (1 - a) / 2)


def wins(ratio: Tensor, population: Tensor, gamma: float = 1.0) -> np.ndarray:
    """Share of the population's ratios that a record's exceeds by a factor gamma, [N].

    >>> wins(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.5]))
    array([0.5, 1. ])
    """
    bars = np.sort(population.cpu().numpy() * gamma)
    return np.searchsorted(bars, ratio.cpu().numpy(), side="left") / len(bars)
