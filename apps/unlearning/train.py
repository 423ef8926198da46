"""One experiment: prune and train, unlearn, retrain, measure.

    python -m apps.unlearning train --forget class:3 --method l1_sparse --out runs/l1
    python -m apps.unlearning train --out runs/l1 --resume

or, in a notebook (nothing is written):

    result = train(Config(forget="random:0.1", pruner="omp", method="finetune"))
"""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from apps.common import cost
from apps.common.runs import RunFolder, is_finished
from apps.common.seeds import mixed
from apps.unlearning import data, metrics
from apps.unlearning.config import Config
from apps.unlearning.data import Data
from apps.unlearning.ensemble import (
    Ensemble,
    Shards,
    Store,
    train_sharded,
    train_shards,
)
from apps.unlearning.fitting import fit
from apps.unlearning.forget import parse
from apps.unlearning.models import builder
from apps.unlearning.pruning import (
    Original,
    Pruner,
    train_original,
)
from apps.unlearning.result import Result, load_result, measured, save
from apps.unlearning.stages import Stages
from apps.unlearning.unlearner import build
from apps.unlearning.unlearning import Result as Unlearned
from apps.unlearning.unlearning import unlearn

Samples = dict[str, dict]


@dataclass(frozen=True)
class Prepared:
    """What all methods share: the data, the original model, the retrained reference.

    reference_seconds: of the retraining, the yardstick of every method's run time.
    """

    data: Data
    original: Original
    reference: nn.Module
    original_seconds: float
    reference_seconds: float
    samples: Samples  # "original" and "reference"


def train(config: Config) -> Result:
    """Runs the experiment that `config` describes.

    Writes to `config.out` if it is given, else nothing; with `config.resume` goes on
    from the last complete epoch, to the same result bit for bit, times aside.

    Raises ValueError for unusable data or settings, and if a loss is not finite.
    """
    if config.resume and is_finished(config.out):
        return load_result(config.out, config)
    stages = _stages(config)
    return experiment(config, prepare(config, stages), stages)


def prepare(
    config: Config, stages: Stages | None = None, before: Prepared | None = None
) -> Prepared:
    """The original model and its reference; neither depends on the method.

    before: of the same config but for `forget` and `method`; its original is taken
    over, see `shares_original`.
    """
    stages = Stages() if stages is None else stages
    loaded = data.load(
        config.dataset, config.forget, config.seed, config.data_dir, config.part
    )
    loaded = data.to(loaded, config.device)
    build_model = builder(config, loaded)
    pruner = Pruner(
        config.pruner, config.sparsity, config.rewind, config.rounds, config.prunable
    )
    if before is not None:
        original = before.original
    elif config.method == "sisa":
        original = sharded(config, loaded, pruner, stages)
    else:
        original = train_original(
            pruner,
            loaded.train,
            build_model,
            config.recipe,
            seed=config.drawn,
            mask_data=loaded.retained if config.mask_from == "retain" else None,
            stages=stages,
        )
    reference, seconds = retrain(config, loaded, original, stages)
    samples = {
        "original": measure(original.model, loaded),
        "reference": measure(reference, loaded),
    }
    spent = stages.seconds("original")
    if before is not None:
        spent = before.original_seconds
    return Prepared(loaded, original, reference, spent, seconds, samples)


def sharded(config: Config, loaded: Data, pruner: Pruner, stages: Stages) -> Original:
    """The original as SISA trains it; its checkpoints are files of a run with `out`."""
    method = build("sisa", config.options)
    stage = stages.begin("original")
    original = train_sharded(
        pruner,
        loaded.train,
        builder(config, loaded),
        config.recipe,
        Shards(method.shards, method.slices),
        seed=config.drawn,
        store=Store(None if config.out is None else Path(config.out) / "shards"),
    )
    stage.finish()
    return original


def shares_original(config: Config) -> bool:
    """Whether the original model is the same for other forget sets, too."""
    poisoned = parse(config.forget).kind in ("backdoor", "confusion")
    return not poisoned and config.mask_from == "all"


def retrain(
    config: Config,
    loaded: Data,
    original: Original,
    stages: Stages | None = None,
    number: int = 0,
) -> tuple[nn.Module, float]:
    """A reference, trained on the retain set alone, and the seconds of its training.

    number: another number draws other weights and another order of the data.
    """
    stages = Stages() if stages is None else stages
    seed, name = mixed(config.drawn, 1000 + number), f"reference {number}"
    build_model, recipe = builder(config, loaded), config.recipe
    if config.reference == "retain-mask" and original.masks:
        pruner = Pruner(
            config.pruner,
            config.sparsity,
            config.rewind,
            config.rounds,
            config.prunable,
        )
        pruned = train_original(
            pruner, loaded.retained, build_model, recipe,
            seed=seed, stages=stages, name=name,
        )  # fmt: skip
        return pruned.model, stages.seconds(name)
    if isinstance(original.model, Ensemble):
        # Its gold standard is sharded as well; without a store all is trained anew.
        stage, shards = stages.begin(name), original.model.shards
        model = train_shards(
            build_model, loaded.retained, shards, recipe,
            seed=seed, masks=original.model.masks,
        )  # fmt: skip
        stage.finish()
        return model, stage.seconds
    masks = original.masks if config.reference == "same-mask" else {}
    model = build_model(seed).to(config.device)
    stage = stages.begin(name)
    if stage.result is None:
        fit(model, loaded.retained, recipe, seed=seed, masks=masks, stage=stage)
    model.load_state_dict(stage.finish(model=model.state_dict())["model"])
    return model, stage.seconds


def experiment(
    config: Config, prepared: Prepared, stages: Stages | None = None
) -> Result:
    """Unlearns by `config.method` and compares with the reference."""
    stages = Stages() if stages is None else stages
    loaded, original = prepared.data, prepared.original
    stage = stages.begin("unlearn")
    unlearned = unlearn_in(config, prepared, stage)
    samples = prepared.samples | {"unlearned": measure(unlearned.model, loaded)}
    masks = dict(unlearned.masks)
    costs = cost.costs(
        unlearned.model, masks, seconds=prepared.original_seconds, flops=original.flops
    ) | {
        "unlearn_seconds": unlearned.seconds,
        "retrain_seconds": prepared.reference_seconds,
    }
    if isinstance(original.model, Ensemble):
        costs["checkpoint_bytes"] = original.model.store.nbytes
    result = Result(
        config,
        measured(samples, unlearned.seconds / prepared.reference_seconds),
        costs,
        stages.rows() + unlearned.rows,
        samples,
        unlearned.model,
        masks,
        original.provenance,
        unlearned.exact,
    )
    if config.out is not None:
        same = config.reference == "same-mask"
        others = {
            "original": (original.model, original.masks),
            "reference": (prepared.reference, original.masks if same else {}),
        }
        save(RunFolder(config.out), result, loaded, others)
    return result


def unlearn_in(config: Config, prepared: Prepared, stage=None) -> Unlearned:
    """`unlearn` with the pieces of an experiment."""
    loaded, original = prepared.data, prepared.original
    return unlearn(
        original.model,
        loaded.retained,
        loaded.forgotten,
        build(config.method, config.options),
        masks=original.masks,
        mask_provenance=original.provenance,
        held_out=loaded.held_out,
        removed_class=loaded.forget.removed_class,
        recipe=config.recipe,
        build_model=builder(config, loaded),
        seed=config.drawn,
        stage=stage,
    )


def measure(model: nn.Module, loaded: Data) -> dict:
    """Values per record of the forget, the retain and the fresh set."""
    parts = {
        "forget": loaded.forgotten,
        "retain": loaded.retained,
        "fresh": loaded.fresh,
    }
    return {name: metrics.per_sample(model, split) for name, split in parts.items()}


def _stages(config: Config) -> Stages:
    if config.out is None:
        return Stages()
    return Stages(RunFolder(config.out), config)
