"""Evaluation of given vectors: `python -m benchmarks.peers.implicit CASE`."""

import os
import sys
from pathlib import Path

from implicit.cpu.als import AlternatingLeastSquares
from implicit.evaluation import ranking_metrics_at_k

from benchmarks.peers.worker import load, serve

THREADS = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def main() -> None:
    case = load(Path(sys.argv[1]))
    model = AlternatingLeastSquares(factors=case.users.shape[1], num_threads=THREADS)
    model.user_factors, model.item_factors = case.users, case.items
    known = case.train + case.valid

    def evaluate(k: int) -> dict[str, float]:
        return ranking_metrics_at_k(
            model, known, case.test, K=k, show_progress=False, num_threads=THREADS
        )

    serve({"evaluate": evaluate})


if __name__ == "__main__":
    main()
