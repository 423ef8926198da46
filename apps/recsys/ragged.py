"""Lists of different lengths in two arrays, and texts kept that way; numpy only.

    lists = ragged([[4, 7], [], [1]])
    lists[0]                     # array([4, 7])
    ids = Ids.of(["b", "a"])
    ids[0], ids.find("a")        # ("b", 1)

Arrays may be views of a mapped file: nothing is copied, and `check` believes nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

CHUNK = 1 << 16


@dataclass(frozen=True)
class Ragged:
    """n lists. offsets: [n + 1] integer; values: [N]; list i lies at
    values[offsets[i]:offsets[i + 1]]."""

    offsets: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def check(self, n: int, limit: int | None = None) -> None:
        """ValueError unless there are n lists; with `limit`: of integers that rise
        within each list, all in 0 ... limit - 1."""
        offsets, values = self.offsets, self.values
        if offsets.dtype not in (np.int32, np.int64) or offsets.shape != (n + 1,):
            raise ValueError(
                f"offsets must be {n + 1} integers, got {offsets.dtype} of shape "
                f"{offsets.shape}"
            )
        if values.ndim != 1:
            raise ValueError(f"values must be one list, got shape {values.shape}")
        if (
            offsets[0] != 0
            or offsets[-1] != len(values)
            or (np.diff(offsets) < 0).any()
        ):
            raise ValueError(f"offsets must rise from 0 to {len(values)}")
        if limit is None:
            return
        if values.dtype != np.int32:
            raise ValueError(f"values must be int32, got {values.dtype}")
        if len(values) and (values.min() < 0 or values.max() >= limit):
            raise ValueError(f"values must lie in 0 ... {limit - 1}")
        rises = np.diff(values) > 0
        starts = offsets[1:-1]
        rises[starts[(starts > 0) & (starts < len(values))] - 1] = True
        if not rises.all():
            raise ValueError("values must rise within each list, without repeats")


def ragged(lists: Iterable[Sequence[int]]) -> Ragged:
    """The lists as int32.

    >>> ragged([[4, 7], [], [1]]).offsets.tolist()
    [0, 2, 2, 3]
    """
    arrays = [np.asarray(part, np.int32) for part in lists]
    values = np.concatenate([*arrays, np.empty(0, np.int32)])
    return Ragged(offsets_of([len(part) for part in arrays]), values)


def offsets_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """[n + 1] int32, or int64 if they do not fit.

    >>> offsets_of([2, 0, 1])
    array([0, 2, 2, 3], dtype=int32)
    """
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    small = offsets[-1] <= np.iinfo(np.int32).max
    return offsets.astype(np.int32) if small else offsets


@dataclass(frozen=True)
class Texts:
    """n texts of any kind. lists: their UTF-8 bytes, uint8."""

    lists: Ragged

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """Raises ValueError for a text that UTF-8 cannot hold (a lone surrogate)."""
        parts = [_encoded(text) for text in texts]
        values = np.frombuffer(b"".join(parts), np.uint8)
        return cls(Ragged(offsets_of([len(part) for part in parts]), values))

    def __len__(self) -> int:
        return len(self.lists)

    def __getitem__(self, index: int) -> str:
        return self.lists[index].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        for part in self.encoded():
            yield part.decode()

    def encoded(self, order: np.ndarray | None = None) -> Iterator[bytes]:
        """Their bytes one after the other, in `order` if one is given."""
        offsets, values = self.lists.offsets, self.lists.values
        for start in range(0, len(self), CHUNK):
            rows = slice(start, min(start + CHUNK, len(self)))
            rows = np.arange(rows.start, rows.stop) if order is None else order[rows]
            begins, ends = offsets[rows].tolist(), offsets[rows + 1].tolist()
            for begin, end in zip(begins, ends, strict=True):
                yield values[begin:end].tobytes()

    def check(self, n: int) -> None:
        """ValueError unless these are n texts in UTF-8."""
        self.lists.check(n)
        offsets, values = self.lists.offsets, self.lists.values
        if values.dtype != np.uint8:
            raise ValueError(f"texts must be bytes, got {values.dtype}")
        try:
            str(values.data, "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"texts are not UTF-8: {error}") from None
        starts = offsets[offsets < len(values)]
        if ((values[starts] & 0xC0) == 0x80).any():
            raise ValueError("texts are not UTF-8: one begins within a character")


@dataclass(frozen=True)
class Ids(Texts):
    """Texts that differ, found by bisection. order: [n] int32, sorts their bytes."""

    order: np.ndarray

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Ids":
        """Raises ValueError for texts that repeat or that UTF-8 cannot hold."""
        plain = Texts.of(texts)
        parts = list(plain.encoded())
        order = np.array(sorted(range(len(parts)), key=parts.__getitem__), np.int32)
        ids = cls(plain.lists, order)
        ids.check(len(parts))
        return ids

    def find(self, text: str) -> int | None:
        """Its index, or None.

        >>> Ids.of(["10", "9", "é"]).find("é")
        2
        """
        try:
            key = text.encode()
        except UnicodeEncodeError:  # a lone surrogate is in no file
            return None
        # Memory views: their elements are read several times faster than numpy's.
        offsets, text_bytes = self.lists.offsets.data, self.lists.values.data
        order = self.order.data
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            index = order[middle]
            found = text_bytes[offsets[index] : offsets[index + 1]].tobytes()
            if found == key:
                return index
            if found < key:
                low = middle + 1
            else:
                high = middle
        return None

    def check(self, n: int) -> None:
        """ValueError unless these are n different texts in UTF-8, and their order."""
        super().check(n)
        order = self.order
        if order.dtype != np.int32 or order.shape != (n,):
            raise ValueError(f"order must be {n} int32, got shape {order.shape}")
        if n and (order.min() < 0 or order.max() >= n):
            raise ValueError(f"order must lie in 0 ... {n - 1}")
        # Strictly rising texts are all different, hence so are the indices.
        if not all(a < b for a, b in pairwise(self.encoded(order))):
            raise ValueError("ids repeat, or their order is wrong")


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{text!r} is no text: {error}") from None
