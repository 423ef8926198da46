"""Latency of the HTTP service at a given rate: known users, new users, two tables.

    python -m benchmarks.recsys_service               # 40,000 items, 200 requests/s
    python -m benchmarks.recsys_service --quick       # small, one second

The service runs on one core with one process, the client on another if there is one.
Requests arrive at random (exponential gaps) and do not wait for earlier answers; a
latency counts from the moment that the request was due, so that a queue shows. Factors
are random, d = 64; each list has 20 items of all, with titles; a history has 30 items.
"health" is what HTTP itself takes. "alone" is the answer without HTTP, in this process.
Timings want a quiet machine: the load average before each run is written down.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.recsys.artefact import Artefact, save
from apps.recsys.ragged import Ids, Texts, ragged
from apps.recsys.recommender import Recommender
from apps.recsys.scoring import FactorScorer, FoldIn
from apps.recsys.tables import encode
from benchmarks import reports
from benchmarks.reports import ROOT, table

KINDS = ("float32", "int8")
PERCENTILES = (50, 95, 99, 99.9)
K, HISTORY = 20, 30


@dataclass(frozen=True)
class Size:
    users: int = 30_000
    items: int = 40_000
    dim: int = 64
    rate: float = 200.0
    seconds: float = 30.0


QUICK = Size(users=500, items=1000, dim=16, rate=100.0, seconds=0.3)
Request = tuple[str, str, dict[str, Any] | None]  # method, path, body
Ask = Callable[[np.random.Generator, Size], Request]


def known(rng: np.random.Generator, size: Size) -> Request:
    return "POST", "/recommend", {"user": str(rng.integers(size.users)), "k": K}


def folded(rng: np.random.Generator, size: Size) -> Request:
    history = [str(i) for i in rng.integers(size.items, size=HISTORY)]
    return "POST", "/recommend", {"history": history, "k": K}


def explained(rng: np.random.Generator, size: Size) -> Request:
    method, path, body = folded(rng, size)
    return method, path, {**(body or {}), "reasons": 2}


def mixed(rng: np.random.Generator, size: Size) -> Request:
    return (known, folded)[rng.integers(2)](rng, size)


def health(rng: np.random.Generator, size: Size) -> Request:
    return "GET", "/health", None


ASKS: dict[str, Ask] = {
    "health": health, "known user": known, "new user": folded,
    "new user, 2 reasons": explained, "half and half": mixed,
}  # fmt: skip


def artefact(size: Size, kind: str) -> Artefact:
    rng = np.random.default_rng(0)
    users = rng.standard_normal((size.users, size.dim), np.float32)
    items = rng.standard_normal((size.items, size.dim), np.float32)
    lengths = rng.integers(5, 50, size.users)
    history = ragged([np.unique(rng.integers(size.items, size=n)) for n in lengths])
    return Artefact(
        user_ids=Ids.of(str(i) for i in range(size.users)),
        item_ids=Ids.of(str(i) for i in range(size.items)),
        history=history,
        popularity=np.bincount(history.values, minlength=size.items),
        model=FactorScorer(encode(users, kind), encode(items, kind), FoldIn(0.1, 64.0)),
        texts={"title": Texts.of(f"The title of item {i}" for i in range(size.items))},
    )


class Server:
    """The service of a file as a process on the first of our cores."""

    def __init__(self, path: Path, core: int):
        with socket.socket() as chosen:
            chosen.bind(("127.0.0.1", 0))
            self.port = chosen.getsockname()[1]
        code = (
            f"from apps.recsys.service import run; run({str(path)!r}, port={self.port})"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )  # fmt: skip

    def __enter__(self) -> "Server":
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return self
            except ConnectionRefusedError:
                if self.process.poll() is not None:
                    raise RuntimeError("the service did not start") from None
                time.sleep(0.1)
        raise RuntimeError("the service did not start within a minute")

    def __exit__(self, *exception: object) -> None:
        self.process.terminate()
        self.process.wait()

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")")[-1]
        user, system = fields.split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


class Client:
    """Requests over connections that stay open, as many as are needed at once."""

    def __init__(self, port: int):
        self.port = port
        self.free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        if self.free:
            reader, writer = self.free.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        self.free.append((reader, writer))
        return int(head.split(b" ", 2)[1]), body

    def close(self) -> None:
        for _, writer in self.free:
            writer.close()


def encoded(request: Request) -> bytes:
    method, path, body = request
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def load(port: int, requests: list[bytes], due: np.ndarray) -> dict[str, Any]:
    """Sends each request when it is due; latencies in ms, and how many failed."""
    client, loop = Client(port), asyncio.get_running_loop()
    latencies, failed = [], 0

    async def one(request: bytes, when: float) -> None:
        nonlocal failed
        try:
            status, body = await client.ask(request)
            good = status == 200 and body.startswith(b"{") and b'"error"' not in body
        except (OSError, asyncio.IncompleteReadError):
            good = False
        if good:
            latencies.append((loop.time() - when) * 1e3)
        else:
            failed += 1

    began, tasks = loop.time() + 0.1, []
    for request, gap in zip(requests, due, strict=True):
        when = began + gap
        await asyncio.sleep(max(0.0, when - loop.time() - 0.002))
        while loop.time() < when:  # a timer is too coarse
            await asyncio.sleep(0)
        tasks.append(asyncio.create_task(one(request, when)))
    await asyncio.gather(*tasks)
    client.close()
    return {"latencies": latencies, "failed": failed}


def measure(server: Server, ask: Ask, size: Size) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    n = int(size.rate * size.seconds)
    due = np.cumsum(rng.exponential(1 / size.rate, n))
    requests = [encoded(ask(rng, size)) for _ in range(n)]
    asyncio.run(load(server.port, requests[:50], due[:50]))  # warms up
    busy, before = os.getloadavg()[0], server.cpu_seconds()
    done = asyncio.run(load(server.port, requests, due))
    cpu = server.cpu_seconds() - before
    found = np.percentile(done["latencies"] or [np.nan], PERCENTILES)
    return {
        **{f"p{p}": float(v) for p, v in zip(PERCENTILES, found, strict=True)},
        "max": float(max(done["latencies"], default=np.nan)),
        "requests": n,
        "failed": done["failed"],
        "busy": cpu / float(due[-1]),
        "load average before": busy,
    }


def alone(path: Path, ask: Ask, size: Size) -> dict[str, float]:
    """Milliseconds of the answers themselves."""
    recommender, rng, taken = Recommender.open(path), np.random.default_rng(2), []
    for _ in range(200):
        _, _, body = ask(rng, size)
        body = dict(body or {})
        user = body.pop("user", None)
        began = time.perf_counter()
        recommender.recommend(user, **body)
        taken.append((time.perf_counter() - began) * 1e3)
    found = np.percentile(taken, PERCENTILES)
    return {f"p{p}": float(v) for p, v in zip(PERCENTILES, found, strict=True)}


def markdown(report: dict[str, Any]) -> list[str]:
    size = report["size"]
    loads = [row["load average before"] for row in report["rows"]]
    return [
        f"{size['items']:,} items, d = {size['dim']}, {size['rate']:g} requests/s for "
        f"{size['seconds']:g} s a row, one core; milliseconds",
        "",
        *table(
            "table | question | p50 | p95 | p99 | p99.9 | max | errors | core busy | "
            "alone p50 | alone p99",
            map(cells, report["rows"]),
        ),
        "",
        f"Load average before the runs: {min(loads):.1f} to {max(loads):.1f}.",
    ]


def cells(row: dict[str, Any]) -> str:
    times = " | ".join(f"{row[f'p{p}']:.2f}" for p in PERCENTILES)
    own = row["alone"]
    own_times = f"{own['p50']:.2f} | {own['p99']:.2f}" if own else "– | –"
    return (
        f"{row['table']} | {row['question']} | {times} | {row['max']:.2f} | "
        f"{row['failed']} of {row['requests']:,} | {row['busy']:.0%} | {own_times}"
    )


def main() -> None:
    parser = reports.parser(__doc__, quick="a small model, a second a row")
    parser.add_argument("--rate", type=float, help="requests a second")
    parser.add_argument("--seconds", type=float, help="of each row")
    args = parser.parse_args()
    base = QUICK if args.quick else Size()
    size = Size(
        base.users, base.items, base.dim, args.rate or base.rate,
        args.seconds or base.seconds,
    )  # fmt: skip
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(cores[1:]) or set(cores))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            path = Path(folder) / kind
            save(path, artefact(size, kind))
            with Server(path, cores[0]) as server:
                for question, ask in ASKS.items():
                    row = {"table": kind, "question": question}
                    row |= measure(server, ask, size)
                    own = None if ask is health else alone(path, ask, size)
                    rows.append(row | {"alone": own})
    report = {"size": vars(size), "cores": len(cores), "rows": rows}
    reports.save(args.out / "recsys_service.json", report, markdown(report))


if __name__ == "__main__":
    main()
