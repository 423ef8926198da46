"""Small artefacts, made of numbers that have nothing in common with one another."""

import numpy as np
import pandas as pd
import scipy.sparse as sp

from apps.recsys.interactions import Interactions
from apps.recsys.splits import Dataset, random_ratio

USERS, ITEMS, DIM = 31, 47, 5
GENRES = ("Drama", "Science Fiction", "War")


def dataset(users: int = USERS, items: int = ITEMS, seed: int = 0) -> Dataset:
    """Users of two tastes: a block each of the items, and a few of all."""
    rng = np.random.default_rng(seed)
    chance = np.full((users, items), 0.08)
    chance[::2, : items // 2] = 0.5
    chance[1::2, items // 2 :] = 0.5
    rows, columns = np.nonzero(rng.random((users, items)) < chance)
    table = pd.DataFrame(
        {
            "item_id": [f"i{i}" for i in range(items)],
            "movie_title": [f"Film {i} <b>é</b>" for i in range(items)],
            "genre": [
                "|".join(g for j, g in enumerate(GENRES) if i % (j + 2) == 0)
                for i in range(items)
            ],
            "length": np.arange(items, dtype=float),
        }
    )
    log = Interactions(
        name="small",
        users=rows.astype(np.int32),
        items=columns.astype(np.int32),
        user_ids=np.array([f"u/{u}" for u in range(users)], object),
        item_ids=table["item_id"].to_numpy(object),
        item_table=table,
    )
    return random_ratio(log, seed=seed)


def vectors(data: Dataset, dim: int = DIM) -> tuple[np.ndarray, np.ndarray]:
    """Users [U, d] and items [I, d] float32 of a truncated SVD."""
    left, values, right = np.linalg.svd(data.train.toarray(), full_matrices=False)
    roots = np.sqrt(values[:dim])
    return left[:, :dim] * roots, right[:dim].T * roots


def binary(rows: list[list[int]], n_items: int) -> sp.csr_array:
    """CSR with a 1 for each item of each row."""
    matrix = np.zeros((len(rows), n_items), np.float32)
    for row, items in enumerate(rows):
        matrix[row, items] = 1
    return sp.csr_array(matrix)
