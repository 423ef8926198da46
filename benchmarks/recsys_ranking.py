"""The 20 best of all items for every user: ours, argpartition, torch, implicit.

    python -m benchmarks.recsys_ranking                # as large as MovieLens, Gowalla
    python -m benchmarks.recsys_ranking --quick        # small, one round

Random factors of 64 dimensions and random known items, which all methods leave out.
Methods take turns in rounds; the ratio is the median over rounds. "same lists" is the
share of users whose list equals ours: matrix products of another shape round
differently, which may swap two nearly equal items. Torch and implicit are measured if
they are installed; an environment with implicit needs numba, numpy, scipy and
threadpoolctl beside it. OMP_NUM_THREADS holds for all.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import scipy.sparse as sp

from apps.recsys.topk import top_k_factors

ROOT = Path(__file__).parents[1]
SIZES = {"MovieLens-100k": (943, 1682, 63), "Gowalla": (29_858, 40_981, 27)}
QUICK = {"small": (211, 1009, 13)}
DIM, K, BLOCK = 64, 20, 500
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
    import torch

    lists = []
    for start in range(0, len(users), BLOCK):
        scores = scored(users, items, known, start)
        lists.append(torch.from_numpy(scores).topk(K, 1).indices.numpy())
    return np.concatenate(lists)


def implicit_recommend(
    users: np.ndarray, items: np.ndarray, known: sp.csr_array
) -> np.ndarray:
    """`recommend` of its matrix factorisations, the call that users make."""
    from implicit.cpu.als import AlternatingLeastSquares

    threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    model = AlternatingLeastSquares(factors=DIM, num_threads=threads)
    model.user_factors, model.item_factors = users, items
    ids, _ = model.recommend(np.arange(len(users)), sp.csr_matrix(known), N=K)
    return ids


def methods() -> dict[str, Ranked]:
    found: dict[str, Ranked] = {"ours": ours, "argpartition": argpartition}
    if find_spec("torch"):
        found["torch.topk"] = torch_topk
    if find_spec("implicit"):
        found["implicit"] = implicit_recommend
    return found


def measure(n_users: int, n_items: int, degree: int, rounds: int) -> list[dict]:
    rng = np.random.default_rng(0)
    users = rng.standard_normal((n_users, DIM), np.float32)
    items = rng.standard_normal((n_items, DIM), np.float32)
    known = sp.random_array(
        (n_users, n_items), density=degree / n_items, format="csr", dtype=np.float32,
        rng=rng,
    )  # fmt: skip
    known.sort_indices()
    lists = {name: rank(users, items, known) for name, rank in methods().items()}
    seconds: dict[str, list[float]] = {name: [] for name in lists}
    for _ in range(rounds):
        for name, rank in methods().items():
            began = time.perf_counter()
            rank(users, items, known)
            seconds[name].append(time.perf_counter() - began)
    return [
        {
            "method": name,
            "seconds": median(taken),
            "times ours": median(
                a / b for a, b in zip(taken, seconds["ours"], strict=True)
            ),
            "same lists": float((lists[name] == lists["ours"]).all(1).mean()),
        }
        for name, taken in seconds.items()
    ]


def markdown(report: dict[str, Any]) -> str:
    lines = [
        "| size | method | seconds | times ours | same lists |",
        "|---|---|---|---|---|",
    ]
    for size, rows in report["sizes"].items():
        for row in rows:
            lines.append(
                f"| {size} | {row['method']} | {row['seconds']:.3f} | "
                f"{row['times ours']:.1f} | {row['same lists']:.2%} |"
            )
    return "\n".join([*lines, "", f"Threads: {report['threads']}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks")
    args = parser.parse_args()
    sizes, rounds = (QUICK, 1) if args.quick else (SIZES, args.rounds)
    report = {
        "threads": os.environ.get("OMP_NUM_THREADS") or os.cpu_count(),
        "sizes": {name: measure(*size, rounds) for name, size in sizes.items()},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "recsys_ranking.json").write_text(json.dumps(report, indent=2) + "\n")
    (args.out / "recsys_ranking.md").write_text(markdown(report), "utf-8")
    print(markdown(report))


if __name__ == "__main__":
    main()
