"""LightGCN on ML-100k, ours and RecBole's: seconds an epoch, and what it reaches.

    python -m benchmarks.recsys_peers_training              # epochs alone, a minute
    python -m benchmarks.recsys_peers_training --tune       # and quality, half an hour

Both: 64 dimensions, 2 layers, 2,048 pairs a step, one negative a pair, the same split.
An epoch is timed without validations, three in a row, in turns. With `--tune` both are
tuned with the same budget: twelve trials, the same learning rates and three weights of
the penalty each, the shipped one among them, chosen by validation NDCG@20; a validation
every five epochs, an end after ten of them without a better one, the best epoch tested.
The chosen settings are trained anew with every seed. RecBole's environment is that of
`recsys_peers`.
"""

from dataclasses import replace
from itertools import product
from statistics import median
from typing import Any

import numpy as np

from apps.common.statistics import mean_interval, paired_interval
from apps.common.tables import shown
from apps.recsys.config import Config
from apps.recsys.train import train
from benchmarks import reports
from benchmarks.recsys_peers import Peer, written
from benchmarks.reports import THREADS, save, table

RATES = (0.001, 0.002, 0.005, 0.01)
# Shipped, and larger. RecBole's is the norm of a batch's vectors, not squared, over the
# batch's size: it takes far larger weights to matter.
PENALTIES = {"ours": (1e-4, 1e-3, 1e-2), "RecBole": (1e-5, 1e-2, 1.0)}
EPOCHS, METRIC = 300, "ndcg@10"
OURS = Config(layers=2, batch=2048, epochs=EPOCHS, every=5, patience=10)
THEIRS = {"epochs": EPOCHS, "eval_step": 5, "stopping_step": 10, "n_layers": 2}
BEST_BATCH = {"eval_batch_size": 2**18}  # its evaluation is not what is timed here


def speed(peer: Peer, rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"ours": [], "RecBole": []}
    for _ in range(rounds + 1):  # the first one warms up
        history = train(Config(layers=2, batch=2048, epochs=3, every=3)).history
        seconds["ours"].append(median(row["seconds"] for row in history))
        theirs = peer.ask("epochs", 3, {"n_layers": 2})["result"]
        seconds["RecBole"].append(median(theirs))
    ours, theirs = (np.array(taken[1:]) for taken in seconds.values())
    return {
        "ours": median(ours),
        "RecBole": median(theirs),
        "times ours": median(theirs / ours),
    }


def trained(peer: Peer, who: str, lr: float, l2: float, seed: int) -> dict[str, float]:
    """{valid: NDCG@20, test: NDCG@10} of one training."""
    if who == "ours":
        result = train(replace(OURS, lr=lr, l2=l2, seed=seed))
        valid = max(row["ndcg@20"] for row in result.history if "ndcg@20" in row)
        return {"valid": valid, "test": result.metrics[METRIC].value}
    changes = {"learning_rate": lr, "reg_weight": l2, "seed": 2020 + seed}
    answer = peer.ask("train", THEIRS | BEST_BATCH | changes)["result"]
    return {"valid": answer["valid"], "test": answer["test"][METRIC]}


def quality(peer: Peer, seeds: int) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for who, penalties in PENALTIES.items():
        tries = [
            {"lr": lr, "l2": l2} | trained(peer, who, lr, l2, 0)
            for lr, l2 in product(RATES, penalties)
        ]
        best = max(tries, key=lambda row: row["valid"])
        tests = [best["test"]]
        tests += [
            trained(peer, who, best["lr"], best["l2"], seed)["test"]
            for seed in range(1, seeds)
        ]
        report[who] = {"tries": tries, "best": best, "tests": tests}
        print(who, best, tests, flush=True)
    return report


def markdown(report: dict[str, Any]) -> list[str]:
    times = report["seconds an epoch"]
    found, rows = report.get("quality"), []
    for who in PENALTIES:
        row = f"{who} | {times[who]:.3f} | "
        if found:
            best = found[who]["best"]
            interval = mean_interval(found[who]["tests"])
            row += f"{best['lr']}, {best['l2']} | {shown(interval, 4)}"
        else:
            row += "|"
        rows.append(row)
    lines = table(
        "library | seconds an epoch | chosen lr, penalty | test NDCG@10", rows
    )
    lines += ["", f"RecBole's epoch takes {times['times ours']:.1f} times as long."]
    if found:
        gap = paired_interval(*(found[who]["tests"] for who in PENALTIES))
        lines += [f"NDCG@10, ours - RecBole: {shown(gap, 4, sign=True)}, over seeds."]
    return [*lines, f"Threads: {report['threads']}."]


def main() -> None:
    parser = reports.parser(__doc__, rounds=5, seeds=5)
    parser.add_argument("--tune", action="store_true", help="quality too: 32 trainings")
    args = parser.parse_args()
    peer = Peer("recbole", written("ml100k").folder)
    report: dict[str, Any] = {
        "threads": THREADS,
        "seconds an epoch": speed(peer, args.rounds),
    }
    if args.tune:
        report["quality"] = quality(peer, args.seeds)
    peer.stop()
    save(args.out / "recsys_peers_training.json", report, markdown(report))


if __name__ == "__main__":
    main()
