"""Where blocks of columns begin in the rows of a sparse matrix.

Columns ascend within a row, so a block of columns needs no copy of a row, only the
places of its first and last non-zero.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Integers = NDArray[np.int32]


def row_starts(crow: Integers, col: Integers, width: int, blocks: int) -> Integers:
    """starts (blocks + 1, rows): row r has starts[b, r] .. starts[b + 1, r] in block b.

    Args:
        crow: (rows + 1,), where rows begin; col: (nnz,), all below blocks * width.
        width: columns of a block.
    """
    starts = np.empty((blocks + 1, len(crow) - 1), np.int32)
    _row_starts(crow, col, width, starts)
    return starts


@njit(nogil=True, cache=True)
def _row_starts(crow: Integers, col: Integers, width: int, starts: Integers) -> None:
    blocks = len(starts) - 1
    for row in range(starts.shape[1]):
        t = crow[row]
        for block in range(blocks):
            while t < crow[row + 1] and col[t] < block * width:
                t += 1
            starts[block, row] = t
        starts[blocks, row] = crow[row + 1]
