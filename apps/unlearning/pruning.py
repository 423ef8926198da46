"""Prune first: the original model, dense or sparse, and where its mask comes from."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from apps.common.images import Split
from apps.unlearning.fitting import Recipe, fit
from apps.unlearning.stages import Stages
from sparsekit import Sparsifier
from sparsekit.accounting import forward_flops
from sparsekit.method import Masks, Method
from sparsekit.methods.oneshot import OneShot
from sparsekit.methods.static import Static
from sparsekit.methods.synflow import SynFlow

DATA_FREE = ("dense", "synflow", "random")


@dataclass(frozen=True)
class Pruner:
    """How the original model becomes sparse.

    * dense: it does not.
    * omp: trained, the smallest weights of all layers together removed at once, rewound
      to the weights after epoch `rewind`, trained again from there.
    * imp: the same in `rounds` rounds, each of which keeps the same share.
    * synflow: before training, without data, by the flow through each weight.
    * random: before training, at random, with sparsekit's ERK allocation: the control.

    Args:
        sparsity: fraction of zeros over the pruned weights.
        prunable: all weight matrices, or conv: those of convolutions, as published. The
            whole model is then less sparse than `sparsity` says.

    Source: Jia et al. 2023, arXiv 2304.04934, section 3. Differs from the paper: the
    optimizer starts anew where weights are rewound, and a round of imp removes the
    share that leads to `sparsity` after `rounds`, not 20 %.
    """

    name: str = "omp"
    sparsity: float = 0.95
    rewind: int = 1
    rounds: int = 5
    prunable: str = "all"


@dataclass(frozen=True)
class Original:
    """A trained model, its masks ({} if dense), and their provenance.

    provenance: data-free, retain-only or with-forget-data: what the *masks* depend on.
    flops: of all training that led here, pruning included; absent weights cost nothing,
    a backward pass two forward passes. None: not counted.
    """

    model: nn.Module
    masks: Masks
    provenance: str
    flops: float | None = None


def train_original(
    pruner: Pruner,
    train: Split,
    build_model: Callable[[int], nn.Module],
    recipe: Recipe,
    *,
    seed: int,
    mask_data: Split | None = None,
    stages: Stages | None = None,
    name: str = "original",
) -> Original:
    """Prunes as `pruner` says and trains on `train`.

    Args:
        train: all of what the final weights learn.
        build_model: seed -> untrained model.
        mask_data: what omp and imp see before the last round; default: `train`. Give
            the retain set for a mask that owes nothing to the forget set.
        stages: keeps the state of an interrupted run. name: of its stages.
    """
    stages = Stages() if stages is None else stages
    device = train.y.device
    model = build_model(seed).to(device)
    if pruner.name in DATA_FREE:
        masks = untrained_masks(pruner, model, train, seed)
        _trained(model, train, recipe, seed, masks, stages, name, 0)
        return Original(model, masks, "data-free", _flops(stages, name))

    chosen_on = train if mask_data is None else mask_data
    model = _trained(
        model, chosen_on, recipe, seed, {}, stages, f"{name}: early", 0, pruner.rewind
    )
    early = copy.deepcopy(model.state_dict())
    masks: Masks = {}
    rounds = 1 if pruner.name == "omp" else pruner.rounds
    for i in range(1, rounds + 1):
        what = f"{name}: round {i}"
        _trained(model, chosen_on, recipe, seed, masks, stages, what, pruner.rewind)
        sparsity = pruner.sparsity
        if i < rounds:
            sparsity = 1 - (1 - pruner.sparsity) ** (i / rounds)
        # An absent weight is zero, so that it is among the smallest again.
        method = OneShot(sparsity, across_layers=True)
        masks = masks_of(method, model, prunable(model, pruner.prunable), seed)
        model.load_state_dict(early)
    _trained(model, train, recipe, seed, masks, stages, name, pruner.rewind)
    provenance = "with-forget-data" if mask_data is None else "retain-only"
    return Original(model, masks, provenance, _flops(stages, name))


def untrained_masks(pruner: Pruner, model: nn.Module, train: Split, seed: int) -> Masks:
    """Masks that no data decide; of `train`, only the shape of an input is used."""
    if pruner.name == "dense":
        return {}
    params = prunable(model, pruner.prunable)
    if pruner.name == "random":
        return masks_of(Static(pruner.sparsity), model, params, seed)
    ones = torch.ones_like(train.x[:1], dtype=torch.float64)

    def flow(model: nn.Module) -> Tensor:
        return model(ones).sum()

    # A product over layers leaves the range of float32 in deep networks.
    double = copy.deepcopy(model).double()
    return masks_of(SynFlow(pruner.sparsity), double, params, seed, flow)


def masks_of(
    method: Method,
    model: nn.Module,
    params: list[str] | None,
    seed: int,
    objective: Callable[[nn.Module], Tensor] | None = None,
) -> Masks:
    """The masks with which `method` starts on this model; the model is not changed."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    sparsifier = Sparsifier(
        model, optimizer, method, params=params, seed=seed, objective=objective
    )
    return sparsifier.finalize()


def prunable(model: nn.Module, which: str) -> list[str] | None:
    """Names of the weights that may be pruned; None: sparsekit's default, all matrices.

    Raises ValueError for "conv" if the model has no convolution.
    """
    if which == "all":
        return None
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    names = [
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, convolutions)
    ]
    if not names:
        raise ValueError(
            f"prunable = conv, but {type(model).__name__} has no convolution: use all"
        )
    return names


def example_flops(model: nn.Module, train: Split, masks: Mapping[str, Tensor]) -> float:
    """Of one record in training: forward, and backward for twice as much."""
    return 3 * forward_flops(model, train.x[:1]).sparse(masks).total


def _flops(stages: Stages, name: str) -> float:
    own = (row for row in stages.rows() if row["stage"].split(":")[0] == name)
    return sum(row["flops"] for row in own if "flops" in row)


def _trained(
    model: nn.Module,
    train: Split,
    recipe: Recipe,
    seed: int,
    masks: Mapping[str, Tensor],
    stages: Stages,
    name: str,
    begin: int,
    end: int | None = None,
) -> nn.Module:
    """`fit` as a stage; the masks are applied first."""
    stage = stages.begin(name)
    if stage.result is None:
        fit(
            model, train, recipe,
            seed=seed, masks=masks, begin=begin, end=end, stage=stage,
        )  # fmt: skip
        records = len(train) - len(train) % recipe.batch
        epoch = records * example_flops(model, train, masks)
        for row in stage.rows:
            row["flops"] = epoch
    model.load_state_dict(stage.finish(model=model.state_dict())["model"])
    return model
