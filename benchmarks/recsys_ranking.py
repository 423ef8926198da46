"""The 20 best of all items for every user: ours, argpartition, torch.

    python -m benchmarks.recsys_ranking                # as large as MovieLens, Gowalla
    python -m benchmarks.recsys_ranking --quick        # small, one round

64 dimensions. Random factors all have nearly one length, which is the worst case of
ours; with gowalla_lightgcn.npz in $SPARSEKIT_DATA also those of a singular value
decomposition of the real interactions. Known items are left out by all. Methods take
turns in rounds; the ratio is the median over rounds. "same lists" is the share of users
whose list equals ours: matrix products of another shape round differently, which may
swap two nearly equal items. Whole evaluations, beside those of other libraries, are in
`recsys_peers`.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import svds

from apps.recsys.data import load
from apps.recsys.topk import top_k_factors
from benchmarks import reports
from benchmarks.reports import THREADS, save, table

SIZES = {"MovieLens-100k": (943, 1682, 63), "Gowalla": (29_858, 40_981, 27)}
QUICK = {"small": (211, 1009, 13)}
DIM, K, BLOCK = 64, 20, 500
Case = tuple[np.ndarray, np.ndarray, sp.csr_array]  # users, items, known
Ranked = Callable[[np.ndarray, np.ndarray, sp.csr_array], np.ndarray]


def ours(users: np.ndarray, items: np.ndarray, known: sp.csr_array) -> np.ndarray:
    return top_k_factors(users, items, K, known).items


def scored(
    users: np.ndarray, items: np.ndarray, known: sp.csr_array, start: int
) -> Any:
    """Scores of a block of users, known items masked."""
    scores = users[start : start + BLOCK] @ items.T
    part = known[start : start + BLOCK]
    rows = np.repeat(np.arange(len(scores)), np.diff(part.indptr))
    scores[rows, part.indices] = -np.inf
    return scores


def argpartition(
    users: np.ndarray, items: np.ndarray, known: sp.csr_array
) -> np.ndarray:
    lists = []
    for start in range(0, len(users), BLOCK):
        scores = scored(users, items, known, start)
        best = np.argpartition(scores, -K, axis=1)[:, -K:]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
        lists.append(np.take_along_axis(best, order, 1))
    return np.concatenate(lists)


def torch_topk(users: np.ndarray, items: np.ndarray, known: sp.csr_array) -> np.ndarray:
    lists = []
    for start in range(0, len(users), BLOCK):
        scores = scored(users, items, known, start)
        lists.append(torch.from_numpy(scores).topk(K, 1).indices.numpy())
    return np.concatenate(lists)


def methods() -> dict[str, Ranked]:
    return {"ours": ours, "argpartition": argpartition, "torch.topk": torch_topk}


def made_up(n_users: int, n_items: int, degree: int) -> Case:
    rng = np.random.default_rng(0)
    users = rng.standard_normal((n_users, DIM), np.float32)
    items = rng.standard_normal((n_items, DIM), np.float32)
    known = sp.random_array(
        (n_users, n_items), density=degree / n_items, format="csr", dtype=np.float32,
        rng=rng,
    )  # fmt: skip
    known.sort_indices()
    return users, items, known


def normalised_factors(train: sp.csr_array, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of users and items from the degree-normalised interactions."""
    by_user, by_item = (np.maximum(train.sum(axis), 1) ** -0.5 for axis in (1, 0))
    normal = sp.diags_array(by_user) @ train @ sp.diags_array(by_item)
    left, values, right = svds(normal.astype(np.float32), dim, rng=0)
    users, items = left * values / by_user[:, None], right.T / by_item[:, None]
    return tuple(np.ascontiguousarray(a, dtype=np.float32) for a in (users, items))


def gowalla() -> Case | None:
    """The training part of Gowalla and its factors; None without the file."""
    try:
        known = load("gowalla").known("test")
    except FileNotFoundError:
        return None
    return *normalised_factors(known, DIM), known


def measure(case: Case, rounds: int) -> list[dict]:
    lists = {name: rank(*case) for name, rank in methods().items()}
    rows = timed({n: partial(rank, *case) for n, rank in methods().items()}, rounds)
    for row in rows:
        same = (lists[row["method"]] == lists["ours"]).all(1)
        row["same lists"] = float(same.mean())
    return rows


def timed(calls: dict[str, Callable[[], Any]], rounds: int) -> list[dict]:
    """Median seconds, and the median ratio to ours, of calls that take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    return [
        {
            "method": name,
            "seconds": median(taken),
            "times ours": median(
                a / b for a, b in zip(taken, seconds["ours"], strict=True)
            ),
        }
        for name, taken in seconds.items()
    ]


def markdown(report: dict[str, Any]) -> list[str]:
    cells = (
        f"{size} | {row['method']} | {row['seconds']:.3f} | "
        f"{row['times ours']:.1f} | {row['same lists']:.2%}"
        for size, rows in report["sizes"].items()
        for row in rows
    )
    lines = table("size | method | seconds | times ours | same lists", cells)
    return [*lines, "", f"Threads: {report['threads']}."]


def main() -> None:
    parser = reports.parser(__doc__, quick="small, one round", rounds=3)
    args = parser.parse_args()
    sizes, rounds = (QUICK, 1) if args.quick else (SIZES, args.rounds)
    found = {name: measure(made_up(*size), rounds) for name, size in sizes.items()}
    real = None if args.quick else gowalla()
    if real is not None:
        found["Gowalla, factors of its SVD"] = measure(real, rounds)
    report = {
        "threads": THREADS,
        "sizes": found,
    }
    save(args.out / "recsys_ranking.json", report, markdown(report))


if __name__ == "__main__":
    main()
