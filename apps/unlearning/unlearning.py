"""unlearn: a model, what it may keep, what it must forget, a method."""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from apps.unlearning import metrics, models
from apps.unlearning.data import Split, examples
from apps.unlearning.fitting import Loss, Recipe
from apps.unlearning.stages import Stage, Stages
from apps.unlearning.unlearner import Problem, Unlearner, build
from sparsekit import fixed
from sparsekit.data_pruning.per_sample import cross_entropy


@dataclass(frozen=True)
class Result:
    """What `unlearn` returns.

    model: the unlearned model, in evaluation mode; the one given is unchanged. masks:
    {name: bool} of a sparse model. method, options: what was run. exact: whether the
    method leaves no trace by construction; of a sparse model only if the mask never
    saw the forget set. seconds: of the method alone. rows: its log, one dict an epoch.
    samples: {"forget", "retain", "fresh"} -> {"correct", "confidence", ..., "loss"} ->
    [N], a value a record, in the order given; only "loss" if the model is no
    classifier. metrics: {"UA", "RA", "TA"}, fractions, of a classifier.
    """

    model: nn.Module
    masks: Mapping[str, Tensor]
    method: str
    options: dict[str, Any]
    exact: bool
    seconds: float
    rows: list[dict[str, Any]]
    samples: dict[str, dict[str, Tensor]]
    metrics: dict[str, float]


def unlearn(
    model: nn.Module,
    retain: Any,
    forget: Any,
    method: str | Unlearner = "l1_sparse",
    *,
    options: Mapping[str, Any] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    mask_provenance: str = "with-forget-data",
    fresh: Any = None,
    held_out: Any = None,
    removed_class: int | None = None,
    recipe: Recipe | None = None,
    build_model: Callable[[int], nn.Module] | None = None,
    loss: Loss = cross_entropy,
    seed: int = 0,
    stage: Stage | None = None,
) -> Result:
    """Removes the influence of `forget` from a trained model.

    Args:
        model: any module; called as model(x), logits [B, K] unless `loss` says
            otherwise. It is not changed.
        retain, forget: datasets of (x, y): a TensorDataset, or anything with a length
            and dataset[i]. They must not share records.
        method: a name in `unlearners/`, or an instance with its settings.
        options: fields of the method, by name.
        masks: {parameter name: bool} of a sparse model. Default: the zeros of weights
            that have any.
        mask_provenance: data-free, retain-only or with-forget-data (the default, since
            nothing is known): whether a retrained sparse model may be called exact.
        fresh: records that the model never saw, for TA.
        held_out: others, for methods with a stop rule.
        removed_class: if a whole class is forgotten.
        recipe: how the original was trained, for methods that train anew.
        build_model: seed -> untrained model; default: layers draw their weights again.
        loss: (outputs, y) -> [B].
        seed: of everything random. stage: keeps the state of a run that may be cut.

    Raises:
        ValueError: for an empty set, records in both sets, an unknown method or
            option, masks that do not fit, a model that lacks what the method needs.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> x, y = torch.randn(20, 3), torch.arange(20) % 2
    >>> retain = torch.utils.data.TensorDataset(x[:15], y[:15])
    >>> forget = torch.utils.data.TensorDataset(x[15:], y[15:])
    >>> result = unlearn(nn.Linear(3, 2), retain, forget, "finetune")
    >>> sorted(result.metrics), result.samples["forget"]["correct"].shape
    (['RA', 'UA'], torch.Size([5]))
    """
    unlearner = build(method, options)
    kept, forgotten = examples(retain, "retain"), examples(forget, "forget")
    _require_disjoint(kept, forgotten)
    masks = fixed.of_zeros(model) if masks is None else dict(masks)
    fixed.check(model, masks)
    require_provenance(mask_provenance)
    problem = Problem(
        copy.deepcopy(model),
        kept,
        forgotten,
        masks=masks,
        seed=seed,
        recipe=recipe or Recipe(),
        build_model=build_model or _lazily(model),
        held_out=None if held_out is None else examples(held_out, "held_out"),
        removed_class=removed_class,
        loss=loss,
        stage=stage or Stages().begin("unlearn"),
    )
    began = time.perf_counter()
    unlearned = unlearner.run(problem)
    seconds = time.perf_counter() - began if stage is None else stage.seconds
    _require_sparse(unlearned, masks, unlearner)
    sets = {"forget": forgotten, "retain": kept}
    if fresh is not None:
        sets["fresh"] = examples(fresh, "fresh")
    samples = {n: metrics.per_sample(unlearned, s, loss) for n, s in sets.items()}
    return Result(
        unlearned.eval(),
        masks,
        name_of(unlearner),
        dict(vars(unlearner)),
        unlearner.exact and (not masks or mask_provenance != "with-forget-data"),
        seconds,
        problem.stage.rows,
        samples,
        metrics.accuracies(samples),
    )


PROVENANCES = ("data-free", "retain-only", "with-forget-data")


def require_provenance(provenance: str) -> None:
    """ValueError unless it is one of `PROVENANCES`."""
    if provenance not in PROVENANCES:
        raise ValueError(
            f"a mask's provenance is one of {', '.join(PROVENANCES)}, got "
            f"{provenance!r}"
        )


def name_of(unlearner: Unlearner) -> str:
    """The file name of a method, or the class's name of one defined elsewhere."""
    module = type(unlearner).__module__
    package, _, name = module.rpartition(".")
    own = package == "apps.unlearning.unlearners"
    return name if own else type(unlearner).__name__


def _lazily(model: nn.Module) -> Callable[[int], nn.Module]:
    """Untrained copies; a model that cannot be drawn again is refused only if asked."""
    return lambda seed: models.anew(model)(seed)


def _require_disjoint(retain: Split, forget: Split) -> None:
    """ValueError if both have ids and share one."""
    if retain.ids is None or forget.ids is None:
        return
    shared = sorted(set(retain.ids.tolist()) & set(forget.ids.tolist()))
    if shared:
        raise ValueError(
            f"record {shared[0]} is in both retain and forget ({len(shared)} are): "
            "take them out of retain"
        )


def _require_sparse(
    model: nn.Module, masks: Mapping[str, Tensor], unlearner: Unlearner
) -> None:
    for name, mask in masks.items():
        parameters = dict(model.named_parameters())
        if name in parameters and bool(parameters[name].detach()[~mask].any()):
            raise RuntimeError(
                f"{type(unlearner).__name__} gave absent weights of {name!r} a value"
            )
