"""How time and memory grow: with users and items, interactions, weights, tasks.

    python -m benchmarks.scale             # four minutes, up to 3 GB of memory
    python -m benchmarks.scale --quick     # the smallest sizes
    python -m benchmarks.keep scale        # and keep it, for book/scale.md

Each point runs in a process of its own on one thread: seconds of one unit of work, the
fastest of several, and the peak of resident memory above that of the process before the
work was set up. Tables and graphs are made up (numbers drawn, as many interactions a
user as in MovieLens' smaller sets), since only their size matters here; the tasks are
scikit-learn's digits with permuted pixels.

The growth of a series is the slope of log(y) over log(x), by least squares; 1 is
linear.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import reports
from benchmarks.reports import save, table
from sparsekit.memory import peak_rss

DIM, BATCH, EACH = 64, 2048, 20  # of vectors; of steps; interactions a user
USERS, ITEMS = 10**8, 10**7  # beyond this machine

Point = tuple[float, int]  # seconds of one unit of work, bytes that stay
Measure = Callable[[int], Point]


def timed(work: Callable[[], Any], at_least: float = 1.0) -> float:
    """Seconds of the fastest call, in a second of calls and no fewer than three."""
    work()  # compiles, warms up
    times: list[float] = []
    while len(times) < 3 or sum(times) < at_least:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def interactions(rows: int) -> Any:
    """CSR [U, I] of made-up pairs, nine tenths of the rows users."""
    import scipy.sparse as sp

    draws = np.random.default_rng(0)
    n_users = rows * 9 // 10
    n_items = rows - n_users
    users = np.repeat(np.arange(n_users, dtype=np.int32), EACH)
    items = draws.integers(0, n_items, len(users), dtype=np.int32)
    ones = np.ones(len(users), np.float32)
    pairs = sp.csr_array((ones, (users, items)), shape=(n_users, n_items))
    pairs.sum_duplicates()
    return pairs


def recommender_step(model: str) -> Measure:
    """Seconds of a training step, as `sparsekit recsys train` takes it."""

    def measure(rows: int) -> Point:
        import torch

        from apps.recsys.config import Config
        from apps.recsys.gradients import eager
        from apps.recsys.networks import build

        train = interactions(rows)
        network = build(Config(model=model, dim=DIM), train)
        optimizer = torch.optim.Adam(network.parameters(), fused=True)
        sampler = network.sampler(train, BATCH, 1, 0.0, "cpu", False)
        batch = next(iter(sampler.epoch(torch.Generator().manual_seed(0))))
        gradients = eager(network, optimizer)

        def step() -> None:
            gradients(batch)
            optimizer.step()

        seconds = timed(step)
        states = [t for s in optimizer.state.values() for t in s.values()]
        held = [*network.parameters(), *states, *network.buffers()]
        return seconds, sum(t.nbytes for t in held if not t.is_sparse_csr)

    return measure


def ranking(items: int) -> Point:
    """Seconds of one user's best 20 of all items. No item is skipped: drawn vectors."""
    from apps.recsys.topk import top_k_factors

    draws = np.random.default_rng(0)
    table = draws.standard_normal((items, DIM), np.float32)
    users = draws.standard_normal((128, DIM), np.float32)
    seconds = timed(lambda: top_k_factors(users, table, 20, threads=1))
    return seconds / len(users), table.nbytes


def sparse_layer(alive: int) -> Point:
    """Seconds of a training step of a square layer, 5 % alive, batch 64, Adam."""
    import torch

    from sparsekit.execution.linear import SparseLinear

    width = math.isqrt(alive * 20)
    draws = torch.Generator().manual_seed(0)
    mask = torch.rand(width, width, generator=draws) < 0.05
    dense = torch.nn.Linear(width, width, bias=False)
    layer = SparseLinear.from_dense(dense, mask)
    del dense
    optimizer = torch.optim.Adam(layer.parameters(), fused=True)
    x = torch.randn(64, width, generator=draws, requires_grad=True)

    def step() -> None:
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()

    seconds = timed(step)
    held = [t for s in optimizer.state.values() for t in s.values()]
    held += [*layer.parameters(), *layer.buffers()]
    return seconds, sum(t.nbytes for t in held)


def stream(strategy: str, **options: Any) -> Measure:
    """Seconds of training on all tasks, and bytes that must be kept between tasks."""

    def measure(tasks: int) -> Point:
        from apps.continual.config import Config
        from apps.continual.train import train

        config = Config(
            dataset="digits", scenario="domain", drift="permuted", tasks=tasks,
            strategy=strategy, epochs=1, lr=0.001, **options,
        )  # fmt: skip
        kept = []

        def watch(task: int, state: Any) -> None:
            buffer = state.buffer.nbytes
            sources = state.strategy.sources(task)
            seen = sum(len(state.stream.tasks[i].train) for i in sources)
            data = seen * 64 if strategy == "joint" else 0  # pixels of a digit
            kept.append(buffer + data + tensor_bytes(state.strategy.state_dict()))

        seconds = [train(config, watch).cost["train_seconds"] for _ in range(3)]
        return min(seconds), kept[-1]

    return measure


def tensor_bytes(value: Any) -> int:
    """Of all tensors in lists and dicts."""
    if isinstance(value, dict):
        return sum(map(tensor_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(tensor_bytes, value))
    return getattr(value, "nbytes", 0)


TASKS = (2, 4, 8, 16)
# {name: (x, unit of work, sizes, measure)}
SERIES: dict[str, tuple[str, str, tuple[int, ...], Measure]] = {
    "matrix factorisation": (
        "users and items", "a training step",
        (20_000, 100_000, 500_000, 2_000_000), recommender_step("mf"),
    ),
    "LightGCN": (
        "users and items", "a training step",
        (5_000, 20_000, 80_000, 320_000), recommender_step("lightgcn"),
    ),
    "ranking": (
        "items", "one user's best 20",
        (20_000, 100_000, 500_000, 2_000_000), ranking,
    ),
    "sparse layer": (
        "weights alive", "a training step, batch 64",
        (50_000, 500_000, 5_000_000, 20_000_000), sparse_layer,
    ),
    "replay": ("tasks", "the whole stream", TASKS, stream("er", buffer=200)),
    "EWC": ("tasks", "the whole stream", TASKS, stream("ewc")),
    "joint training": ("tasks", "the whole stream", TASKS, stream("joint")),
}  # fmt: skip


def run(name: str, size: int) -> dict[str, float]:
    """One point, in this process."""
    before = peak_rss()
    seconds, held = SERIES[name][3](size)
    peak = peak_rss()
    return {
        "x": size,
        "seconds": seconds,
        "bytes": held,
        "peak": peak - before,
    }


def measure(name: str, sizes: tuple[int, ...]) -> list[dict[str, float]]:
    return [reports.fresh("scale", "--one", name, size) for size in sizes]


def growth(points: list[dict[str, float]], key: str) -> float:
    """Slope of log(key) over log(x), by least squares."""
    x, y = (np.log([point[k] for point in points]) for k in ("x", key))
    return round(float(np.polyfit(x, y, 1)[0]), 2) + 0.0  # no -0.00


def markdown(report: dict[str, Any]) -> str:
    rows = (
        f"{name} | {SERIES[name][0]} | {points[-1]['x']:,} | {SERIES[name][1]} | "
        f"{duration(points[-1]['seconds'])} | {growth(points, 'seconds'):.2f} | "
        f"{size(points[-1]['bytes'])} | {growth(points, 'bytes'):.2f}"
        for name, points in report.items()
    )
    titles = "what | grows with | largest here | a unit of work | time of it | growth"
    return "\n".join(table(f"{titles} | state | growth", rows))


def beyond(report: dict[str, Any]) -> str:
    """What the last points say of 10^8 users and 10^7 items, linearly."""
    rows, items, pairs = USERS + ITEMS, ITEMS, USERS * EACH
    factor, graph = report["matrix factorisation"][-1], report["LightGCN"][-1]
    best = report["ranking"][-1]["seconds"] * items / report["ranking"][-1]["x"]
    found = [
        ("interactions, two integers each", size(8 * pairs), f"{EACH} a user"),
        (f"vectors of {DIM} numbers, float32", size(4 * DIM * rows), ""),
        ("the same and Adam's moments", size(factor["bytes"] * rows / factor["x"]),
         f"measured: {factor['bytes'] / factor['x']:.0f} bytes a row"),
        ("item vectors in 4 bits", size((DIM / 2 + 4) * items), "with a scale a row"),
        ("a step of matrix factorisation",
         duration(factor["seconds"] * rows / factor["x"]), beyond_by(rows, factor)),
        ("a step of LightGCN", duration(graph["seconds"] * rows / graph["x"]),
         beyond_by(rows, graph)),
        ("the best 20 of all items, one user", duration(best),
         beyond_by(items, report["ranking"][-1])),
        ("the same for all users", duration(best * USERS), "one thread; splits freely"),
    ]  # fmt: skip
    return "\n".join(table("what | bytes or time | remark", map(" | ".join, found)))


def beyond_by(target: int, point: dict[str, float]) -> str:
    return f"{target / point['x']:,.0f} times the largest measured"


def duration(seconds: float) -> str:
    """In the unit that reads best.

    >>> duration(0.00123), duration(90.0), duration(1e6)
    ('1.2 ms', '90 s', '12 days')
    """
    if seconds < 1:
        return f"{seconds * 1e3:.2g} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"
    if seconds < 200:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 200_000:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"


def size(n_bytes: float) -> str:
    """In decimal units.

    >>> size(1500), size(2.5e6), size(1.1e11)
    ('1.5 kB', '2.5 MB', '110 GB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1000 or unit == "TB":
            break
        n_bytes /= 1000
    return f"{n_bytes:.0f} {unit}" if n_bytes >= 100 else f"{n_bytes:.2g} {unit}"


def main() -> None:
    parser = reports.parser(__doc__, quick="the two smallest sizes")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run(args.one[0], int(args.one[1]))))
        return
    report = {}
    for name, (_, _, sizes, _) in SERIES.items():
        report[name] = measure(name, sizes[:2] if args.quick else sizes)
        print(name, report[name], flush=True)
    save(args.out / "scale.json", report, [markdown(report)])


if __name__ == "__main__":
    main()
