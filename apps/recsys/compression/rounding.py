"""Rounding that looks at scores: codes chosen so that each user's list stays as it was.

    users, items = fitted(dense, users, items, lists, everywhere=0.01)

A packed table has a grid, and the nearest point of it is not the best one: errors of a
row's numbers add up or cancel in its scores, and only some scores decide a list. With
s_ui the dense scores, x and y the rows as they are stored, and L the pairs of a user
and an item that is near the top of the user's list, codes are chosen for the least

    sum_{(u, i) in L} e_ui^2 + l sum_{all u, i} e_ui^2,   e_ui = <x_u, y_i> - s_ui

first those of the users, whose rows do not depend on each other, then those of the
items. A row is fitted by coordinate descent, a number after another, its scale, where
the table has one a row, by least squares before each round. Bytes stay as they were.

After Nagel et al.: Up or down? Adaptive rounding for post-training quantization, 2020
(rounding by its effect on the output), and Guo et al.: Accelerating large-scale
inference with anisotropic vector quantization, 2020 (errors count where scores are
high). Differs from both: the pairs that count are those of the dense model's lists, and
both sides are rounded in turn.
"""

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from apps.recsys.models.factors import Factors
from apps.recsys.tables import Columns, Integers
from apps.recsys.tables import bits as packed_bits

ROUNDS = 3  # of the coordinate descent
BLOCK = 2000  # rows whose d x d matrices are held together
LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Grid:
    """A table's numbers: `o_j + s_ij (c_ij - (2^b_j - 1) / 2)`.

    codes: [n, d] float32, whole numbers in 0 ... 2^b - 1; bits: [d]; offsets: [d].
    by_row: whether steps are [n, 1], one a row, and fitted, or [1, d] and fixed.
    """

    codes: np.ndarray
    bits: np.ndarray
    offsets: np.ndarray
    steps: np.ndarray
    by_row: bool

    @classmethod
    def of(cls, table: Integers | Columns) -> "Grid":
        if isinstance(table, Columns):
            codes, steps = table.codes_by_column(), table.steps[None]
            codes = codes.astype(np.float32)
            return cls(codes, table.bits, table.offsets, steps, by_row=False)
        codes = packed_bits.unpack(table.codes, table.d, table.bits).astype(np.float32)
        bits, offsets = np.full(table.d, table.bits), np.zeros(table.d, np.float32)
        steps = table.scales.astype(np.float32)[:, None]
        return cls(codes, bits, offsets, steps, by_row=True)

    @property
    def middle(self) -> np.ndarray:
        """[d] float32: the code of the offset, between two codes."""
        return ((2.0**self.bits - 1) / 2).astype(np.float32)

    def decoded(self) -> np.ndarray:
        """[n, d] float32."""
        return self.offsets + self.steps * (self.codes - self.middle)

    def table(self) -> Integers | Columns:
        codes = self.codes.astype(np.uint8)
        if not self.by_row:
            return Columns.of_codes(codes, self.bits, self.offsets, self.steps[0])
        d, bits = codes.shape[1], int(self.bits[0])
        scales = self.steps[:, 0].astype(np.float16)
        return Integers(packed_bits.pack(codes, bits), scales, d, bits)


def fitted(
    dense: Factors,
    users: Integers | Columns,
    items: Integers | Columns,
    lists: sp.csr_array,
    everywhere: float,
) -> tuple[Integers | Columns, Integers | Columns]:
    """Both tables with codes, and scales of rows, that keep the scores of the lists.

    Args:
        dense: what the tables were made from, in any basis and of any rank.
        users, items: [U, d], [I, d], packed; integers with float16 scales.
        lists: CSR [U, I], the pairs L.
        everywhere: l, the weight of a pair that is in no list. Small, but not 0: other
            items must not rise into the lists.
    """
    own, other = Grid.of(users), Grid.of(items)
    own = fit_rows(own, dense.users, other.decoded(), dense.items, lists, everywhere)
    lists = sp.csr_array(lists.T)
    other = fit_rows(other, dense.items, own.decoded(), dense.users, lists, everywhere)
    return own.table(), other.table()


def fit_rows(
    grid: Grid,
    own: np.ndarray,
    stored: np.ndarray,
    other: np.ndarray,
    lists: sp.csr_array,
    everywhere: float,
) -> Grid:
    """One side with codes for the least error of scores; the other one stays.

    own: [n, D], other: [m, D], dense; stored: [m, d], the other side as it is stored;
    lists: CSR [n, m].
    """
    gram, cross = stored.T @ stored, stored.T @ other
    codes, steps = grid.codes.copy(), grid.steps.copy()
    for first in range(0, len(codes), BLOCK):
        part = slice(first, min(first + BLOCK, len(codes)))
        grams = np.repeat(everywhere * gram[None], part.stop - first, axis=0)
        wanted = everywhere * own[part] @ cross.T
        for row in range(part.start, part.stop):
            near = lists.indices[lists.indptr[row] : lists.indptr[row + 1]]
            rows = stored[near]
            grams[row - first] += rows.T @ rows
            wanted[row - first] += (other[near] @ own[row]) @ rows
        wanted -= grams @ grid.offsets
        its_steps = part if grid.by_row else slice(None)
        block = replace(grid, codes=codes[part], steps=steps[its_steps])
        codes[part], steps[its_steps] = descend(block, grams, wanted)
    return replace(grid, codes=codes, steps=steps)


def descend(
    grid: Grid, grams: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and steps of rows x that make `x' G x - 2 <w, x>` small, one G and w each.

    x: the row without its offsets. grams: [n, d, d], wanted: [n, d]. No step of it
    makes a row worse, but for what rounding a scale to float16 does.
    """
    centred, steps, top = grid.codes - grid.middle, grid.steps, 2 * grid.middle
    curvature = np.einsum("njj->nj", grams)
    for _ in range(ROUNDS):
        if grid.by_row:
            steps = _scales(centred, steps, grams, wanted)
        slope = np.einsum("nij,nj->ni", grams, centred * steps) - wanted
        for j in np.flatnonzero(grid.bits):
            step = steps[:, 0 if grid.by_row else j]
            change = np.zeros(len(centred), np.float32)
            np.divide(-slope[:, j], curvature[:, j] * step, change, where=step > 0)
            moved = np.rint(centred[:, j] + change + grid.middle[j])
            moved = moved.clip(0, top[j]) - grid.middle[j]
            slope += grams[:, :, j] * ((moved - centred[:, j]) * step)[:, None]
            centred[:, j] = moved
    return centred + grid.middle, steps


def _scales(
    centred: np.ndarray, steps: np.ndarray, grams: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """[n, 1]: least squares for the codes at hand; rows without a positive one keep
    theirs."""
    top = (centred * wanted).sum(1)
    below = np.einsum("ni,nij,nj->n", centred, grams, centred, optimize=True)
    found = np.divide(top, below, where=below > 0, out=np.zeros_like(top))
    usable = (found > 0) & (found < LARGEST)
    rounded = found.astype(np.float16).astype(np.float32)
    return np.where(usable[:, None], rounded[:, None], steps)
