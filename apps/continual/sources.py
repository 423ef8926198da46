"""Data sets before they are cut into tasks: raw inputs, labels, and the three parts.

mnist5k, mnist, tweets and reviews (text) come from the package index, digits (8x8) from
scikit-learn; cifar10 and tiny-imagenet are found in $SPARSEKIT_DATA; yours is an .npz
or a folder.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from apps.common import datasets, folders
from apps.common.arrays import open_arrays
from apps.common.images import PARTS, cut, numbered
from apps.continual.config import Config
from sparsekit.spelling import choice


@dataclass(frozen=True)
class Raw:
    """A data set as it is read.

    x: [N, C, S, S] or [N, D]; y: [N] 0 ... classes - 1; names: of the classes; n_train:
    so many, from the beginning, are the official training part, None if there is none;
    task: [N] of the user's own, 0 ... ; counts: x holds counts of words.
    """

    x: np.ndarray
    y: np.ndarray
    names: tuple[str, ...]
    name: str
    n_train: int | None = None
    task: np.ndarray | None = None
    counts: bool = False


@dataclass(frozen=True)
class Source:
    """A data set in memory, cut: parts: {name: positions, in random order}."""

    x: Tensor
    y: np.ndarray
    names: tuple[str, ...]
    name: str
    parts: dict[str, np.ndarray]
    task: np.ndarray | None = None
    counts: bool = False


def load(config: Config) -> Source:
    """The data set of a config; the seed draws the parts.

    Each class (of each task, if tasks are given) is cut by itself: 70 % train, 10 %
    validation, 20 % test. An official test part is kept, and validation is 10 % of the
    rest.
    """
    raw = read(config.dataset, config.data_dir)
    generator = np.random.default_rng((config.seed, 7, 9))
    groups = raw.y if raw.task is None else raw.task * (raw.y.max() + 1) + raw.y
    parts = dict(zip(PARTS, cut(groups, raw.n_train, generator), strict=True))
    x = torch.from_numpy(np.ascontiguousarray(raw.x))
    return Source(x, raw.y, raw.names, raw.name, parts, raw.task, raw.counts)


def read(dataset: str, data_dir: str | None = None) -> Raw:
    """A data set by name or path; ValueError or FileNotFoundError that says more."""
    if dataset in SETS:
        return SETS[dataset](data_dir)
    path = Path(data_dir or ".") / dataset
    if dataset.endswith(".npz"):
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}")
        return _npz(path, path.stat().st_mtime_ns)
    if path.is_dir():
        return _folder(path)
    known = choice(f"dataset {dataset!r} is unknown", dataset, SETS)
    raise ValueError(
        f"{known}, or give an .npz file with arrays x and y, or a folder with a folder "
        "of images a class"
    )


def _numbered(n: int) -> tuple[str, ...]:
    return tuple(str(i) for i in range(n))


@lru_cache(maxsize=1)
def _mnist5k(_: str | None) -> Raw:
    x, y = datasets.load_mnist5k()
    return Raw(x[:, None], y.astype(np.int64), _numbered(10), "MNIST-5k")


@lru_cache(maxsize=1)
def _mnist(_: str | None) -> Raw:
    (x, y), (x_test, y_test) = datasets.load_mnist()
    images, labels = np.concatenate([x, x_test]), np.concatenate([y, y_test])
    return Raw(images[:, None], labels.astype(np.int64), _numbered(10), "MNIST", len(y))


@lru_cache(maxsize=1)
def _digits(_: str | None) -> Raw:
    from sklearn.datasets import load_digits  # its own file, nothing is fetched

    found = load_digits()
    x = (found.images * 15.9375).astype(np.uint8)  # 0 ... 16 -> 0 ... 255
    return Raw(x[:, None], found.target.astype(np.int64), _numbered(10), "digits 8x8")


@lru_cache(maxsize=1)
def _cifar10(folder: str | None) -> Raw:
    (x, y), (x_test, y_test) = datasets.load_cifar10(folder)
    images = np.concatenate([x, x_test]).transpose(0, 3, 1, 2)
    names = (
        "airplane", "automobile", "bird", "cat", "deer",
        "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    labels = np.concatenate([y, y_test]).astype(np.int64)
    return Raw(images, labels, names, "CIFAR-10 (JPEG)", len(y))


# Reading takes longer than training a small model, so the last set read is kept.
@lru_cache(maxsize=1)
def _npz(path: Path, modified: int) -> Raw:
    with open_arrays(path, "x", "y") as arrays:
        task = arrays["task"] if "task" in arrays.files else None
        return checked(arrays["x"], arrays["y"], task, path.stem)


def checked(x: np.ndarray, y: np.ndarray, task: np.ndarray | None, name: str) -> Raw:
    """A user's arrays. Labels and tasks may have gaps: they are numbered in order.

    x: [N, S, S], [N, C, S, S] or [N, D], real and finite; y: [N] integers or strings,
    at least two classes and ten examples of each; task: [N] integers. Raises
    ValueError otherwise.
    """
    given = list(x.shape)
    if x.ndim == 3:
        x = x[:, None]
    if (
        x.ndim not in (2, 4)
        or 0 in x.shape
        or (x.ndim == 4 and x.shape[2] != x.shape[3])
    ):
        raise ValueError(
            "x must hold vectors [N, D] or square images, [N, S, S] or [N, C, S, S] "
            f"(channels first), got {given}"
        )
    names, labels = numbered(x, y)
    if task is not None:
        if task.shape != (len(x),) or task.dtype.kind not in "iu":
            raise ValueError(f"task must hold {len(x)} integers, one an input")
        task = np.unique(task, return_inverse=True)[1].astype(np.int64)
    x = x if x.dtype == np.uint8 else x.astype(np.float32)
    words = tuple(str(n) for n in names.tolist())
    return Raw(x, labels, words, name, task=task)


def _folder(path: Path) -> Raw:
    """Images in folders of classes: CLASS/*.png, or train/CLASS and val/CLASS."""
    x, y, names, n_train = folders.read(path)
    return Raw(x, y, names, path.name, n_train)


def _tiny_imagenet(data_dir: str | None) -> Raw:
    base = Path(data_dir or os.environ.get("SPARSEKIT_DATA", "."))
    path = base / "tiny-imagenet-200"
    if not path.is_dir():
        raise FileNotFoundError(
            f"Tiny-ImageNet is not in {base}: set SPARSEKIT_DATA (or data_dir) to a "
            "folder with tiny-imagenet-200, as the official archive unpacks"
        )
    return _folder(path)


def _text(name: str) -> Callable[[str | None], Raw]:
    def read_text(_: str | None) -> Raw:
        from apps.continual import text  # here: it imports this module

        return getattr(text, name)()

    return read_text


SETS: dict[str, Callable[[str | None], Raw]] = {
    "mnist5k": _mnist5k,
    "mnist": _mnist,
    "digits": _digits,
    "tweets": _text("tweets"),
    "reviews": _text("reviews"),
    "cifar10": _cifar10,
    "tiny-imagenet": _tiny_imagenet,
}
