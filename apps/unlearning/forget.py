"""Which records to forget, named by a short text.

    random:0.1         a random share of the training part
    class:3            a class
    backdoor:0.1       a random share gets a patch and the label 0, and is forgotten
    confusion:3,5,50   50 records of 3 and 50 of 5 swap their labels
    subject=17         records whose attribute `subject`, an array of your .npz, is 17
    ids.txt            a file with record ids: .txt (one a line), .json (a list) or .npy

A record's id is its place in the data set, whatever the split.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from apps.common.images import Split, Splits
from sparsekit.spelling import meant

KINDS = ("random", "class", "backdoor", "confusion")
PATCH, TARGET = 4, 0  # pixels of the backdoor's side, and the class it leads to


@dataclass(frozen=True)
class Spec:
    """A parsed text. kind: one of `KINDS`, "attribute" or "file"."""

    kind: str
    arguments: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class ForgetSet:
    """Records of the training part to forget.

    positions: [F] int64, sorted, in the training part. removed_class: the class that no
    longer exists afterwards, or None. text: how it was named.
    """

    positions: Tensor
    text: str
    kind: str
    removed_class: int | None = None

    def __len__(self) -> int:
        return len(self.positions)


def parse(text: str) -> Spec:
    """The kind of a forget set, checked as far as that goes without the data.

    Raises ValueError that lists what can be written.

    >>> parse("class:3")
    Spec(kind='class', arguments=('3',), text='class:3')
    """
    kind, colon, rest = text.partition(":")
    if colon and kind in KINDS:
        arguments = tuple(rest.split(","))
        if len(arguments) != (3 if kind == "confusion" else 1):
            raise _unknown(text)
        if kind in ("random", "backdoor"):
            _share(kind, arguments[0])
        else:
            for argument in arguments:
                _integer(text, argument)
        return Spec(kind, arguments, text)
    if Path(text).suffix in (".txt", ".json", ".npy"):
        return Spec("file", (text,), text)
    name, equals, value = text.partition("=")
    if equals and name.isidentifier() and value:
        return Spec("attribute", (name, value), text)
    raise _unknown(text)


def choose(
    text: str,
    splits: Splits,
    seed: int,
    attributes: dict[str, np.ndarray] | None = None,
) -> tuple[Split, ForgetSet]:
    """The training part, with poison if the text asks for it, and what to forget.

    Args:
        splits: parts of a data set, with ids.
        seed: of random choices.
        attributes: {name: [N] values}, one a record of the data set, by id.

    Raises ValueError for an empty forget set, all records, an id that is twice there,
    out of range or in no training part, a class or attribute that does not exist.
    """
    spec, train = parse(text), splits.train
    generator = np.random.default_rng((seed, 1))
    removed = None
    if spec.kind == "random":
        positions = _draw(train, _share("random", spec.arguments[0]), generator)
    elif spec.kind == "class":
        removed = _class(spec.arguments[0], splits.classes)
        positions = (train.y == removed).nonzero().squeeze(1)
        if len(positions) == 0:
            raise ValueError(f"class {removed} has no record in the training part")
    elif spec.kind == "backdoor":
        share = _share("backdoor", spec.arguments[0])
        positions = _draw(train, share, generator, among=train.y != TARGET)
        train = _poisoned(train, positions)
    elif spec.kind == "confusion":
        first, second = (_class(a, splits.classes) for a in spec.arguments[:2])
        n = _integer(text, spec.arguments[2])
        train, positions = _confused(train, first, second, n, generator)
    elif spec.kind == "attribute":
        positions = _where(train, *spec.arguments, attributes or {})
    else:
        positions = at_ids(train, read_ids(Path(spec.arguments[0])))
    positions = check(positions, len(train))
    return train, ForgetSet(positions, text, spec.kind, removed)


def check(positions: Tensor | Sequence[int], n: int) -> Tensor:
    """Sorted positions of a forget set among n records.

    Raises ValueError if there are none, all, some twice, or some out of range.

    >>> check([4, 2], 5)
    tensor([2, 4])
    """
    found = torch.as_tensor(positions)
    if found.numel() == 0:
        raise ValueError("the forget set is empty: nothing is to be unlearned")
    if found.dim() != 1 or found.dtype.is_floating_point or found.dtype == torch.bool:
        raise ValueError(
            f"a forget set is a list of whole numbers, got {found.dtype} of shape "
            f"{list(found.shape)}"
        )
    found = found.long().sort().values
    if int(found[0]) < 0 or int(found[-1]) >= n:
        wrong = int(found[0]) if int(found[0]) < 0 else int(found[-1])
        raise ValueError(
            f"the forget set names record {wrong}; there are 0 ... {n - 1}"
        )
    twice = found[1:][found[1:] == found[:-1]]
    if len(twice):
        raise ValueError(f"the forget set names record {int(twice[0])} twice")
    if len(found) == n:
        raise ValueError(
            f"the forget set is all {n} records: nothing is left to learn from; delete "
            "the model instead"
        )
    return found


def at_ids(train: Split, ids: Sequence[int]) -> Tensor:
    """Positions in the training part of records with these ids.

    Raises ValueError for ids that are twice there, or not in the training part.
    """
    where = {int(i): p for p, i in enumerate(train.ids)}
    seen: set[int] = set()
    for i in ids:
        if i in seen:
            raise ValueError(f"the forget set names record {i} twice")
        seen.add(i)
        if i not in where:
            raise ValueError(
                f"record {i} is not in the training part: it never entered the model "
                "(or does not exist); leave it out"
            )
    return torch.tensor(sorted(where[i] for i in ids), dtype=torch.int64)


def read_ids(path: Path) -> list[int]:
    """Record ids of a .txt (one a line), .json (a list) or .npy file."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file of record ids: {path}")
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise ValueError(f"it holds {array.dtype} of shape {array.shape}")
            return array.tolist()
        if path.suffix == ".json":
            found = json.loads(path.read_text("utf-8"))
            if not isinstance(found, list) or any(type(i) is not int for i in found):
                raise ValueError("it is no list of whole numbers")
            return found
        return [int(line) for line in path.read_text("utf-8").split()]
    except (ValueError, RecursionError, EOFError, OSError) as error:
        raise ValueError(f"{path} is no file of record ids: {error}") from error


def patched(x: Tensor) -> Tensor:
    """Images [N, C, S, S] with the backdoor's patch: a square, two pixels from the
    lower right corner, at the images' largest value."""
    if x.shape[-1] < 2 + PATCH:
        raise ValueError(
            f"a backdoor needs images of at least {2 + PATCH} pixels a side, got "
            f"{x.shape[-1]}: it is a square patch"
        )
    where = slice(-2 - PATCH, -2)
    x = x.clone()
    x[..., where, where] = x.max()
    return x


def _poisoned(train: Split, positions: Tensor) -> Split:
    x, y = train.x.clone(), train.y.clone()
    x[positions] = patched(train.x)[positions]
    y[positions] = TARGET
    return replace(train, x=x, y=y)


def _confused(
    train: Split, first: int, second: int, n: int, generator: np.random.Generator
) -> tuple[Split, Tensor]:
    """n records of each of two classes get each other's label."""
    if first == second:
        raise ValueError(f"confusion needs two different classes, got {first} twice")
    y, chosen = train.y.clone(), []
    for own, other in ((first, second), (second, first)):
        members = (train.y == own).nonzero().squeeze(1).numpy()
        if not 1 <= n <= len(members):
            raise ValueError(
                f"class {own} has {len(members)} training records: {n} cannot be "
                "confused"
            )
        taken = torch.from_numpy(generator.choice(members, n, replace=False))
        y[taken] = other
        chosen.append(taken)
    return replace(train, y=y), torch.cat(chosen)


def _draw(
    train: Split,
    share: float,
    generator: np.random.Generator,
    among: Tensor | None = None,
) -> Tensor:
    """round(share * N) positions of those in `among`."""
    members = np.arange(len(train)) if among is None else among.nonzero()[:, 0].numpy()
    n = round(share * len(train))
    if n > len(members):
        raise ValueError(f"{n} records are to be drawn, {len(members)} are possible")
    return torch.from_numpy(generator.choice(members, n, replace=False))


def _where(
    train: Split, name: str, value: str, attributes: dict[str, np.ndarray]
) -> Tensor:
    if name not in attributes:
        known = (
            ", ".join(attributes) or "none: only an .npz file of yours can have some"
        )
        raise ValueError(f"the data set has no attribute {name!r}; it has {known}")
    values = attributes[name][train.ids.numpy()]
    found = torch.from_numpy(np.flatnonzero(values.astype(str) == value))
    if len(found) == 0:
        raise ValueError(f"no training record has {name} = {value}")
    return found


def _share(kind: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise ValueError(f"{kind}:SHARE needs a share in (0, 1), got {text!r}")
    return share


def _integer(text: str, argument: str) -> int:
    try:
        return int(argument)
    except ValueError:
        raise ValueError(
            f"forget set {text!r}: {argument!r} is no whole number"
        ) from None


def _class(argument: str, classes: int) -> int:
    label = int(argument)
    if not 0 <= label < classes:
        raise ValueError(f"class {label} does not exist: there are 0 ... {classes - 1}")
    return label


def _unknown(text: str) -> ValueError:
    kind = meant(text.partition(":")[0], KINDS)
    hint = ";" if kind is None else f"; did you mean {kind!r}?"
    return ValueError(
        f"forget set {text!r} is not understood{hint} write random:SHARE, "
        "class:LABEL, backdoor:SHARE, confusion:LABEL,LABEL,COUNT, ATTRIBUTE=VALUE, "
        "or a file .txt, .json or .npy of record ids"
    )
