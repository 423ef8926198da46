"""Evaluation of given vectors: `python -m benchmarks.peers.cornac CASE`."""

import sys
from collections import OrderedDict
from pathlib import Path

import scipy.sparse as sp
from cornac.data import Dataset
from cornac.eval_methods.base_method import ranking_eval
from cornac.metrics import MAP, MRR, NDCG, HitRatio, Precision, Recall
from cornac.models import MF

from benchmarks.peers.worker import load, serve


def main() -> None:
    case = load(Path(sys.argv[1]))
    n_users, n_items = case.test.shape
    maps = [OrderedDict((i, i) for i in range(n)) for n in (n_users, n_items)]
    train, test = (
        Dataset.build(triples(part), global_uid_map=maps[0], global_iid_map=maps[1])
        for part in (case.train + case.valid, case.test)
    )
    factors = {"U": case.users, "V": case.items}
    model = MF(
        k=case.users.shape[1], use_bias=False, trainable=False, init_params=factors
    ).fit(train)

    def evaluate(k: int) -> dict[str, float]:
        return named([Recall(k), NDCG(k), Precision(k), HitRatio(k)])

    def whole_lists() -> dict[str, float]:
        return named([MRR(), MAP()])

    def named(metrics: list) -> dict[str, float]:
        means, _ = ranking_eval(model, metrics, train, test)
        names = [type(metric).__name__ for metric in metrics]
        return {name: float(mean) for name, mean in zip(names, means, strict=True)}

    serve({"evaluate": evaluate, "whole lists": whole_lists})


def triples(part: sp.csr_matrix) -> list[tuple[int, int, float]]:
    table = part.tocoo()
    return [(int(u), int(i), 1.0) for u, i in zip(table.row, table.col, strict=True)]


if __name__ == "__main__":
    main()
