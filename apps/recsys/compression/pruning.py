"""Which numbers of a table are kept: the largest, as many as fit."""

from typing import Literal

import numpy as np
import torch

from apps.recsys.tables.sparse import VALUES, structure_bytes
from sparsekit.masks import topk_mask, topk_rows

By = Literal["table", "row"]


def fitting(n: int, d: int, budget: int, values: str, by: By = "table") -> int:
    """The most numbers of an [n, d] table that take at most `budget` bytes; maybe 0.

    values: their kind, as `Sparse` has it; integers take a float16 scale a row. by
    "row": as many in each row.

    >>> fitting(1000, 64, 20_000, "float16"), fitting(1000, 64, 20_000, "int8", "row")
    (6333, 10000)
    """
    step = n if by == "row" else 1
    low, high = 0, n * d // step + 1  # low fits if anything does
    while high - low > 1:
        middle = (low + high) // 2
        fits = sparse_bytes(n, d, middle * step, values) <= budget
        low, high = (middle, high) if fits else (low, middle)
    return low * step


def sparse_bytes(n: int, d: int, nnz: int, values: str) -> int:
    """Bytes of a `Sparse` table with float16 scales."""
    if values not in VALUES:
        raise ValueError(f"values must be one of {VALUES}, got {values!r}")
    width = {"float32": 32, "float16": 16, "int8": 8, "int4": 4}[values]
    scales = 2 * n if values.startswith("int") else 0
    return structure_bytes(n, d, nnz) + (nnz * width + 7) // 8 + scales


def largest(matrix: np.ndarray, n_kept: int, by: By = "table") -> np.ndarray:
    """[n, d] bool: the n_kept numbers of largest magnitude.

    by: "table", wherever they stand, so that long rows keep more; "row", n_kept / n in
    each (n_kept is a multiple of n). Equal ones: the first in the table stays.

    >>> largest(np.array([[3.0, -2.0], [1.0, 0.5]]), 2).tolist()
    [[True, True], [False, False]]
    >>> largest(np.array([[3.0, -2.0], [1.0, 0.5]]), 2, "row").tolist()
    [[True, False], [True, False]]
    """
    sizes = torch.from_numpy(np.abs(matrix))
    if by == "table":
        return topk_mask(sizes, n_kept).numpy()
    if by != "row" or n_kept % len(matrix):
        raise ValueError(
            f"by is table, or row with a multiple of {len(matrix)} numbers; got "
            f"{by!r} with {n_kept}"
        )
    counts = torch.full((len(matrix),), n_kept // len(matrix))
    return topk_rows(sizes, counts).numpy()
