"""What the service asks of the rest of this app: data, the original model, unlearning.

Records are named by their index in the data set. Nothing here knows of requests.
"""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from apps.common import cost, images
from apps.common.images import Split
from apps.common.runs import RunFolder
from apps.common.seeds import mixed
from apps.unlearning import data as sets
from apps.unlearning import unlearner
from apps.unlearning.config import Config
from apps.unlearning.ensemble import (
    Ensemble,
    Shards,
    Store,
    train_sharded,
    train_shards,
)
from apps.unlearning.fitting import fit
from apps.unlearning.models import builder
from apps.unlearning.pruning import Original, Pruner, train_original
from apps.unlearning.stages import Stages
from apps.unlearning.unlearning import Result, unlearn
from sparsekit import fixed

Masks = dict[str, Tensor]


@dataclass(frozen=True)
class Material:
    """The data set, cut as the seed says; n_records: of all parts together."""

    train: Split
    held_out: Split
    fresh: Split
    classes: int
    n_records: int
    name: str

    def content_sha256(self) -> str:
        """Of all training records: ids, labels and inputs, as they are learned from."""
        found = sha256()
        for tensor in (self.train.ids, self.train.y, self.train.x):
            found.update(tensor.contiguous().cpu().numpy().tobytes())
        return found.hexdigest()


def material(config: Config, erased: Iterable[int] = ()) -> Material:
    """Loads the data. erased: records that are left out of `held_out` and `fresh`; of
    the training part, a caller takes what it may by `chosen`."""
    splits = images.load(config.dataset, config.seed, config.data_dir).to(config.device)
    parts = (splits.train, splits.validation, splits.test)
    own = torch.cat([parts[0].ids, parts[1].ids])
    # An official test part counts its records by itself, from 0: it is nobody's.
    shared = not torch.isin(parts[2].ids, own).any()
    n_records = len(own) + (len(parts[2]) if shared else 0)
    gone = torch.tensor(sorted(erased), dtype=torch.int64)
    held_out = _without(splits.validation, gone)
    fresh = _without(splits.test, gone) if shared else splits.test
    return Material(
        splits.train, held_out, fresh, splits.classes, n_records, splits.name
    )


def chosen(split: Split, records: Iterable[int]) -> Split:
    """The records of a part that have these indices, in the order of the part."""
    wanted = torch.tensor(sorted(records), dtype=torch.int64)
    return sets.subset(split, torch.isin(split.ids, wanted).nonzero().squeeze(1))


def _without(split: Split, records: Tensor) -> Split:
    return sets.subset(split, (~torch.isin(split.ids, records)).nonzero().squeeze(1))


def original(config: Config, data: Material, work: Path, shards: Path) -> Original:
    """The model that is trained on all training records; goes on where it was cut.

    shards: folder for the checkpoints of sisa.
    """
    pruner = Pruner(
        config.pruner, config.sparsity, config.rewind, config.rounds, config.prunable
    )
    if config.method == "sisa":
        return train_sharded(
            pruner, data.train, builder(config, data), config.recipe, cut(config),
            seed=config.seed, store=Store(shards),
        )  # fmt: skip
    return train_original(
        pruner,
        data.train,
        builder(config, data),
        config.recipe,
        seed=config.seed,
        stages=_stages(config, work),
    )


def cut(config: Config) -> Shards:
    """The shards and slices of a config whose method is sisa."""
    method = unlearner.build(config.method, config.options)
    return Shards(method.shards, method.slices)


def given(config: Config, data: Material, path: Path) -> Original:
    """A model that was trained elsewhere: its weights, of the config's architecture.

    path: safetensors, a plain state_dict or what `write_model` wrote. Zeros of a plain
    weight matrix are absent weights. Where a mask comes from is not known, so it counts
    as chosen with the forget data.

    Raises FileNotFoundError, and ValueError for weights of another form, or not finite.
    """
    if config.method == "sisa":
        raise ValueError(
            "sisa decides how a model is trained: leave the weights out, or set up "
            "with another method"
        )
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    tensors, metadata = RunFolder(path.parent).read_tensors(path.name)
    model = builder(config, data)(0)
    try:
        packed = "sparsekit.packing" in metadata
        state, masks = cost.unpacked(tensors, metadata) if packed else (tensors, {})
        model.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"{path} does not fit model {config.model!r} of width {config.width} and "
            f"depth {config.depth} on {data.name}: {error}"
        ) from error
    for name, value in state.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{path}: {name} is not finite")
    masks = masks if packed else fixed.of_zeros(model)
    provenance = "with-forget-data" if masks else "data-free"
    return Original(model.to(config.device).eval(), masks, provenance)


def unlearned(
    config: Config,
    data: Material,
    before: Original,
    kept: Iterable[int],
    erased: Iterable[int],
    work: Path,
) -> Result:
    """One unlearning run by the config's method; goes on where it was cut."""
    stage = _stages(config, work).begin("unlearn")
    return unlearn(
        before.model,
        chosen(data.train, kept),
        chosen(data.train, erased),
        config.method,
        options=config.options,
        masks=before.masks,
        mask_provenance=before.provenance,
        held_out=data.held_out,
        recipe=config.recipe,
        build_model=builder(config, data),
        seed=config.seed,
        stage=stage,
    )


def references(
    config: Config,
    data: Material,
    before: Original,
    kept: Iterable[int],
    n: int,
    work: Path,
) -> list[nn.Module]:
    """n models trained from scratch on the records that stay, with the same masks.

    Each is a seed of its own: other weights, another order of the data.
    """
    stages = _stages(config, work)
    retained, build = chosen(data.train, kept), builder(config, data)
    found: list[nn.Module] = []
    for number in range(n):
        seed = mixed(config.seed, 1000 + number)
        if isinstance(before.model, Ensemble):  # theirs is no single network
            shards, masks = before.model.shards, before.model.masks
            found.append(
                train_shards(
                    build, retained, shards, config.recipe, seed=seed, masks=masks
                ).eval()
            )
            continue
        model = build(seed).to(config.device)
        fixed.apply(model, before.masks)
        stage = stages.begin(f"reference {number}")
        if stage.result is None:
            fit(
                model, retained, config.recipe,
                seed=seed, masks=before.masks, stage=stage,
            )  # fmt: skip
        model.load_state_dict(stage.finish(model=model.state_dict())["model"])
        found.append(model.eval())
    return found


def write_model(path: Path, model: nn.Module, masks: Masks) -> None:
    """One safetensors file; absent weights take one bit or less."""
    tensors, metadata = cost.packed(model, masks)
    RunFolder(path.parent).write_tensors(path.name, tensors, metadata)


def read_model(
    path: Path, provenance: str, config: Config, data: Material, shards: Path
) -> Original:
    """What `write_model` wrote. shards: folder of the checkpoints of sisa.

    Raises FileNotFoundError, ValueError.
    """
    tensors, metadata = RunFolder(path.parent).read_tensors(path.name)
    build = builder(config, data)
    try:
        state, masks = cost.unpacked(tensors, metadata)
        model = build(0)
        if config.method == "sisa":
            model = _ensemble(config, build, masks, Store(shards))
        model.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is no model of this service: {error}") from error
    return Original(model.to(config.device).eval(), masks, provenance)


def _ensemble(
    config: Config, build: Callable[[int], nn.Module], masks: Masks, store: Store
) -> Ensemble:
    """One to read weights into. masks: by the ensemble's names, of all shards alike."""
    first, shards = "models.0.", cut(config)
    own = {
        name.removeprefix(first): mask
        for name, mask in masks.items()
        if name.startswith(first)
    }
    parts = [build(0) for _ in range(shards.shards)]
    return Ensemble(parts, build, shards, config.seed, own, store, {})


def parameters(before: Original) -> tuple[int, int]:
    """All parameters, and the active ones."""
    return cost.count_parameters(before.model, before.masks)


def require_usable(model: nn.Module, before: nn.Module) -> None:
    """ValueError for another architecture than before, or weights not finite."""
    shapes = {name: value.shape for name, value in before.state_dict().items()}
    state = model.state_dict()
    if {name: value.shape for name, value in state.items()} != shapes:
        raise ValueError(
            f"it gives a {type(model).__name__} of another form than the service's "
            "model: choose another method"
        )
    for name, value in state.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} is not finite afterwards: lower the method's lr")


def clear(work: Path) -> None:
    """Removes what an interrupted run kept: weights and optimizer state."""
    if work.is_symlink():
        raise ValueError(f"{work} is a link: remove it by hand")
    if work.is_dir():
        shutil.rmtree(work)


def _stages(config: Config, work: Path) -> Stages:
    return Stages(RunFolder(work), replace(config, resume=True))
