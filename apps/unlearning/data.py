"""The records of an experiment: learned, to be forgotten, never seen."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.common import images
from apps.common.arrays import open_arrays
from apps.common.images import Split
from apps.unlearning.forget import ForgetSet, choose, parse

__all__ = ["Data", "Split", "examples", "load", "subset"]


PARTS = ("train", "held_out", "fresh", "fresh_forgotten")


@dataclass(frozen=True)
class Data:
    """train: what the original model learns, poison included. forget: of it. fresh:
    what no model has seen, for metrics; held_out: the same, for stop rules and choices.

    A forgotten class is in neither `fresh` nor `held_out`; `fresh_forgotten` holds its
    fresh records, or all fresh ones if no class is forgotten: what an attack compares
    the forget set with.
    """

    train: Split
    forget: ForgetSet
    held_out: Split
    fresh: Split
    fresh_forgotten: Split
    classes: int
    name: str

    @property
    def forgotten(self) -> Split:
        return subset(self.train, self.forget.positions)

    @property
    def retained(self) -> Split:
        keep = torch.ones(len(self.train), dtype=torch.bool)
        keep[self.forget.positions] = False
        return subset(self.train, keep.nonzero().squeeze(1))


def load(
    dataset: str,
    forget: str,
    seed: int,
    data_dir: str | Path | None = None,
    part: str = "test",
) -> Data:
    """A data set with a forget set; `part` "validation" halves the validation part into
    held-out and fresh records, and does not touch the test part.

    Raises ValueError for unusable data or a forget set that does not fit them.
    """
    splits = images.load(dataset, seed, data_dir)
    attributes = {}
    if parse(forget).kind == "attribute":
        attributes = _attributes(dataset, data_dir)
    train, chosen = choose(forget, splits, seed, attributes)
    held_out, fresh = splits.validation, splits.test
    if part == "validation":
        half = len(held_out) // 2
        whole = torch.arange(len(held_out))
        held_out, fresh = subset(held_out, whole[:half]), subset(held_out, whole[half:])
    alike = fresh
    if chosen.removed_class is not None:
        alike = subset(fresh, (fresh.y == chosen.removed_class).nonzero().squeeze(1))
        held_out = _without(held_out, chosen.removed_class)
        fresh = _without(fresh, chosen.removed_class)
    return Data(train, chosen, held_out, fresh, alike, splits.classes, splits.name)


def subset(split: Split, positions: Tensor) -> Split:
    """Some records, in the order of `positions`."""
    ids = None if split.ids is None else split.ids[positions]
    where = positions.to(split.y.device)
    return Split(split.x[where], split.y[where], ids)


def to(data: Data, device: str) -> Data:
    parts = {n: getattr(data, n).to(device) for n in PARTS}
    return replace(data, **parts)


def examples(dataset: Any, name: str = "the data set") -> Split:
    """A dataset of (x, y) as two tensors in memory.

    dataset: a Split, a TensorDataset, or anything with a length and dataset[i], which
    is (x, y): x of one shape, y a class. Raises ValueError for one that is empty
    or has another form.

    >>> examples([(torch.zeros(3), 1), (torch.ones(3), 0)]).y
    tensor([1, 0])
    """
    if isinstance(dataset, Split):
        split = dataset
    elif isinstance(dataset, torch.utils.data.TensorDataset):
        if len(dataset.tensors) != 2:
            raise ValueError(f"{name} must give (x, y), not {len(dataset.tensors)}")
        split = Split(*dataset.tensors)
    else:
        try:
            rows = [dataset[i] for i in range(len(dataset))]
            x = torch.stack([torch.as_tensor(row[0]) for row in rows])
            y = torch.as_tensor([int(row[1]) for row in rows])
        except (TypeError, IndexError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{name} must have a length and give (x, y) with x of one shape and "
                f"y a class: {error}"
            ) from error
        split = Split(x, y)
    if len(split) == 0:
        raise ValueError(f"{name} is empty")
    if len(split.x) != len(split.y):
        raise ValueError(f"{name} has {len(split.x)} inputs and {len(split.y)} targets")
    return split


def _without(split: Split, label: int) -> Split:
    return subset(split, (split.y != label).nonzero().squeeze(1))


def _attributes(dataset: str, data_dir: str | Path | None) -> dict[str, np.ndarray]:
    """Arrays of a user's .npz beside x and y that have one value a record."""
    if not dataset.endswith(".npz"):
        return {}
    path = Path(data_dir or ".") / dataset
    with open_arrays(path, "y") as arrays:
        n = len(arrays["y"])
        others = [name for name in arrays.files if name not in ("x", "y")]
        return {name: arrays[name] for name in others if arrays[name].shape == (n,)}
