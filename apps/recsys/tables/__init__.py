"""Packed tables: n vectors of d numbers in few bytes, read with numpy alone.

    table = encode(item_vectors, "int4")
    table.rows(np.array([3, 7]))         # [2, d] float32
    table.scores(user_vectors)           # [B, n] float32, inner products with all rows
    table.nbytes                         # of all that is stored
    same = from_arrays(table.kind, table.shape, table.arrays(), table.settings())

    kind                what is stored of an [n, d] table                       file
    float32, float16    every number                                            dense
    int1 ... int8       few bits a number, one scale a row                      integers
    columns             0 to 8 bits a number by column, a step a column        columns
    sparse              some numbers, and where they stand                      sparse
    low_rank            two tables, [n, r] and [r, d]                           low_rank
    hashed              [m, d], row x mod m                                     hashed
    quotient_remainder  [n / m, d] and [m, d], one row of each                  hashed
    dictionary          k weights and k atoms a row, and [m, d] atoms       dictionary

The tables within a table may be of any kind: `LowRank(encode(left, "int8"), ...)`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from apps.recsys.tables import dense, integers
from apps.recsys.tables.columns import Columns
from apps.recsys.tables.dense import Dense
from apps.recsys.tables.dictionary import Dictionary
from apps.recsys.tables.hashed import Hashed, QuotientRemainder
from apps.recsys.tables.integers import Integers
from apps.recsys.tables.low_rank import LowRank
from apps.recsys.tables.sparse import Sparse
from apps.recsys.tables.stored import Shape, Stored, Table, checked_shape

__all__ = [
    "KINDS",
    "Columns",
    "Dense",
    "Dictionary",
    "Hashed",
    "Integers",
    "LowRank",
    "QuotientRemainder",
    "Sparse",
    "Table",
    "encode",
    "from_arrays",
]

_CLASSES: dict[str, Any] = {
    **dict.fromkeys(dense.KINDS, Dense),
    **dict.fromkeys(integers.KINDS, Integers),
    "columns": Columns,
    "sparse": Sparse,
    "low_rank": LowRank,
    "hashed": Hashed,
    "quotient_remainder": QuotientRemainder,
    "dictionary": Dictionary,
}
KINDS = tuple(_CLASSES)


def encode(matrix: np.ndarray, kind: str) -> Table:
    """[n, d] float as a table of every number. kind: float32, float16, int1 ... int8.

    Integers have float16 scales, chosen for the least squared error of each row.

    >>> encode(np.ones((10, 64), np.float32), "int4").nbytes
    340
    """
    if kind in dense.KINDS:
        return Dense.of(matrix, kind)
    if kind in integers.KINDS:
        return Integers.of(matrix, kind, fit="squares")
    raise ValueError(
        f"a matrix is encoded as {', '.join((*dense.KINDS, *integers.KINDS))}, got "
        f"{kind!r}"
    )


def from_arrays(
    kind: str,
    shape: Shape,
    arrays: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
) -> Table:
    """The table with that kind, shape, `arrays()` and `settings()`.

    Safe on what comes from anywhere: memory is bounded by the sizes of the arrays, and
    whatever no table could have made is refused. The arrays are kept, not copied: they
    may be memory-mapped.

    Raises:
        ValueError: naming what is missing, left over, or of the wrong type, shape or
            value.
    """
    stored = Stored(dict(arrays), dict(settings), _build)
    table = _build(kind, checked_shape(shape), stored)
    left = sorted(map(str, {*stored.arrays, *stored.settings}))
    if left:
        raise ValueError(f"a table of kind {kind!r} has no {', '.join(left[:5])}")
    return table


def _build(kind: Any, shape: Shape, stored: Stored) -> Table:
    if not isinstance(kind, str) or kind not in _CLASSES:
        raise ValueError(f"kinds of tables are {', '.join(KINDS)}, got {kind!r}")
    return _CLASSES[kind].read(kind, shape, stored)
