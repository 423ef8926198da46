"""Labelled images as standardised tensors, split by a seed.

* `load("mnist5k", seed=0)`: 5,000 digits, 3500 / 500 / 1000
* `load("mnist", seed=0)`: all of MNIST, with its own 10,000 test images
* `load("cifar10", seed=0, data_dir=D)`: found in D or $SPARSEKIT_DATA
* `load("images.npz", seed=0)`: yours, x [N, S, S] or [N, C, S, S], y [N]; or a table
  of numbers, x [N, D], whose columns are channels of one pixel, for an MLP
* `load("table.csv", seed=0)`, also .parquet: such a table, see `labelled_table`
* `load("photos", seed=0)`: a folder ROOT/CLASS/*.png, see `folders`
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.common import datasets, folders, labelled_table
from apps.common.arrays import open_arrays
from apps.common.device import require_device
from apps.common.folders import LEAST_PER_CLASS
from sparsekit.spelling import choice

NAMES = ("mnist5k", "mnist", "cifar10")
PARTS = ("train", "validation", "test")
SHARES = {"validation": 0.1, "test": 0.2}


@dataclass(frozen=True)
class Split:
    """x: [N, C, S, S] float32, standardised; y: [N] int64, 0 ... classes - 1.

    In memory the channels of `x` are innermost, see `channels_last`.
    ids: [N] int64, where the images stand in the data set; None if it does not matter.
    """

    x: Tensor
    y: Tensor
    ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: str) -> "Split":
        place = require_device(device)
        return Split(self.x.to(place), self.y.to(place), self.ids)


@dataclass(frozen=True)
class Splits:
    train: Split
    validation: Split
    test: Split
    classes: int
    name: str = ""  # as results call the data set

    def to(self, device: str) -> "Splits":
        parts = (self.train, self.validation, self.test)
        return Splits(*(part.to(device) for part in parts), self.classes, self.name)

    @property
    def channels(self) -> int:
        return self.train.x.shape[1]

    @property
    def size(self) -> int:
        return self.train.x.shape[2]

    @property
    def shape(self) -> tuple[int, int, int]:
        """What a model is built for: classes, channels, size."""
        return self.classes, self.channels, self.size

    def facts(self) -> dict[str, Any]:
        """Shape, classes; of each part its images, the fewest and most of a class."""
        parts = {}
        for name in PARTS:
            part = getattr(self, name)
            counts = part.y.bincount(minlength=self.classes)
            ends = {"fewest": int(counts.min()), "most": int(counts.max())}
            parts[name] = {"images": len(part)} | ends
        shape = list(self.train.x.shape[1:])
        return {"shape": shape, "classes": self.classes, "parts": parts}


def lines(facts: Mapping[str, Any]) -> list[str]:
    """`Splits.facts`, with the name of the `dataset`, for people."""
    shape = "x".join(map(str, facts["shape"]))
    return [
        f"{facts['dataset']}: images {shape}, {facts['classes']} classes",
        *(
            f"  {name:10} {part['images']:6} images, {part['fewest']} to "
            f"{part['most']} a class"
            for name, part in facts["parts"].items()
        ),
    ]


@dataclass(frozen=True)
class Images:
    """A data set before it is split: `test` holds the official test part, if any.

    name: as results call it.
    """

    x: np.ndarray  # [N, C, S, S], any real type
    y: np.ndarray  # [N] int64, 0 ... classes - 1
    classes: int
    test: tuple[np.ndarray, np.ndarray] | None = None
    name: str = ""


def load(
    dataset: str = "mnist5k", seed: int = 0, data_dir: str | Path | None = None
) -> Splits:
    """Train, validation and test part of a data set; the seed draws the split.

    Each class is cut by itself: 70 % train, 10 % validation, 20 % test. A data set with
    an official test part keeps it, and gives 10 % of the rest to validation. Pixels are
    standardised per channel by the mean and standard deviation of the train part.

    Since the seed draws the split, an interval over seeds includes the sample.

    Raises ValueError for an unknown name or unusable contents, FileNotFoundError.
    """
    images = _images(str(dataset), data_dir)
    generator = np.random.default_rng(seed)
    if images.test is None:
        train, validation, test = cut(images.y, None, generator)
        x_test, y_test = images.x[test], images.y[test]
    else:
        train, validation, _ = cut(images.y, len(images.y), generator)
        x_test, y_test = images.test
        test = np.arange(len(y_test))

    x_train = images.x[train].astype(np.float32)
    mean = x_train.mean((0, 2, 3), dtype=np.float64, keepdims=True).astype(np.float32)
    std = x_train.std((0, 2, 3), dtype=np.float64, keepdims=True).astype(np.float32)
    if not (std > 0).all():
        number = int((std.ravel() == 0).argmax())
        raise ValueError(
            f"{dataset}: channel {number} of the images, or column {number} of the "
            "table, is constant in the train part: leave it out"
        )

    def part(x: np.ndarray, y: np.ndarray, ids: np.ndarray) -> Split:
        standardised = torch.from_numpy((x.astype(np.float32) - mean) / std)
        y, ids = map(torch.from_numpy, (y.copy(), ids))
        return Split(channels_last(standardised), y, ids)

    return Splits(
        part(x_train, images.y[train], train),
        part(images.x[validation], images.y[validation], validation),
        part(x_test, y_test, test),
        images.classes,
        images.name,
    )


def channels_last(x: Tensor) -> Tensor:
    """x [N, C, H, W] with the channels innermost in memory, as batches of it are too.

    Dense convolutions on a CPU take up to half the time. torch's own memory format is
    the same, but leaves an image of one channel as it is: with strides as any other, no
    convolution that follows knows.

    >>> channels_last(torch.zeros(5, 1, 4, 4)).stride()
    (16, 1, 4, 1)
    """
    _, channels, height, width = x.shape
    inner = x.permute(0, 2, 3, 1).contiguous()
    row = width * channels
    return inner.as_strided(x.shape, (height * row, 1, row, channels))


def cut(
    groups: np.ndarray, n_train: int | None, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of the train, validation and test part, each group cut by itself.

    groups: [N] int, say the classes. n_train: what lies behind is an official test
    part; None if there is none.
    """
    if n_train is None:
        everything = np.arange(len(groups))
        rest, test = _without(everything, groups, SHARES["test"], generator)
        share = SHARES["validation"] / (1 - SHARES["test"])
    else:
        rest, test = np.arange(n_train), np.arange(n_train, len(groups))
        share = SHARES["validation"]
    train, validation = _without(rest, groups, share, generator)
    return train, validation, test


def _without(
    indices: np.ndarray, y: np.ndarray, share: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Indices without and with a random `share` of each class, both shuffled."""
    rest, taken = [], []
    for label in np.unique(y[indices]):
        members = generator.permutation(indices[y[indices] == label])
        n_taken = max(1, round(share * len(members)))
        taken.append(members[:n_taken])
        rest.append(members[n_taken:])
    first, second = (generator.permutation(np.concatenate(p)) for p in (rest, taken))
    return first, second


def _images(dataset: str, data_dir: str | Path | None) -> Images:
    if dataset == "mnist5k":
        return _mnist5k()
    if dataset == "mnist":
        return _mnist()
    if dataset == "cifar10":
        return _cifar10(Path(data_dir or os.environ.get("SPARSEKIT_DATA", ".")))
    path = Path(data_dir or ".") / dataset
    if path.suffix == ".npz" or path.suffix in labelled_table.SUFFIXES:
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}")
        read = _npz if path.suffix == ".npz" else _table
        return read(path, path.stat().st_mtime_ns)
    if path.is_dir():
        return _folder(path, folders.state(path))
    known = choice(f"dataset {dataset!r} is unknown", dataset, NAMES)
    raise ValueError(
        f"{known}, or give the path of an .npz file with arrays x and y, of a .csv or "
        ".parquet table with a column y, or of a folder with a folder of images a class"
    )


# Reading takes longer than training a small model, so the last set read is kept.
@lru_cache(maxsize=1)
def _npz(path: Path, modified: int) -> Images:
    with open_arrays(path, "x", "y") as arrays:
        return check_images(arrays["x"], arrays["y"], path.stem)


@lru_cache(maxsize=1)
def _table(path: Path, modified: int) -> Images:
    return check_images(*labelled_table.read(path), path.stem)


@lru_cache(maxsize=1)
def _folder(path: Path, state: int) -> Images:
    x, y, names, n_train = folders.read(path)
    test = None if n_train is None else (x[n_train:], y[n_train:])
    return Images(x[:n_train], y[:n_train], len(names), test, path.name)


def check_images(x: np.ndarray, y: np.ndarray, name: str = "") -> Images:
    """Images of a user, with labels renumbered 0 ... classes - 1 in sorted order.

    x: [N, S, S], [N, C, S, S], or a table [N, D], real and finite; y: [N] integers or
    strings, at least two classes and ten images of each. Raises ValueError otherwise.
    """
    given = list(x.shape)
    if x.ndim == 2:
        x = x[:, :, None, None]  # each column is standardised by itself
    if x.ndim == 3:
        x = x[:, None]
    if x.ndim != 4 or x.shape[2] != x.shape[3] or 0 in x.shape:
        raise ValueError(
            "x must hold square images, [N, S, S] or [N, C, S, S] (channels first), or "
            f"a table of numbers [N, D], got {given}"
        )
    names, labels = numbered(x, y)
    return Images(x, labels, len(names), name=name)


def numbered(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Names of the classes, sorted, and [N] int64 numbers of them, of a user's arrays.

    x: [N, ...], real and finite; y: [N] integers or strings, at least two classes and
    ten examples of each. Raises ValueError otherwise.
    """
    if y.shape != (len(x),):
        raise ValueError(f"y must have shape [{len(x)}] as x has, got {list(y.shape)}")
    if y.dtype.kind not in "iuUb":
        raise ValueError(f"y must hold integers or strings, got {y.dtype}")
    if x.dtype.kind not in "iufb":
        raise ValueError(f"x must hold real numbers, got {x.dtype}")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        bad = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(1))
        raise ValueError(
            f"x has NaN or infinity in {len(bad)} examples, first {bad[0]}"
        )
    names, labels, counts = np.unique(y, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise ValueError(f"y has only one class, {names.tolist()[0]!r}; two are needed")
    if counts.min() < LEAST_PER_CLASS:
        rare = names.tolist()[counts.argmin()]
        raise ValueError(
            f"class {rare!r} has {counts.min()} examples; {LEAST_PER_CLASS} are "
            "needed, for a part of each class in train, validation and test"
        )
    return names, labels.astype(np.int64)


@lru_cache(maxsize=1)
def _mnist5k() -> Images:
    x, y = datasets.load_mnist5k()
    return Images(x[:, None], y.astype(np.int64), 10, name="MNIST-5k")


@lru_cache(maxsize=1)
def _mnist() -> Images:
    (x, y), (x_test, y_test) = datasets.load_mnist()
    y, y_test = y.astype(np.int64), y_test.astype(np.int64)
    return Images(x[:, None], y, 10, (x_test[:, None], y_test), "MNIST")


@lru_cache(maxsize=1)
def _cifar10(folder: Path) -> Images:
    """CIFAR-10 from the official binary files, or from JPEG bytes in one .npz.

    JPEG is lossy: the two have different names.
    """
    binary, jpeg = folder / "cifar-10-batches-bin", folder / "cifar10_jpeg.npz"
    if binary.is_dir():
        parts = [binary / f"data_batch_{i}.bin" for i in range(1, 6)]
        x, y = map(np.concatenate, zip(*map(_cifar10_batch, parts), strict=True))
        test = _cifar10_batch(binary / "test_batch.bin")
        return Images(x, y, 10, test, "CIFAR-10")
    if jpeg.exists():
        (x, y), (x_test, y_test) = datasets.load_cifar10(folder)
        test = x_test.transpose(0, 3, 1, 2), y_test.astype(np.int64)
        x = x.transpose(0, 3, 1, 2)  # [N, 3, 32, 32]
        return Images(x, y.astype(np.int64), 10, test, "CIFAR-10 (JPEG)")
    raise FileNotFoundError(
        f"CIFAR-10 is not in {folder}: set SPARSEKIT_DATA (or data_dir) to a folder "
        "with cifar-10-batches-bin (the official binary version, unpacked) or "
        "cifar10_jpeg.npz"
    )


def _cifar10_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    rows = np.fromfile(path, np.uint8)
    if not len(rows) or len(rows) % 3073:
        raise ValueError(f"{path}: its size is no multiple of 3073 bytes; incomplete?")
    rows = rows.reshape(-1, 3073)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)
