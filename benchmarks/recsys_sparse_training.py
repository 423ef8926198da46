"""Training of recommenders as large as Gowalla: dense, masked, and values mode.

    python -m benchmarks.recsys_sparse_training
    python -m benchmarks.recsys_sparse_training --quick     # small, LightGCN alone

BPR-MF and LightGCN, 64 dimensions, Adam, batches of 2,048; DSL draws its masks before
the first step and moves connections in one in the middle. With gowalla_lightgcn.npz in
$SPARSEKIT_DATA the interactions are real, else random ones of that number with
power-law popularity. Every engine trains in a process of its own, and the processes
take turns; a step's time is the median over all its steps.

"state" is what stays between two steps: weights, indices, masks, gradients, moments.
The others are the growth of resident memory, from before the model is built to its
highest point, in another process whose freed memory goes back to the system at once:
"training" in steps without a move, with what they need for a moment, such as the dense
vectors that LightGCN propagates; "move" in the step with one; "start" while the model
is built and the first masks are drawn. After the same steps, masked and values mode
have the same masks.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch.optim import Adam

from apps.common.provenance import provenance
from apps.recsys.data import load
from apps.recsys.models.lightgcn import LightGCN
from apps.recsys.models.mf import MF
from apps.recsys.models.network import Network
from apps.recsys.sampling import Pairs
from apps.recsys.train import in_values_mode
from benchmarks import reports
from benchmarks.reports import THREADS, save, table
from sparsekit import Sparsifier
from sparsekit.memory import peak_rss, restart_peak
from sparsekit.methods.dsl import DSL

MODELS, ENGINES = ("mf", "lightgcn"), ("dense", "masked", "values")
SIZE, QUICK = (29_858, 40_981, 810_128), (300, 500, 6_000)  # users, items, pairs
DIM, LAYERS, BATCH = 64, 3, 2048
TABLE = "embedding.weight"


def interactions(quick: bool) -> tuple[str, sp.csr_array]:
    """Gowalla's training part, or random pairs of its number, with a name."""
    if not quick:
        try:
            return "Gowalla", load("gowalla").known("test")
        except FileNotFoundError:
            pass
    n_users, n_items, n = QUICK if quick else SIZE
    rng = np.random.default_rng(0)
    popularity = 1 / np.arange(1, n_items + 1) ** 0.7
    items = rng.choice(n_items, 2 * n, p=popularity / popularity.sum())
    keys = np.unique(rng.integers(n_users, size=2 * n) * n_items + items)
    keys = np.sort(rng.permutation(keys)[:n])
    rows = np.searchsorted(keys, np.arange(n_users + 1) * n_items)
    train = sp.csr_array((np.ones(len(keys), np.float32), keys % n_items, rows))
    train.resize(n_users, n_items)
    return "random", train


def turn(model: str, engine: str, density: float, steps: int, quick: bool) -> dict:
    """What one process measures."""
    torch.set_num_threads(THREADS)
    trained(model, engine, density, 4, interactions(True)[1])  # loads and compiles
    name, train = interactions(quick)
    return {"data": name} | trained(model, engine, density, steps, train)


def trained(
    model: str, engine: str, density: float, steps: int, train: sp.csr_array
) -> dict:
    batches = list(first_batches(train, min(BATCH, train.nnz // 4), steps))
    restart_peak()
    before = peak_rss()
    network: Network = (
        MF(train, DIM, 1e-4, seed=0)
        if model == "mf"
        else LightGCN(train, DIM, LAYERS, 1e-4, seed=0)
    )
    graph = sum(b.nbytes for b in network.buffers())
    if engine == "values":
        network = in_values_mode(network, [TABLE])
    optimizer = Adam(network.parameters(), 1e-3, fused=True)
    sparsifier = None
    if engine != "dense":
        method = DSL(1 - density, every=steps // 2, end=steps)
        sparsifier = Sparsifier(network, optimizer, method, params=[TABLE])
    highest = {"start": peak_rss() - before, "training": 0, "move": 0}
    seconds = []
    for step, batch in enumerate(batches):
        restart_peak()
        began = time.perf_counter()
        optimizer.zero_grad()
        network.loss(batch).backward()
        if sparsifier is not None:
            sparsifier.before_step()
        optimizer.step()
        if sparsifier is not None:
            sparsifier.after_step()
        taken = time.perf_counter() - began
        moves = sparsifier is not None and sparsifier.method.due(step)
        kind = "move" if moves else "training"
        highest[kind] = max(highest[kind], peak_rss() - before)
        if not moves:
            seconds.append(taken)
    return highest | {
        "seconds": seconds,
        "state": state_bytes(network, optimizer, sparsifier) - graph,
        "graph": graph,
        "masks": digest(sparsifier),
    }


def first_batches(train: sp.csr_array, batch: int, n: int) -> Iterator[Tensor]:
    sampler = Pairs(train, batch)
    generator = torch.Generator().manual_seed(0)
    while True:
        for drawn in sampler.epoch(generator):
            if n == 0:
                return
            yield drawn
            n -= 1


def state_bytes(
    network: nn.Module, optimizer: Adam, sparsifier: Sparsifier | None
) -> int:
    """Of every tensor that is kept between two steps, each storage once."""
    kept = [*network.parameters(), *network.buffers()]
    kept += [p.grad for p in network.parameters() if p.grad is not None]
    kept += [t for s in optimizer.state.values() for t in s.values()]
    if sparsifier is not None:
        for weight in sparsifier._weights.values():
            kept += [t for t in vars(weight).values() if isinstance(t, Tensor)]
            for gate in ("_alive_gate", "_trainable_gate"):
                if hasattr(weight, gate):
                    kept += getattr(weight, gate).words.values()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in kept}
    return sum(storage.nbytes() for storage in storages.values())


def digest(sparsifier: Sparsifier | None) -> str | None:
    if sparsifier is None:
        return None
    return hashlib.sha256(sparsifier.alive[TABLE].numpy().tobytes()).hexdigest()


def measure(density: float, steps: int, turns: int, quick: bool) -> list[dict]:
    """Rows of the table; engines take turns, each in a process of its own."""
    rows = []
    for model in MODELS[-1:] if quick else MODELS:
        found: dict[str, list[dict]] = {engine: [] for engine in ENGINES}
        for number in range(1 + turns):
            for engine in ENGINES:
                settings = [model, engine, str(density), str(steps), str(int(quick))]
                found[engine].append(in_a_process(settings, memory=number == 0))
        if found["masked"][0]["masks"] != found["values"][0]["masks"]:
            raise RuntimeError(f"{model}: masked and values mode have other masks")
        rows += [row(model, engine, density, found) for engine in ENGINES]
    return rows


def in_a_process(settings: list[str], memory: bool) -> dict:
    """One turn. For its memory, freed blocks are unmapped, which takes time."""
    env = {"MALLOC_MMAP_THRESHOLD_": "65536"} if memory else {}
    return reports.fresh("recsys_sparse_training", "--turn", *settings, **env)


def row(
    model: str, engine: str, density: float, found: dict[str, list[dict]]
) -> dict[str, Any]:
    times = {
        e: median(s for t in turns[1:] or turns for s in t["seconds"])
        for e, turns in found.items()
    }
    memory = found[engine][0]
    kinds = ("state", "training", "move", "start", "graph")
    return {
        "model": model,
        "engine": engine,
        "density": 1.0 if engine == "dense" else density,
        "ms a step": 1e3 * times[engine],
        "times dense": times["dense"] / times[engine],
        "data": memory["data"],
    } | {f"{kind} MB": memory[kind] / 1e6 for kind in kinds}


def markdown(report: dict[str, Any]) -> list[str]:
    lines = table(
        "model | engine | density | ms a step | speed | state, MB | training, MB "
        "| move, MB | start, MB",
        (
            f"{r['model']} | {r['engine']} | {r['density']:g} | {r['ms a step']:.1f} "
            f"| {r['times dense']:.2f}x | {r['state MB']:.1f} | {r['training MB']:.1f} "
            f"| {format(r['move MB'], '.1f') if r['engine'] != 'dense' else ''} "
            f"| {r['start MB']:.1f}"
            for r in report["rows"]
        ),
    )
    end = f"Interactions: {report['rows'][0]['data']}. Threads: {report['threads']}."
    return [*lines, "", end]


def main() -> None:
    parser = reports.parser(__doc__, quick="small, one density", steps=40, turns=3)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.2, 0.1])
    parser.add_argument("--turn", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turn:
        model, engine, density, steps, quick = args.turn
        done = turn(model, engine, float(density), int(steps), quick == "1")
        print(json.dumps(done))
        return
    steps, turns = (8, 0) if args.quick else (args.steps, args.turns)
    densities = args.densities[:1] if args.quick else args.densities
    rows = [r for d in densities for r in measure(d, steps, turns, args.quick)]
    report = {
        "threads": THREADS,
        "rows": rows,
        "provenance": provenance("smoke" if args.quick else "full"),
    }
    name = "recsys_sparse_training"
    save(args.out / f"{name}.json", report, markdown(report))


if __name__ == "__main__":
    main()
