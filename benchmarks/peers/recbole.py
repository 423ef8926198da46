"""RecBole's evaluation and its LightGCN: `python -m benchmarks.peers.recbole CASE`.

RecBole 1.2.1 was written for older versions of numpy and scipy, and asks for ray, which
it needs only to search for hyperparameters. Below it gets the names that were dropped,
an empty ray, and leave to load its own checkpoints, which torch refuses since 2.6.
"""

import os
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
sys.modules["ray"] = types.ModuleType("ray")
sys.modules["ray"].tune = types.ModuleType("ray.tune")  # type: ignore[attr-defined]
for name, now in (
    ("float_", "float64"),
    ("complex_", "complex128"),
    ("unicode_", "str_"),
):
    setattr(np, name, getattr(np, now))
sp.dok_matrix._update = lambda matrix, entries: matrix._dict.update(entries)

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.model.general_recommender import BPR, LightGCN  # noqa: E402
from recbole.trainer import Trainer  # noqa: E402
from recbole.utils import init_seed  # noqa: E402

from benchmarks.peers.worker import load, serve  # noqa: E402

METRICS = ["Recall", "NDCG", "MRR", "Hit", "Precision", "MAP"]


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """RecBole's defaults but for what is read, measured and printed."""
    return {
        "data_path": str(folder),
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": {"inter": ["user_id", "item_id"]},
        "metrics": METRICS,
        "topk": [10, 20],
        "valid_metric": "NDCG@20",
        "metric_decimal_place": 12,
        "checkpoint_dir": str(folder / "saved"),
        "show_progress": False,
        "use_gpu": False,
        "state": "ERROR",
    } | changes


def prepared(folder: Path, model: str, **changes: Any) -> tuple[Config, Any, tuple]:
    config = Config(model, "atomic", config_dict=settings(folder, **changes))
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    return config, dataset, data_preparation(config, dataset)


class Evaluation:
    """Its BPR with given vectors, ranked by its own evaluation."""

    def __init__(self, folder: Path):
        self.folder, self.case = folder, load(folder)
        self.ready: dict[int, tuple[Any, Any]] = {}

    def prepare(self, batch: int) -> int:
        """Users a batch, for its setting `eval_batch_size` in interactions."""
        changes = {"embedding_size": self.case.users.shape[1], "eval_batch_size": batch}
        config, dataset, loaders = prepared(self.folder, "BPR", **changes)
        model = BPR(config, loaders[0].dataset)
        with torch.no_grad():
            for table, vectors, field in (
                (model.user_embedding.weight, self.case.users, dataset.uid_field),
                (model.item_embedding.weight, self.case.items, dataset.iid_field),
            ):
                tokens = [str(index) for index in range(len(vectors))]
                ids = dataset.token2id(field, tokens)
                table[torch.from_numpy(ids)] = torch.from_numpy(vectors)
        self.ready[batch] = Trainer(config, model), loaders[2]
        return loaders[2].step

    def evaluate(self, batch: int) -> dict[str, float]:
        trainer, loader = self.ready[batch]
        result = trainer.evaluate(loader, load_best_model=False)
        return {name: float(value) for name, value in result.items()}


class Training:
    """Its LightGCN, trained and tested by its own trainer."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.running: tuple[Trainer, Any] | None = None

    def start(self, **changes: Any) -> tuple[Trainer, tuple]:
        config, _, loaders = prepared(self.folder, "LightGCN", **changes)
        return Trainer(config, LightGCN(config, loaders[0].dataset)), loaders

    def epochs(self, n: int, changes: dict[str, Any]) -> list[float]:
        """Seconds of each of n epochs, without validations."""
        if self.running is None:
            trainer, loaders = self.start(**changes)
            self.running = trainer, loaders[0]
        trainer, loader = self.running
        seconds = []
        for epoch in range(n):
            began = time.perf_counter()
            trainer._train_epoch(loader, epoch)
            seconds.append(time.perf_counter() - began)
        return seconds

    def train(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Until the validation metric stops rising; then the best epoch is tested."""
        trainer, (train, valid, test) = self.start(**changes)
        score, _ = trainer.fit(train, valid, saved=True, show_progress=False)
        result = trainer.evaluate(test, load_best_model=True)
        return {
            "valid": float(score),
            "test": {name: float(value) for name, value in result.items()},
        }


def main() -> None:
    folder = Path(sys.argv[1])
    evaluation, training = Evaluation(folder), Training(folder)
    serve(
        {
            "prepare": evaluation.prepare,
            "evaluate": evaluation.evaluate,
            "epochs": training.epochs,
            "train": training.train,
        }
    )


if __name__ == "__main__":
    main()
