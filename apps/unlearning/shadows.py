"""Many models of each kind, for attacks that compare distributions of models.

    found = train_shadows(config, 16)
    found.forgetting_score(), found.null_score()      # read one beside the other
    found.ulira().auc

Data and forget set are the same for all; weights, order, masks and the method's choices
are drawn anew for each model. Costs three trainings and one unlearning a model.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from apps.common.roc import Attack
from apps.unlearning.attacks.forgetting_score import forgetting_score
from apps.unlearning.attacks.lira import ulira
from apps.unlearning.config import Config
from apps.unlearning.fitting import mixed
from apps.unlearning.metrics import per_sample
from apps.unlearning.train import prepare, retrain, unlearn_in


@dataclass(frozen=True)
class Shadows:
    """Log-odds of each forgotten record's label, [M, F] each, records in the order of
    the training part.

    unlearned: models that learned and unlearned them. retrained, others: two groups of
    models that never saw them; the second is for nulls.
    """

    unlearned: np.ndarray
    retrained: np.ndarray
    others: np.ndarray

    def forgetting_score(self) -> float:
        """F of the method, at M models."""
        return forgetting_score(self.unlearned, self.retrained)

    def null_score(self) -> float:
        """F of retraining itself, at the same M: what a perfect method gets."""
        return forgetting_score(self.others, self.retrained)

    def ulira(self) -> Attack:
        """The attack on the second half of the models, calibrated on the first."""
        return _split(self.unlearned, self.retrained)

    def null_ulira(self) -> Attack:
        """The same attack where there is nothing to find."""
        return _split(self.others, self.retrained)


def train_shadows(
    config: Config, n: int, watch: Callable[[int], None] | None = None
) -> Shadows:
    """Trains n models of each kind. watch: called with the number of models done.

    Raises ValueError for fewer than eight: the attack calibrates by one half, and its
    interval needs four models in the other.
    """
    if n < 8:
        raise ValueError(f"shadow models: at least 8 of each kind, got {n}")
    rows: dict[str, list[np.ndarray]] = {"unlearned": [], "retrained": [], "others": []}
    for number in range(n):
        one = replace(config, model_seed=mixed(config.drawn, 2000, number), out=None)
        prepared = prepare(one)
        forgotten = prepared.data.forgotten
        second, _ = retrain(one, prepared.data, prepared.original, number=1)
        models = {
            "unlearned": unlearn_in(one, prepared).model,
            "retrained": prepared.reference,
            "others": second,
        }
        for name, model in models.items():
            found = per_sample(model, forgotten)["logit_confidence"]
            rows[name].append(found.double().numpy())
        if watch is not None:
            watch(number + 1)
    return Shadows(**{name: np.stack(found) for name, found in rows.items()})


def _split(positives: np.ndarray, negatives: np.ndarray) -> Attack:
    half = len(positives) // 2
    return ulira(positives[:half], negatives[:half], positives[half:], negatives[half:])
