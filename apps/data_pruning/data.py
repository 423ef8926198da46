"""The data of an experiment: a split, with planted noise and near-duplicates.

    data = load(Config(noise=0.1))
    data.splits.train.y        # with wrong labels
    data.flipped               # [N] bool, which they are

Validation and test part stay clean.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from apps.common import images
from apps.common.images import Split, Splits
from apps.common.seeds import mixed
from apps.data_pruning.config import Config

BLUR = 0.1  # standard deviation of what a near copy adds, in standardised units


@dataclass(frozen=True)
class Data:
    """splits: on the device of the settings.

    flipped: [N] bool, training labels that were replaced. copy_of: [N] int64, position
    of the training example that this one is a near copy of, -1 for originals.
    """

    splits: Splits
    flipped: Tensor
    copy_of: Tensor

    def __len__(self) -> int:
        return len(self.splits.train)


def load(config: Config) -> Data:
    """Data of a seed, which draws the split and everything that is planted."""
    splits = images.load(config.dataset, config.seed, config.data_dir)
    train = splits.train
    generator = torch.Generator().manual_seed(mixed(config.seed, 0, 3))
    if config.train_size is not None:
        train = _rows(train, stratified(train.y, config.train_size, generator))
    train, copy_of = with_duplicates(train, config.duplicates, generator)
    y, flipped = flip(train.y, config.noise, splits.classes, generator)
    splits = replace(splits, train=Split(train.x, y, train.ids))
    return Data(splits.to(config.device), flipped, copy_of)


def flip(
    y: Tensor, share: float, classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Labels of which a share is another class, uniformly; and which, [N] bool.

    >>> y, flipped = flip(torch.zeros(10).long(), 0.3, 4, torch.Generator())
    >>> int(flipped.sum()), bool((y[flipped] > 0).all()), int(y[~flipped].sum())
    (3, True, 0)
    """
    flipped = torch.zeros(len(y), dtype=torch.bool)
    chosen = torch.randperm(len(y), generator=generator)[: round(share * len(y))]
    flipped[chosen] = True
    shift = torch.randint(1, classes, (len(y),), generator=generator)
    return torch.where(flipped, (y + shift) % classes, y), flipped


def with_duplicates(
    train: Split, share: float, generator: torch.Generator
) -> tuple[Split, Tensor]:
    """A share of the examples replaced by near copies of others; and of which.

    A copy has the label of its original and Gaussian noise of standard deviation 0.1.
    """
    copy_of = torch.full((len(train),), -1)
    n_copies = round(share * len(train))
    if n_copies == 0:
        return train, copy_of
    order = torch.randperm(len(train), generator=generator)
    copies, originals = order[:n_copies], order[n_copies:]
    if len(originals) == 0:
        raise ValueError("duplicates leave no example to copy: lower the share")
    pick = torch.randint(len(originals), (n_copies,), generator=generator)
    copy_of[copies] = originals[pick]
    x, y = train.x.clone(), train.y.clone()
    noise = torch.randn((n_copies, *x.shape[1:]), generator=generator)
    x[copies] = train.x[copy_of[copies]] + BLUR * noise
    y[copies] = train.y[copy_of[copies]]
    return Split(x, y, train.ids), copy_of


def stratified(y: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n positions, sorted; each class has its share, up to one more or less."""
    if n > len(y):
        raise ValueError(f"train_size {n} exceeds the {len(y)} training examples")
    order = torch.randperm(len(y), generator=generator)
    order = order[y[order].argsort(stable=True)]  # by class, random within
    # Evenly spaced places take from every class its share, one more or less.
    places = (torch.arange(n) * len(y) + len(y) // 2) // n
    return order[places].sort().values


def _rows(split: Split, rows: Tensor) -> Split:
    ids = None if split.ids is None else split.ids[rows]
    return Split(split.x[rows], split.y[rows], ids)
