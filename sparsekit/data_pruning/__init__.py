"""Data pruning: which examples matter, found fast.

`el2n` and `grand` score a batch, `score` a data set; `select` chooses by any scores.
"""

from sparsekit.data_pruning.dataset import score
from sparsekit.data_pruning.scores import el2n, grand
from sparsekit.data_pruning.selection import select

__all__ = ["el2n", "grand", "score", "select"]
