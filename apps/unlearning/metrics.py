"""How much was forgotten, and how much else: values a record, and their means.

UA = 1 - accuracy on the forget set, RA and TA = accuracy on the retain set and on fresh
records, MIA = the published membership attack's share of non-members in the forget set.
They mean something only beside a retrained model's: closest to it wins, not largest.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from apps.common.images import Split
from apps.common.training import evaluate
from apps.unlearning.attacks import scores
from apps.unlearning.attacks.population import mia_efficacy
from apps.unlearning.fitting import Loss
from sparsekit.data_pruning.per_sample import cross_entropy

Samples = Mapping[str, Mapping[str, Tensor]]


def per_sample(
    model: nn.Module, split: Split, loss: Loss = cross_entropy
) -> dict[str, Tensor]:
    """{"correct", "confidence", "logit_confidence", "loss"} -> [N], a value a record.

    The first three are those of `attacks.scores`: 1 where the largest logit is the
    label's, the label's probability, and its log-odds. A model that is no classifier,
    whose outputs are not [N, K] with a label of 0 ... K - 1, has "loss" only.
    """
    outputs, y = evaluate(model, split), split.y
    found = {"loss": loss(outputs, y).detach().float().cpu()}
    if not is_classifier(outputs, y):
        return found
    return found | {
        "correct": scores.correctness(outputs, y).cpu(),
        "confidence": scores.confidence(outputs, y).cpu(),
        "logit_confidence": scores.logit_confidence(outputs, y).cpu(),
    }


def is_classifier(outputs: Tensor, y: Tensor) -> bool:
    """Whether outputs are logits [N, K], K > 1, of classes y [N].

    >>> import torch
    >>> is_classifier(torch.zeros(1, 2), torch.tensor([1]))
    True
    >>> is_classifier(torch.zeros(1, 2), torch.tensor([7]))
    False
    """
    if outputs.dim() != 2 or outputs.shape[1] < 2 or y.shape != outputs.shape[:1]:
        return False
    whole = not y.dtype.is_floating_point
    return whole and int(y.min()) >= 0 and int(y.max()) < outputs.shape[1]


def accuracies(samples: Samples) -> dict[str, float]:
    """{"UA", "RA", "TA"} from values a record; TA only if there are fresh ones.

    >>> import torch
    >>> accuracies({"forget": {"correct": torch.tensor([1.0, 0.0, 0.0, 0.0])}})
    {'UA': 0.75}
    """
    found = {}
    samples = {part: values for part, values in samples.items() if "correct" in values}
    if "forget" in samples:
        found["UA"] = 1 - float(samples["forget"]["correct"].double().mean())
    for name, part in (("RA", "retain"), ("TA", "fresh")):
        if part in samples:
            found[name] = float(samples[part]["correct"].double().mean())
    return found


NAMES = ("UA", "MIA", "RA", "TA")


def of_model(samples: Samples, decimals: int | None = None) -> dict[str, float]:
    """{"UA", "MIA", "RA", "TA"} from values a record of forget, retain and fresh.

    decimals: of the confidences, see `mia_efficacy`.
    """
    confidences = [samples[n]["confidence"] for n in ("retain", "fresh", "forget")]
    attack = mia_efficacy(*confidences, decimals=decimals)
    found = accuracies(samples) | {"MIA": attack}
    return {name: found[name] for name in NAMES}


def gaps(unlearned: Mapping[str, float], reference: Mapping[str, float]) -> dict:
    """Signed differences to the retrained model, and "gap", the mean of their sizes.

    A positive UA gap is over-forgetting: as much a failure as a negative one.

    >>> gaps({"UA": 0.5, "RA": 0.75}, {"UA": 0.25, "RA": 1.0})
    {'UA gap': 0.25, 'RA gap': -0.25, 'gap': 0.25}
    """
    signed = {f"{name} gap": unlearned[name] - reference[name] for name in unlearned}
    sizes = [abs(value) for value in signed.values()]
    return signed | {"gap": sum(sizes) / len(sizes)}
