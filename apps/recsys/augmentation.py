"""What LLMRec adds to interactions: triplets and features, in one file.

    save(path, Augmentation(shape=data.shape, made_from=fingerprints(data), ...))
    load(path).for_training(data.train)

`augment` makes them; whoever makes them, they hold plain numbers, and training needs no
language model.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from apps.common.ranges import at_least, in_unit_interval
from apps.common.wheels import sha256
from apps.recsys.splits import Dataset
from sparsekit import atomic

Features = dict[str, np.ndarray]
LIMIT = 2_000_000_000  # bytes of a file that is read


@dataclass(frozen=True)
class LLMRecSettings:
    """How the augmentation is used.

    Args:
        edges: share of a batch's users whose triplet joins the batch, in [0, 1]; the
            paper's is 0.1, which no chooser here makes up for on MovieLens-100k.
        dropped: share of the triplets that noise pruning drops, in [0, 1).
        keep: of noise pruning: hard (the paper's), easy, middle or random.
        items: weight of each item feature in the vectors.
        users: weight of each user feature in the vectors.
        alone: weight of the ranking loss of each feature by itself.
        restored: weight of restoring masked features; 0 for none.
        masked: share of users and of items whose features are masked, in [0, 1).
        gamma: exponent of the restoration's error.
    """

    edges: float = 0.0
    dropped: float = 0.0
    keep: Literal["hard", "easy", "middle", "random"] = "easy"
    items: float = 0.5
    users: float = 0.5
    alone: float = 0.0
    restored: float = 0.0
    masked: float = 0.2
    gamma: float = 2.0

    def __post_init__(self) -> None:
        in_unit_interval(self, "dropped", "masked", prefix="llmrec.")
        if not 0 <= self.edges <= 1:
            raise ValueError(f"llmrec.edges must be in [0, 1], got {self.edges}")
        if self.keep not in ("hard", "easy", "middle", "random"):
            raise ValueError(
                f"llmrec.keep is hard, easy, middle or random, not {self.keep!r}"
            )
        weights = ("items", "users", "alone", "restored", "gamma")
        at_least(0, self, *weights, prefix="llmrec.")
        if self.restored and not self.masked:
            raise ValueError("llmrec.restored needs llmrec.masked above 0")


@dataclass(frozen=True)
class Augmentation:
    """shape: users, items. made_from: fingerprints of the training parts it may join.

    users, liked, disliked: [n] int32, triplets, at most one a user. user_features and
    item_features: {name: [U or I, d] float32}; a row of zeros is nothing known.

    Raises ValueError for arrays that do not fit together.
    """

    shape: tuple[int, int]
    made_from: tuple[str, ...]
    users: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    liked: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    disliked: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    user_features: Features = field(default_factory=dict)
    item_features: Features = field(default_factory=dict)

    def __post_init__(self) -> None:
        n_users, n_items = self.shape
        ends = {"users": n_users, "liked": n_items, "disliked": n_items}
        for name, end in ends.items():
            column = getattr(self, name)
            if column.dtype != np.int32 or column.shape != self.users.shape:
                raise ValueError(f"{name} must be a vector of int32 like users")
            if column.ndim != 1 or ((column < 0) | (column >= end)).any():
                raise ValueError(f"{name} has numbers outside 0 ... {end - 1}")
        if len(np.unique(self.users)) < len(self.users):
            raise ValueError("users has somebody twice: one triplet a user")
        if (self.liked == self.disliked).any():
            raise ValueError("an item is liked and disliked by the same user")
        for features, rows in (
            (self.user_features, n_users), (self.item_features, n_items),
        ):  # fmt: skip
            for name, array in features.items():
                if array.dtype != np.float32 or array.ndim != 2 or len(array) != rows:
                    raise ValueError(
                        f"feature {name!r} must be float32 with {rows} rows"
                    )
                if not array.shape[1] or not np.isfinite(array).all():
                    raise ValueError(f"feature {name!r} has no columns, or no numbers")
                if not name.isidentifier():
                    raise ValueError(f"feature {name!r}: letters, digits and _ only")
        shared = self.user_features.keys() & self.item_features.keys()
        if shared:
            raise ValueError(f"users and items both have a feature {min(shared)!r}")

    def for_training(self, train: sp.csr_array) -> "Augmentation":
        """Itself, if it was made for this training part.

        Raises ValueError if not: what was made from other interactions may know what
        is held out here.
        """
        if fingerprint(train) not in self.made_from:
            raise ValueError(
                "the augmentation was made from other interactions (another data set, "
                "split or split_seed): run `augment` again with these settings"
            )
        return self


def fingerprint(train: sp.csr_array) -> str:
    """SHA-256, in hex, of who has what."""
    train = train.sorted_indices()
    found = hashlib.sha256(repr(train.shape).encode())
    found.update(train.indptr.astype("<i8").tobytes())
    found.update(train.indices.astype("<i8").tobytes())
    return found.hexdigest()


def fingerprints(data: Dataset) -> tuple[str, ...]:
    """Of the training part, and of the one with the validation part in it.

    What is made from the former may join both.
    """
    return fingerprint(data.train), fingerprint(data.known("test"))


def content_hash(path: Path | None) -> str | None:
    """SHA-256, in hex, of a file's bytes; None for no path.

    Raises FileNotFoundError as `load` does.
    """
    if path is None:
        return None
    if not Path(path).is_file():
        raise FileNotFoundError(f"no augmentation {path}: make one with `augment`")
    return sha256(Path(path))


def refuse_changed(path: Path | None, before: str | None, folder: Path) -> None:
    """ValueError if a run's augmentation is no longer what it was trained with."""
    if content_hash(path) != before:
        raise ValueError(
            f"{folder} was trained with another content of {path}: put the old file "
            "back, or give another --out"
        )


def save(path: Path, augmentation: Augmentation) -> None:
    """Writes one safetensors file."""
    from safetensors.numpy import save as packed

    arrays = {name: getattr(augmentation, name) for name in TRIPLETS}
    for side in ("user", "item"):
        features: Features = getattr(augmentation, f"{side}_features")
        arrays |= {f"{side}.{name}": array for name, array in features.items()}
    about = {"shape": augmentation.shape, "made_from": augmentation.made_from}
    contiguous = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    atomic.write_bytes(path, packed(contiguous, {"augmentation": json.dumps(about)}))


def load(path: Path) -> Augmentation:
    """Reads and checks what `save` wrote.

    Raises FileNotFoundError; ValueError that names the file and the fault.
    """
    from safetensors import safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no augmentation {path}: make one with `augment`")
    if path.stat().st_size > LIMIT:
        raise ValueError(f"{path} has more than {LIMIT:,} bytes")
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {})["augmentation"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _checked(about, arrays)
    except Exception as error:  # a damaged file raises nearly anything
        raise ValueError(f"{path} is no augmentation, or damaged: {error}") from error


TRIPLETS = ("users", "liked", "disliked")


def _checked(about: Any, arrays: Features) -> Augmentation:
    n_users, n_items = (int(n) for n in about["shape"])
    features: dict[str, Features] = {"user": {}, "item": {}}
    for name, array in arrays.items():
        side, dot, short = name.partition(".")
        if dot:
            features[side][short] = array
        elif name not in TRIPLETS:
            raise ValueError(f"unknown array {name!r}")
    return Augmentation(
        (n_users, n_items),
        tuple(str(text) for text in about["made_from"]),
        *(arrays[name] for name in TRIPLETS),
        user_features=features["user"],
        item_features=features["item"],
    )
