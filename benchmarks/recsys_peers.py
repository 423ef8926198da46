"""Recommender libraries beside ours: equal metrics, seconds of an evaluation.

    python -m benchmarks.recsys_peers                  # ML-100k, and Gowalla
    python -m benchmarks.recsys_peers --data ml100k

RecBole, implicit and Cornac are installed with pip, as pinned in benchmarks/peers, into
environments of their own under build/peers. Each runs its own code in a process of its
own; ours and theirs take turns in rounds, and the ratio is the median over rounds.

Evaluation: the same vectors (64 dimensions, from a singular value decomposition), the
same training, validation and test parts, all items ranked for every test user, known
items masked. What a library prepares once (data sets, dictionaries, id maps) is not in
its time. RecBole is measured as shipped (`eval_batch_size` of 4,096 scores, which is
one user a batch beyond 4,096 items) and with the best of the sizes tried.

Gowalla is measured if gowalla_lightgcn.npz is in $SPARSEKIT_DATA. OMP_NUM_THREADS
holds for all; OPENBLAS_NUM_THREADS=1 is set, as implicit asks.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from apps.recsys.data import load
from apps.recsys.evaluation import Evaluation, evaluate
from apps.recsys.metrics import ranking_metrics
from apps.recsys.models.factors import Factors
from apps.recsys.splits import PARTS, Dataset
from apps.recsys.topk import top_k_factors
from benchmarks import reports
from benchmarks.recsys_ranking import normalised_factors
from benchmarks.reports import ROOT, THREADS, save, table

DIM, K = 64, 20
PEERS = ("recbole", "implicit", "cornac")
USERS_A_BATCH = (16, 64, 256)  # that RecBole is tried with
MAP_BY_LEAST = f"map@{K}, divided by min(n, {K}) and not by n"
POOLED = f"hits of all users over the sum of min(n, {K})"
AS_OURS = {
    f"{name}@{K}": f"{name}@{K}"
    for name in ("recall", "ndcg", "mrr", "hit", "precision")
}
THEIRS = {  # {library: {its metric: ours}}
    "RecBole, as shipped": AS_OURS | {f"map@{K}": MAP_BY_LEAST},
    "RecBole, best batch": AS_OURS | {f"map@{K}": MAP_BY_LEAST},
    "implicit": {"ndcg": f"ndcg@{K}", "map": MAP_BY_LEAST, "precision": POOLED},
    "Cornac": {
        "Recall": f"recall@{K}", "NDCG": f"ndcg@{K}",
        "Precision": f"precision@{K}", "HitRatio": f"hit@{K}",
    },
    "Cornac, whole lists": {"MRR": "mrr, whole list", "MAP": "map, whole list"},
}  # fmt: skip
PATIENCE = 60  # seconds; what takes longer is measured once


class Peer:
    """A library's worker, in its own environment, with a case loaded."""

    def __init__(self, name: str, case: Path):
        python = environment(name)
        env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.log = open(case / f"{name}.log", "w")  # noqa: SIM115 (closed in stop)
        self.process = subprocess.Popen(
            [python, "-m", f"benchmarks.peers.{name}", str(case)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
            text=True, env=env, cwd=case,
        )  # fmt: skip

    def ask(self, *call: Any) -> dict[str, Any]:
        """{seconds, cpu, result} of a call of the worker."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(call) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended; why, is in {self.log.name}")
        return json.loads(line)

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def environment(name: str) -> Path:
    """The Python of a library's environment, made on the first call."""
    pins = Path(__file__).parent / "peers" / f"{name}.txt"
    folder = ROOT / "build" / "peers" / name
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    if not stamp.is_file() or stamp.read_text() != pins.read_text():
        print(f"installing {name} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "-r", pins]
        subprocess.run([*pip, "--disable-pip-version-check"], check=True)
        stamp.write_text(pins.read_text())
    return python


@dataclass(frozen=True)
class Case:
    """A data set, vectors to rank by, and a folder with both for the workers."""

    data: Dataset
    model: Factors
    folder: Path


def written(name: str) -> Case:
    """A data set as a case, under build/peers."""
    return write(load(name, seed=0), DIM, ROOT / "build" / "peers" / "cases" / name)


def write(data: Dataset, dim: int, folder: Path) -> Case:
    """The case, in the forms that the libraries read."""
    users, items = normalised_factors(data.known("test"), dim)
    (folder / "atomic").mkdir(parents=True, exist_ok=True)
    pairs = {part: np.stack(data.part(part).nonzero(), 1) for part in PARTS}
    np.savez(folder / "case.npz", users=users, items=items, **pairs)
    for part in PARTS:
        rows = [f"{user}\t{item}\n" for user, item in pairs[part]]
        head = "user_id:token\titem_id:token\n"
        path = folder / "atomic" / f"atomic.{part}.inter"
        path.write_text(head + "".join(rows), "utf-8")
    return Case(data, Factors(users, items), folder)


def measure_evaluation(case: Case, rounds: int) -> dict[str, Any]:
    peers = {name: Peer(name, case.folder) for name in PEERS}
    sizes = batch_sizes(peers["recbole"], case.data.shape[1])
    calls: dict[str, Callable[[], dict[str, Any]]] = {
        "ours": lambda: timed(lambda: evaluate(case.model, case.data, "test", [K])),
        "RecBole, best batch": lambda: peers["recbole"].ask("evaluate", sizes["best"]),
        "implicit": lambda: peers["implicit"].ask("evaluate", K),
        "Cornac": lambda: peers["cornac"].ask("evaluate", K),
        "RecBole, as shipped": lambda: peers["recbole"].ask("evaluate", 4096),
    }
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in calls}
    for _ in range(rounds + 1):  # the first one warms up
        for name, call in calls.items():
            if not answers[name] or answers[name][0]["seconds"] < PATIENCE:
                answers[name].append(call())
    results = {name: found[-1]["result"] for name, found in answers.items()}
    if case.data.shape[1] < 5_000:
        whole = peers["cornac"].ask("whole lists")["result"]
        results["Cornac, whole lists"] = whole
    for peer in peers.values():
        peer.stop()
    return {
        "users": int((np.diff(case.data.test.indptr) > 0).sum()),
        "items": case.data.shape[1],
        "RecBole's users a batch": sizes,
        "times": rows(answers),
        "metrics": equalities(case, results),
    }


def batch_sizes(recbole: Peer, n_items: int) -> dict[str, Any]:
    """`eval_batch_size` to users a batch and seconds, of all tried, and the best."""
    tried = {}
    for size in (4096, *(n_items * users for users in USERS_A_BATCH)):
        users = recbole.ask("prepare", size)["result"]
        seconds = recbole.ask("evaluate", size)["seconds"]
        tried[size] = {"users": users, "seconds": seconds}
    best = min(tried, key=lambda size: tried[size]["seconds"])
    return {"best": best, "tried": tried}


def timed(call: Callable[[], Any]) -> dict[str, Any]:
    began, cpu = time.perf_counter(), time.process_time()
    result = call()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "result": result}


def rows(answers: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Medians over rounds; those of ratios are medians of the rounds' ratios."""
    table = []
    for name, found in answers.items():
        row: dict[str, Any] = {"method": name, "rounds": len(found[1:] or found)}
        for unit in ("seconds", "cpu"):
            taken = [answer[unit] for answer in found[1:] or found]
            ours = [answer[unit] for answer in answers["ours"][1:]]
            row[unit] = median(taken)
            row[f"{unit} to ours"] = median(np.array(taken) / ours[: len(taken)])
        table.append(row)
    return table


def equalities(case: Case, results: dict[str, Any]) -> list[dict[str, Any]]:
    """Their means beside ours of the same vectors, in their definition."""
    ours = means(case, results["ours"], "Cornac, whole lists" in results)
    return [
        {
            "library": library,
            "metric": theirs,
            "theirs": results[library][theirs],
            "ours": ours[definition],
            "definition": definition,
        }
        for library, metrics in THEIRS.items()
        if library in results
        for theirs, definition in metrics.items()
    ]


def means(case: Case, found: Evaluation, whole: bool) -> dict[str, float]:
    """Ours, and ours in the definitions of others. whole: of lists that are not cut."""
    test, values = case.data.test, found.values
    n = np.diff(test.indptr)
    had = n > 0
    n, least = n[had], np.minimum(n, K)[had]
    means = dict(found.means)
    means[MAP_BY_LEAST] = (values[f"map@{K}"][had] * n / least).mean()
    means[POOLED] = (values[f"recall@{K}"][had] * n).sum() / least.sum()
    if whole:
        model, n_items = case.model, case.data.shape[1]
        known = case.data.known("test")
        lists = top_k_factors(model.users, model.items, n_items, known).items
        uncut = ranking_metrics(lists, test, [n_items])
        for name in ("mrr", "map"):
            means[f"{name}, whole list"] = np.nanmean(uncut[f"{name}@{n_items}"])
    return {name: float(value) for name, value in means.items()}


def markdown(report: dict[str, Any]) -> list[str]:
    lines = []
    for name, part in report["evaluation"].items():
        times = (
            f"{row['method']} | {row['seconds']:.4f} | {row['seconds to ours']:.1f} "
            f"| {row['cpu']:.4f} | {row['cpu to ours']:.1f}"
            for row in part["times"]
        )
        equal = (
            f"{row['library']} | {row['metric']} | {row['theirs']:.9f} | "
            f"{row['ours']:.9f} | {abs(row['theirs'] - row['ours']):.0e} | "
            f"{row['definition']}"
            for row in part["metrics"]
        )
        titles = "library | its metric | theirs | ours | difference | ours is"
        lines += [
            f"## {name}: {part['users']:,} users, {part['items']:,} items",
            "",
            *table("method | seconds | times ours | CPU seconds | times ours", times),
            "",
            *table(titles, equal),
            "",
        ]
    return [*lines, f"Threads: {report['threads']}."]


def main() -> None:
    parser = reports.parser(__doc__, rounds=5)
    parser.add_argument("--data", nargs="+", choices=("ml100k", "gowalla"))
    args = parser.parse_args()
    names = args.data or ["ml100k"] + ["gowalla"] * ("SPARSEKIT_DATA" in os.environ)
    report: dict[str, Any] = {
        "threads": THREADS,
        "evaluation": {
            name: measure_evaluation(written(name), args.rounds) for name in names
        },
    }
    save(args.out / "recsys_peers.json", report, markdown(report))


if __name__ == "__main__":
    main()
