"""Many models of each kind, for attacks that compare distributions of models.

    found = train_shadows(config, 16)
    found.forgetting_score(), found.null_score()      # read one beside the other
    found.ulira().auc
    train_groups({"ft": config, "l1": another}, 16)   # methods that share the models

Data and forget set are the same for all; weights, order, masks and the method's choices
are drawn anew for each model. Costs three trainings a model, and one unlearning a
method.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from apps.common.images import Split
from apps.common.roc import Attack
from apps.common.seeds import mixed
from apps.unlearning.attacks.forgetting_score import forgetting_score
from apps.unlearning.attacks.lira import ulira
from apps.unlearning.config import Config
from apps.unlearning.data import Data
from apps.unlearning.metrics import per_sample
from apps.unlearning.train import prepare, retrain, unlearn_in


@dataclass(frozen=True)
class Shadows:
    """Log-odds of each record's label, [M, F] each, for records in one order: the
    forgotten ones in that of the training part, unless others were asked for.

    unlearned: models that learned and unlearned them. retrained, others: two groups of
    models that never saw them; the second is for nulls.
    """

    unlearned: np.ndarray
    retrained: np.ndarray
    others: np.ndarray

    def of_records(self, chosen: Sequence[int] | np.ndarray) -> "Shadows":
        """The same models on some of the records: their places among the F."""
        columns = np.asarray(chosen)
        return Shadows(
            self.unlearned[:, columns],
            self.retrained[:, columns],
            self.others[:, columns],
        )

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
    return train_groups({config.method: config}, n, watch)[config.method]


def train_groups(
    configs: Mapping[str, Config],
    n: int,
    watch: Callable[[int], None] | None = None,
    records: Callable[[Data], Split] = lambda loaded: loaded.forgotten,
) -> dict[str, Shadows]:
    """Shadow models of several methods, {name: Shadows}.

    All unlearn from the same n original models and are compared with the same retrained
    ones: differences between methods are paired.

    Args:
        configs: by any names; they differ in `method` and `options` only.
        records: which to look at, of the experiment's data. With fresh records beside
            the forgotten ones, `of_records` tells what is about the records from what
            is about the whole model.

    Raises ValueError for other differences, and for fewer than eight models.
    """
    if n < 8:
        raise ValueError(f"shadow models: at least 8 of each kind, got {n}")
    first = _shared(configs)
    unlearned: dict[str, list[np.ndarray]] = {name: [] for name in configs}
    retrained: list[np.ndarray] = []
    others: list[np.ndarray] = []
    for number in range(n):
        drawn = mixed(first.drawn, 2000, number)
        one = replace(first, model_seed=drawn, out=None)
        prepared = prepare(one)
        seen = records(prepared.data)

        def log_odds(model: nn.Module, seen: Split = seen) -> np.ndarray:
            return per_sample(model, seen)["logit_confidence"].double().numpy()

        retrained.append(log_odds(prepared.reference))
        others.append(
            log_odds(retrain(one, prepared.data, prepared.original, None, 1)[0])
        )
        for name, config in configs.items():
            own = replace(one, method=config.method, options=config.options)
            unlearned[name].append(log_odds(unlearn_in(own, prepared).model))
        if watch is not None:
            watch(number + 1)
    groups = np.stack(retrained), np.stack(others)
    return {name: Shadows(np.stack(rows), *groups) for name, rows in unlearned.items()}


def _shared(configs: Mapping[str, Config]) -> Config:
    """What all have in common, as the first of them."""
    if not configs:
        raise ValueError("shadow models need at least one method, got none")
    first, *rest = configs.values()
    for config in rest:
        same = replace(
            config, method=first.method, options=first.options, out=first.out
        )
        if same != first or (config.method == "sisa") != (first.method == "sisa"):
            raise ValueError(
                "methods share their shadow models only if all other settings are "
                "equal, and none or all of them are sisa"
            )
    return first


def _split(positives: np.ndarray, negatives: np.ndarray) -> Attack:
    half = len(positives) // 2
    return ulira(positives[:half], negatives[:half], positives[half:], negatives[half:])
