"""Training in shards and slices, so that little has to be trained again (SISA).

    store = Store()                                       # or Store(folder)
    model = train_shards(build_model, train, Shards(5, 4), recipe, seed=0, store=store)
    model = train_shards(build_model, retain, Shards(5, 4), recipe, seed=0, store=store)

The second call finds the checkpoints of all slices that lost no record, and of those
before the first that did. Which shard and slice a record belongs to is decided by its
id alone, so a model trained after a deletion is the one that never saw the record.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from apps.common import cost
from apps.common.images import Split
from apps.common.seeds import mixed
from apps.unlearning.data import subset
from apps.unlearning.fitting import Recipe, fit
from apps.unlearning.pruning import Original, Pruner, untrained_masks
from sparsekit import atomic, fixed


@dataclass(frozen=True)
class Shards:
    """S shards of R slices.

    >>> Shards(2, 4).epochs(20)
    [8, 8, 8, 8]
    """

    shards: int = 5
    slices: int = 4

    def __post_init__(self) -> None:
        if self.shards < 1 or self.slices < 1:
            raise ValueError(
                f"shards and slices must be at least 1, got {self.shards} and "
                f"{self.slices}"
            )

    def epochs(self, epochs: int) -> list[int]:
        """Epochs of each slice, which trains on all slices up to it: the work of one
        model trained `epochs` epochs. The mean is 2 epochs / (R + 1)."""
        ends = [2 * epochs * r // (self.slices + 1) for r in range(self.slices + 1)]
        return [end - start for start, end in pairwise(ends)]

    def place(self, record: int, seed: int) -> tuple[int, int]:
        """(shard, slice) of a record, by its id."""
        place = mixed(seed, 23, record) % (self.shards * self.slices)
        return place // self.slices, place % self.slices


@dataclass
class Store:
    """Checkpoints by key, in memory or as files; masked weights take few bytes.

    sizes: bytes of each. work: epochs times records of all trainings so far.
    """

    folder: Path | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    work: int = 0
    _held: dict[str, bytes] = field(default_factory=dict, repr=False)

    def read(self, key: str) -> dict[str, Tensor] | None:
        content = self._held.get(key)
        if self.folder is not None and (self.folder / f"{key}.safetensors").is_file():
            content = (self.folder / f"{key}.safetensors").read_bytes()
        if content is None:
            return None
        self.sizes[key] = len(content)
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        return cost.unpacked(tensors, metadata)[0]

    def write(self, key: str, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        tensors, metadata = cost.packed(model, masks)
        content = save(tensors, metadata)
        self.sizes[key] = len(content)
        if self.folder is None:
            self._held[key] = content
        else:
            atomic.write_bytes(self.folder / f"{key}.safetensors", content)

    @property
    def nbytes(self) -> int:
        """Of all checkpoints that were written or read."""
        return sum(self.sizes.values())


class Ensemble(nn.Module):
    """The shards' models; answers with the log of their mean probability.

    keys: {checkpoint: ids of the records that it learned}.
    """

    def __init__(self, models, build_model, shards, seed, masks, store, keys):
        super().__init__()
        self.models = nn.ModuleList(models)
        self.build_model, self.shards, self.seed = build_model, shards, seed
        self.masks, self.store, self.keys = masks, store, keys

    @property
    def all_masks(self) -> dict[str, Tensor]:
        """The masks of all shards' models, by the ensemble's names."""
        return {
            f"models.{i}.{name}": mask
            for i in range(len(self.models))
            for name, mask in self.masks.items()
        }

    def forward(self, x: Tensor) -> Tensor:
        logs = torch.stack([model(x).log_softmax(1) for model in self.models])
        return logs.logsumexp(0) - torch.log(torch.tensor(float(len(logs))))

    def __deepcopy__(self, memo):
        """A copy shares the checkpoints, which are only added to."""
        import copy

        return Ensemble(
            [copy.deepcopy(model, memo) for model in self.models],
            self.build_model, self.shards, self.seed, self.masks, self.store, self.keys,
        )  # fmt: skip


def train_shards(
    build_model: Callable[[int], nn.Module],
    train: Split,
    shards: Shards,
    recipe: Recipe,
    *,
    seed: int,
    masks: Mapping[str, Tensor] | None = None,
    store: Store | None = None,
) -> Ensemble:
    """Trains all shards, and takes from the store what was trained before.

    Args:
        build_model: seed -> untrained model.
        train: records with ids. recipe: its epochs are shared among slices.
        masks: of every shard's model; data-free ones keep the deletion exact.
        store: of checkpoints; a key names the records, recipe, seed and masks.

    Raises ValueError for records without ids, or a shard without records.
    """
    if train.ids is None:
        raise ValueError("shards need records with ids: Split(x, y, ids)")
    store, masks = store or Store(), dict(masks or {})
    places = torch.tensor([shards.place(int(i), seed) for i in train.ids])
    models, keys = [], {}
    for shard in range(shards.shards):
        own_seed = seed if shard == 0 else mixed(seed, 29, shard)
        model = build_model(own_seed).to(train.y.device)
        fixed.apply(model, masks)
        context = repr((recipe, own_seed, shards, _hash(masks)))
        trained = False
        for number, epochs in enumerate(shards.epochs(recipe.epochs)):
            here = (places[:, 0] == shard) & (places[:, 1] <= number)
            chosen = here.nonzero().squeeze(1)
            if len(chosen) == 0 or epochs == 0:
                continue
            key = _key(context, number, train.ids[chosen])
            keys[key] = train.ids[chosen].tolist()
            trained = True
            state = store.read(key)
            if state is not None:
                model.load_state_dict(state)
                continue
            part = subset(train, chosen)
            own = replace(recipe, epochs=epochs, batch=min(recipe.batch, len(part)))
            slice_seed = own_seed if number == 0 else mixed(own_seed, 31, number)
            fit(model, part, own, seed=slice_seed, masks=masks)
            store.work += epochs * len(part)
            store.write(key, model, masks)
        if not trained:
            raise ValueError(
                f"shard {shard} of {shards.shards} has no records among {len(train)}: "
                "use fewer shards"
            )
        models.append(model)
    return Ensemble(models, build_model, shards, seed, masks, store, keys)


def train_sharded(
    pruner: Pruner,
    train: Split,
    build_model: Callable[[int], nn.Module],
    recipe: Recipe,
    shards: Shards,
    *,
    seed: int,
    store: Store,
) -> Original:
    """The original model of SISA: with masks that no data decide, all shards."""
    model = build_model(seed).to(train.y.device)
    masks = untrained_masks(pruner, model, train, seed)
    ensemble = train_shards(
        build_model, train, shards, recipe, seed=seed, masks=masks, store=store
    )
    return Original(ensemble, ensemble.all_masks, "data-free")


def _key(context: str, number: int, ids: Tensor) -> str:
    content = json.dumps([context, number, ids.tolist()])
    return hashlib.sha256(content.encode()).hexdigest()


def _hash(masks: Mapping[str, Tensor]) -> str:
    parts = [f"{n}:{m.cpu().numpy().tobytes().hex()}" for n, m in masks.items()]
    return hashlib.sha256("".join(parts).encode()).hexdigest()
