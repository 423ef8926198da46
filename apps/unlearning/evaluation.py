"""The ladder of attacks on a finished run, each on the null and the ceiling as well.

    rows = ladder(Path("runs/a"), references=2)

A number alone means nothing: the retrained model gives the null, which need not be 1/2,
and the original model the ceiling.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from apps.common.roc import Attack
from apps.common.runs import RunFolder
from apps.common.training import evaluate
from apps.unlearning import data, forget
from apps.unlearning.attacks.backdoor import attack_success
from apps.unlearning.attacks.confusion import confusion_error
from apps.unlearning.attacks.relearn import steps
from apps.unlearning.attacks.rmia import rmia
from apps.unlearning.attacks.targets import difficulty, hardest, matched
from apps.unlearning.config import Config
from apps.unlearning.data import Data, subset
from apps.unlearning.pruning import Original
from apps.unlearning.result import MODELS, load_result, stored_model
from apps.unlearning.train import retrain
from sparsekit.data_pruning.per_sample import cross_entropy

RELEARN = 300  # steps at most
LEARNED = 0.1  # nats a record; the original's loss if that is larger
RELEARNED = 500  # records at most: their loss is looked at before each step


@dataclass(frozen=True)
class Ladder:
    """What the attacks found, for "original", "unlearned" and "reference" each.

    rmia: on the whole forget set. hard: on its hardest tenth, against fresh records as
    hard. confusion: the share of records of two swapped classes that are still taken
    for another, None without a confusion set. backdoor: the share of patched records
    that the backdoor moves, None without one. relearn: steps of fine-tuning on the
    forget set, or 500 of it, until their mean loss is `below`; None if `RELEARN` are
    not enough.
    """

    rmia: dict[str, Attack]
    hard: dict[str, Attack]
    confusion: dict[str, float] | None
    backdoor: dict[str, float] | None
    relearn: dict[str, int | None]
    below: float


def ladder(run: Path, references: int = 2, share: float = 0.1) -> Ladder:
    """Attacks a finished run. The data set is read again, and references are trained.

    Args:
        run: its folder.
        references: models trained on the retain set with other seeds, at least one.
        share: of the forget set that is hard.
    """
    result = load_result(run)
    config, folder = result.config, RunFolder(Path(run))
    loaded = data.load(
        config.dataset, config.forget, config.seed, config.data_dir, config.part
    )
    loaded = data.to(loaded, config.device)
    original = Original(
        stored_model(folder, "original", config), result.masks, result.provenance
    )
    others = train_references(config, loaded, original, references)
    trained = {
        "original": original.model,
        "unlearned": result.model,
        "reference": stored_model(folder, "reference", config),
    }
    return attack_all(loaded, trained, others, share)


def train_references(
    config: Config, loaded: Data, original: Original, n: int
) -> list[nn.Module]:
    """Retrained models other than the run's reference."""
    if n < 1:
        raise ValueError(f"attacks need at least one reference model, got {n}")
    return [retrain(config, loaded, original, number=i)[0] for i in range(1, n + 1)]


def attack_all(
    loaded: Data,
    trained: Mapping[str, nn.Module],
    references: list[nn.Module],
    share: float = 0.1,
) -> Ladder:
    """Every attack on every model. trained: by the names in `result.MODELS`."""
    fresh = loaded.fresh_forgotten
    population = loaded.held_out
    whole = {
        name: rmia(trained[name], references, loaded.forgotten, fresh, population)
        for name in MODELS
    }
    hard_forget, hard_fresh = hard_pair(loaded, references[0], share)
    hard = {
        name: rmia(trained[name], references, hard_forget, hard_fresh, population)
        for name in MODELS
    }
    kind, confusion, backdoor = loaded.forget.kind, None, None
    if kind == "confusion":
        first, second = map(int, forget.parse(loaded.forget.text).arguments[:2])
        confusion = {
            name: confusion_error(
                evaluate(trained[name], loaded.fresh).argmax(1),
                loaded.fresh.y,
                first,
                second,
            )
            for name in MODELS
        }
    if kind == "backdoor":
        backdoor = {
            name: float(attack_success(trained[name], loaded.fresh).mean())
            for name in MODELS
        }
    few = subset(loaded.forgotten, torch.arange(min(RELEARNED, len(loaded.forgotten))))
    original = cross_entropy(evaluate(trained["original"], few), few.y)
    below = max(LEARNED, float(original.mean()))
    relearn = {n: steps(trained[n], few, below, most=RELEARN) for n in MODELS}
    return Ladder(whole, hard, confusion, backdoor, relearn, below)


def hard_pair(loaded: Data, reference: nn.Module, share: float):
    """The hardest records of the forget set, and fresh ones as hard."""
    surprise = difficulty(reference, loaded.forgotten)
    chosen = hardest(surprise, share)
    equals = matched(surprise[chosen], difficulty(reference, loaded.fresh_forgotten))
    return subset(loaded.forgotten, chosen), subset(loaded.fresh_forgotten, equals)
