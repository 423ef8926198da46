"""What a table is, and how one is read back from arrays that may come from anywhere."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

FLOATS = (np.dtype("<f4"), np.dtype("<f2"))
MOST_ROWS = 2**31 - 1
MOST_COLUMNS = 2**16
LARGEST = 1e36  # of a scale, so that decoded numbers stay finite
DEPTH = 4  # tables within tables
BLOCK = 4096  # rows that are decoded together: they stay in the cache
Shape = tuple[int, int]
Index = np.ndarray | slice


class Table(Protocol):
    """n vectors of d numbers, packed.

    kind: names the format. nbytes: of all that is stored, scales, offsets and shared
    parts included; a file adds names and shapes.
    """

    @property
    def kind(self) -> str: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def nbytes(self) -> int: ...

    def rows(self, index: Index) -> np.ndarray:
        """index: [B] integers, or a slice of consecutive rows -> [B, d] float32.

        Raises ValueError for rows that the table does not have.
        """

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """vectors: [B, d] float32 -> [B, n] float32, inner products with every row."""

    def arrays(self) -> dict[str, np.ndarray]:
        """What a file must hold."""

    def settings(self) -> dict[str, int | str]:
        """What a file must hold beside the arrays, the kind and the shape."""


@dataclass
class Stored:
    """Arrays and settings, each of which is taken once and checked when it is taken.

    build: (kind, shape, stored) -> Table, for tables within the table. prefix: of the
    names that belong to this one.
    """

    arrays: dict[str, np.ndarray]
    settings: dict[str, Any]
    build: Callable[[Any, Shape, "Stored"], Table]
    prefix: str = ""
    depth: int = 0

    def array(
        self, name: str, dtypes: tuple[np.dtype, ...], shape: tuple[int, ...]
    ) -> np.ndarray:
        """The array of that name. ValueError unless it is there and as it should be."""
        name = self.prefix + name
        if name not in self.arrays:
            raise ValueError(f"the array {name!r} is missing")
        array = self.arrays.pop(name)
        if not isinstance(array, np.ndarray) or array.dtype not in dtypes:
            raise ValueError(
                f"{name!r} must be an array of {' or '.join(map(str, dtypes))}, got "
                f"{getattr(array, 'dtype', type(array).__name__)}"
            )
        if array.shape != shape:
            raise ValueError(f"{name!r} must have shape {shape}, got {array.shape}")
        if array.dtype in FLOATS and not np.isfinite(array).all():
            raise ValueError(f"{name!r} holds NaN or infinity")
        return array

    def length(self, name: str) -> int:
        """Entries of a vector that is still to be taken; its shape is checked there."""
        array = self.arrays.get(self.prefix + name)
        return array.size if isinstance(array, np.ndarray) else 0

    def has(self, name: str) -> bool:
        return self.prefix + name in self.arrays

    def integer(self, name: str, low: int, high: int) -> int:
        value = self._setting(name)
        if type(value) is not int or not low <= value <= high:
            raise ValueError(
                f"{self.prefix + name!r} must be an integer in {low} ... {high}, got "
                f"{value!r}"
            )
        return value

    def choice(self, name: str, options: tuple[str, ...]) -> str:
        value = self._setting(name)
        if type(value) is not str or value not in options:
            raise ValueError(
                f"{self.prefix + name!r} must be one of {options}, got {value!r}"
            )
        return value

    def table(self, name: str, shape: Shape) -> Table:
        """A table within the table: its arrays are called "name.array"."""
        if self.depth == DEPTH:
            raise ValueError(f"tables within tables go deeper than {DEPTH}")
        prefix = f"{self.prefix}{name}."
        part = Stored(self.arrays, self.settings, self.build, prefix, self.depth + 1)
        return self.build(part._setting("kind"), shape, part)

    def _setting(self, name: str) -> Any:
        if self.prefix + name not in self.settings:
            raise ValueError(f"the setting {self.prefix + name!r} is missing")
        return self.settings.pop(self.prefix + name)


def checked_shape(shape: Any) -> Shape:
    """(n, d) as integers. ValueError for anything that is no size of a table."""
    try:
        n, d = shape
    except (TypeError, ValueError):
        raise ValueError(f"a table has a shape (n, d), got {shape!r}") from None
    if (
        type(n) is not int
        or type(d) is not int
        or not 1 <= n <= MOST_ROWS
        or not 1 <= d <= MOST_COLUMNS
    ):
        raise ValueError(
            f"a table has 1 ... {MOST_ROWS} rows of 1 ... {MOST_COLUMNS} numbers, got "
            f"{shape!r}"
        )
    return n, d


def checked_index(index: Index, n: int) -> Index:
    """Row numbers as int64, or the slice. ValueError for one outside 0 ... n - 1."""
    if isinstance(index, slice):
        first, last, step = index.start or 0, index.stop, index.step
        last = n if last is None else last
        if step not in (None, 1) or not 0 <= first <= last <= n:
            raise ValueError(f"consecutive rows of 0 ... {n - 1} are read, not {index}")
        return slice(first, last)
    index = np.asarray(index)
    if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer):
        raise ValueError(
            f"rows are asked for by a vector of integers, got {index.dtype} of shape "
            f"{index.shape}"
        )
    for row in (int(index.min()), int(index.max())) if index.size else ():
        if not 0 <= row < n:
            raise ValueError(f"row {row} is outside 0 ... {n - 1}")
    return index.astype(np.int64)


def numbered(index: Index, n: int) -> np.ndarray:
    """`checked_index` with a slice written out."""
    index = checked_index(index, n)
    return np.arange(index.start, index.stop) if isinstance(index, slice) else index


def blocks(table: Table) -> Iterator[slice]:
    """All rows, some at a time."""
    n = table.shape[0]
    for start in range(0, n, BLOCK):
        yield slice(start, min(start + BLOCK, n))


class Scored:
    """Scores from rows that are decoded a block at a time."""

    def scores(self: Table, vectors: np.ndarray) -> np.ndarray:
        result = np.empty((len(vectors), self.shape[0]), np.float32)
        for part in blocks(self):
            result[:, part] = vectors @ self.rows(part).T
        return result


class Compound(Scored):
    """A table made of tables: its arrays and settings are theirs, under their names."""

    def parts(self) -> dict[str, Table]:
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts().values())

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            f"{name}.{key}": array
            for name, part in self.parts().items()
            for key, array in part.arrays().items()
        }

    def settings(self) -> dict[str, int | str]:
        found: dict[str, int | str] = {}
        for name, part in self.parts().items():
            found[f"{name}.kind"] = part.kind
            found |= {f"{name}.{key}": value for key, value in part.settings().items()}
        return found


def checked_matrix(matrix: np.ndarray) -> np.ndarray:
    """[n, d] float32 to pack. ValueError for NaN, infinity or another form."""
    array = np.asarray(matrix)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"a table is packed from a float matrix [n, d], got {array.dtype} of shape "
            f"{array.shape}"
        )
    checked_shape(array.shape)
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError("the matrix holds NaN, infinity or what exceeds float32")
    return array


def stored_bytes(arrays: Mapping[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays.values())
