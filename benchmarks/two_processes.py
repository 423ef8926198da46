"""Two processes that train or rank together, beside one: seconds, and how equal.

    python -m benchmarks.two_processes            # two minutes on two cores
    python -m benchmarks.two_processes --gpus     # NCCL: one GPU a process

One process and two, one thread each, in turn, `--rounds` times; the least counts. The
seconds are those of the processor that a process has used, which a busy machine changes
little; waiting for the other process is not in them, and is in those of the wall clock,
which are in the file. On GPUs they are those of the clock, of the training loop when
it runs for the second time; products are in float32, without TF32, so that one GPU and
two can be compared. `apps/common/processes.py` says how they share.
"""

import argparse
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from apps.classify.config import Config as Classify
from apps.classify.train import train as classify
from apps.common import processes
from apps.common.provenance import provenance
from apps.continual.config import Config as Continual
from apps.continual.train import train as learn
from apps.recsys.config import Config as Recsys
from apps.recsys.evaluation import evaluate
from apps.recsys.train import train as recommend
from apps.unlearning.config import Config as Unlearning
from apps.unlearning.train import train as unlearn
from sparsekit import atomic

BOOK = Path(__file__).parents[1] / "book/results/contracts/processes.json"
GPUS = BOOK.with_name("gpus.json")
RANKED = Recsys(model="mf", dim=64, epochs=1, every=1, batch=8192)
TRAININGS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "classify, CNN of width 16": (
        classify,
        Classify(model="cnn", width=16, method="rigl", sparsity=0.9, epochs=1),
    ),
    "classify, MLP of width 512": (
        classify,
        Classify(model="mlp", width=512, method="rigl", sparsity=0.9, epochs=1),
    ),
    "continual, DER++, CNN of width 16": (
        learn,
        Continual(
            model="cnn", width=16, strategy="derpp", method="set", sparsity=0.9,
            batch=64, replay_batch=64,
        ),
    ),
    "unlearning, CNN of width 16": (
        unlearn,
        Unlearning(width=16, pruner="omp", epochs=1, rewind=0, options={"epochs": 1}),
    ),
    "recommender, MF of 64 dimensions": (
        recommend,
        replace(RANKED, epochs=2, method="gradual", sparsity=0.8),
    ),
}  # fmt: skip


ON_GPUS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "classify, ResNet of width 64": (
        classify,
        Classify(
            model="resnet", width=64, batch=512, epochs=2, method="rigl", sparsity=0.9,
            device="cuda",
        ),
    ),
    "continual, DER++, ResNet-18": (
        learn,
        Continual(
            model="resnet18", width=64, strategy="derpp", method="set", sparsity=0.9,
            batch=256, replay_batch=256, buffer=1000, device="cuda",
        ),
    ),
    "unlearning, ResNet-18": (
        unlearn,
        Unlearning(
            model="resnet18", width=64, batch=512, pruner="omp", epochs=1, rewind=0,
            options={"epochs": 1}, device="cuda",
        ),
    ),
    "recommender, LightGCN of 64 dimensions": (
        recommend,
        Recsys(
            model="lightgcn", dim=64, epochs=40, every=40, batch=8192,
            method="gradual", sparsity=0.8, device="cuda",
        ),
    ),
}  # fmt: skip


class Times:
    """Seconds since it was made, of the processor and of the wall clock."""

    def __init__(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def passed(self) -> dict[str, float]:
        cpu, wall = time.process_time(), time.perf_counter()
        return {"cpu": cpu - self.cpu, "wall": wall - self.wall}


def with_data(config: Any, data: dict[str, str]) -> Any:
    """On other files of images or clicks, if they are given."""
    kind = "clicks" if isinstance(config, Recsys) else "images"
    return replace(config, dataset=data[kind]) if data[kind] else config


def trained(name: str, data: dict[str, str]) -> dict[str, Any]:
    """Seconds of the loop, metrics and masks of a training."""
    train, config = {**TRAININGS, **ON_GPUS}[name]
    config = with_data(config, data)
    times = Times()
    result = train(config)
    seconds = times.passed()
    if config.device != "cpu":
        seconds["wall"] = train(config).cost["train_seconds"]
    metrics = {k: float(v.value) for k, v in result.metrics.items() if k != "run time"}
    masks = {k: mask.cpu() for k, mask in result.masks.items()}
    return {**seconds, "metrics": metrics, "masks": masks}


def ranked(data: dict[str, str]) -> dict[str, Any]:
    """All items for every user, fifty times; 943 users of MovieLens-100k."""
    result = recommend(with_data(RANKED, data))
    times = Times()
    for _ in range(50):
        found = evaluate(result.model, result.data, "test")
    seconds = times.passed()
    return {**seconds, "metrics": found.means, "masks": {}}


def all_of(names: list[str], data: dict[str, str]) -> dict[str, Any]:
    return {n: ranked(data) if n == "ranking" else trained(n, data) for n in names}


def _process(rank: int, folder: str, port: int, *what: Any) -> None:
    """As one that `torchrun` starts: on GPU `rank`, if its configuration says cuda."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(n) for name, n in ranks.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    _same_products()
    with processes.joined():
        found = all_of(*what)
        backend = dist.get_backend_config()
    torch.save(found | {"backend": backend}, f"{folder}/{rank}.pt")


def _same_products() -> None:
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def together(*what: Any) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        arguments = (folder, _free_port(), *what)
        torch.multiprocessing.spawn(_process, arguments, nprocs=2)
        paths = [f"{folder}/{rank}.pt" for rank in range(2)]
        return [torch.load(path, weights_only=True) for path in paths]


def alone(*what: Any) -> dict[str, Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    _same_products()
    try:
        return all_of(*what)
    finally:
        torch.set_num_threads(before)


def row(one: dict, both: list[dict]) -> dict[str, Any]:
    """Seconds, and how far masks and metrics of two processes are from those of one."""
    gaps = [abs(both[0]["metrics"][k] - v) for k, v in one["metrics"].items()]
    pairs = [(both[0]["masks"][k], mask) for k, mask in one["masks"].items()]
    times = {f"one, {k}": one[k] for k in ("cpu", "wall")}
    times |= {f"two, {k}": max(b[k] for b in both) for k in ("cpu", "wall")}
    return times | {
        "largest metric gap": float(np.nanmax(gaps)),
        "mask entries": sum(mask.numel() for _, mask in pairs),
        "mask entries that differ": sum(int((a != b).sum()) for a, b in pairs),
        "both the same": both[0]["metrics"] == both[1]["metrics"],
    }


def contract(rows: dict[str, dict[str, Any]], gpus: bool = False) -> dict[str, Any]:
    """The table of the book's page of contracts."""
    columns = {
        "1 process": "processor seconds, one thread",
        "2 processes": "processor seconds of each, one thread; waiting is not in them",
    }
    if gpus:
        columns = {"1 GPU": "seconds of training", "2 GPUs": "seconds of training"}
    columns |= {
        "metrics": "largest gap between a metric of one process and of two",
        "masks": "mask entries that differ, of all",
    }
    clock = "wall" if gpus else "cpu"
    shown = {}
    for name, r in rows.items():
        values = [f"{r[key]:.2f}" for key in (f"one, {clock}", f"two, {clock}")]
        differ = f"{r['mask entries that differ']:,} of {r['mask entries']:,}"
        values += [f"{r['largest metric gap']:.1g}", differ]
        shown[name] = dict(zip(columns, values, strict=True))
    what = "Small trainings, sparse, and all items ranked for 943 users fifty times:"
    command = "`python -m benchmarks.two_processes`."
    if gpus:
        what, command = "Sparse trainings, with NCCL:", command[:-2] + " --gpus`."
    return {
        "what": f"{what} {command}",
        "columns": columns,
        "rows": shown,
    }


def table(rows: dict[str, dict[str, Any]], gpus: bool = False) -> str:
    content = contract(rows, gpus)
    lines = ["| what | " + " | ".join(content["columns"]) + " |", "|---" * 5 + "|"]
    for name, cells in content["rows"].items():
        lines.append(f"| {name} | " + " | ".join(cells.values()) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--gpus", action="store_true", help="one a process, with NCCL")
    parser.add_argument("--names", nargs="+", help="only these rows")
    parser.add_argument("--images", default="", help=".npz instead of mnist5k")
    parser.add_argument("--clicks", default="", help="a table instead of ml100k")
    parser.add_argument(
        "--out", type=Path, default=Path("build/benchmarks/two_processes.json")
    )
    parser.add_argument("--keep", action="store_true", help="put it into the book")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows: dict[str, dict[str, Any]] = {}
    names = options.names or (ON_GPUS if options.gpus else ["ranking", *TRAININGS])
    for _ in range(options.rounds):
        what = list(names), {"images": options.images, "clicks": options.clicks}
        one, both = alone(*what), together(*what)
        for name in names:
            new = row(one[name], [b[name] for b in both])
            old = rows.get(name, new)
            times = [key for key in new if key.startswith(("one, ", "two, "))]
            rows[name] = new | {key: min(old[key], new[key]) for key in times}
    report = {"rows": rows, "backend": both[0]["backend"]}
    report["provenance"] = provenance("laptop")
    atomic.write_text(options.out, json.dumps(report, indent=1) + "\n")
    atomic.write_text(options.out.with_suffix(".md"), table(rows, options.gpus))
    if options.keep:
        book = GPUS if options.gpus else BOOK
        content = contract(rows, options.gpus)
        atomic.write_text(book, json.dumps(content, indent=1) + "\n")
    print(table(rows, options.gpus))


if __name__ == "__main__":
    main()
