"""Scores of a whole data set, averaged over several trainings.

    scores = score([model_a, model_b], dataset, el2n)
    scores.values                     # [N], mean over the models
    scores.write(Path("el2n.parquet"))
    keep = select(scores.values, 0.7)

The data are streamed: of N examples only N numbers a model stay in memory. Under
torch.distributed every rank scores a share and all ranks get all scores.
"""

import csv
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sparsekit.data_pruning.scores import el2n

Function = Callable[[nn.Module, Any, Any], Tensor]


@dataclass(frozen=True)
class Scores:
    """What `score` returns.

    per_run: [R, N] float32, one row a model; ids: [N]; seconds: wall-clock time.
    """

    per_run: Tensor
    ids: np.ndarray
    seconds: float

    @property
    def values(self) -> Tensor:
        """Mean over the models, [N]."""
        return self.per_run.double().mean(0).float()

    @property
    def spread(self) -> Tensor:
        """Standard deviation over the models, [N]; NaN if there is only one.

        The error bar of one model's ranking; divide by sqrt(R) for that of `values`.
        """
        if len(self.per_run) == 1:
            return torch.full_like(self.per_run[0], torch.nan)
        return self.per_run.double().std(0).float()

    def columns(self) -> dict[str, np.ndarray]:
        """id, score, and for several models spread, run_0, run_1, ...; each [N]."""
        found = {"id": self.ids, "score": self.values.numpy()}
        if len(self.per_run) > 1:
            found["spread"] = self.spread.numpy()
            runs = {f"run_{r}": row.numpy() for r, row in enumerate(self.per_run)}
            found.update(runs)
        return found

    def write(self, path: Path | str) -> None:
        """Writes `columns` as .parquet (needs pyarrow) or .csv; whole, or not at all.

        Raises:
            ValueError: for another ending.
            ImportError: for .parquet without pyarrow.
        """
        path = Path(path)
        writers = {".parquet": _write_parquet, ".csv": _write_csv}
        if path.suffix not in writers:
            raise ValueError(f"scores are written as .parquet or .csv, got {path.name}")
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            writers[path.suffix](temporary, self.columns())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def score(
    models: nn.Module | Sequence[nn.Module],
    dataset: Dataset[Any],
    function: Function = el2n,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    ids: Sequence[Any] | np.ndarray | None = None,
    workers: int = 0,
    progress: bool = False,
) -> Scores:
    """The score of every example, for one model or several trainings of it.

    Args:
        models: trained with different seeds; the mean over ten ranks far better than
            one.
        dataset: `dataset[i]` is (x, y), i in 0 ... len(dataset) - 1, without random
            augmentation.
        function: (model, inputs, targets) -> [B], of `scores.py` or yours; bind
            options with `functools.partial`.
        batch_size: examples a forward pass; scores do not depend on it.
        device: where to; the models are moved there. Default: where they are.
        collate: makes a batch (inputs, targets) of a list of examples; torch's default.
        ids: [N] of the examples, unique; default their positions.
        workers: processes that read the data.
        progress: a bar, by tqdm.

    Raises:
        RuntimeError: naming the ids of the examples for which reading, the model, or
            the function failed. Under torch.distributed on all ranks.
        ValueError: for an empty data set, no model, or ids that do not fit.

    >>> data = [(torch.zeros(2), 1), (torch.tensor([2.0, 0.0]), 0)]
    >>> score(nn.Identity(), data, ids=["a", "b"]).values
    tensor([0.7071, 0.1686])
    """
    began = time.perf_counter()
    runs = [models] if isinstance(models, nn.Module) else list(models)
    if not runs:
        raise ValueError("score needs a model, got none")
    names = _names(ids, _length(dataset))
    if device is not None:
        runs = [model.to(device) for model in runs]
    rank, n_ranks = (dist.get_rank(), dist.get_world_size()) if _spread() else (0, 1)
    shard = range(rank, len(names), n_ranks)
    loader = DataLoader(
        _Named(dataset, names, shard),
        batch_size=batch_size,
        collate_fn=collate,
        num_workers=workers,
        generator=torch.Generator(),  # or it would draw from the global one
    )
    per_run = torch.zeros(len(runs), len(names))
    problem = None
    try:
        done = 0
        for x, y in _with_bar(loader, progress):
            where = list(shard[done : done + batch_size])
            for run, model in zip(per_run, runs, strict=True):
                run[where] = _of_batch(function, model, x, y, names[where])
            done += len(where)
    except RuntimeError as error:
        problem = error
    seconds = _gather(per_run, problem, time.perf_counter() - began)
    return Scores(per_run, names, seconds)


class _Named(Dataset[Any]):
    """A shard of the data set, whose errors name the example."""

    def __init__(self, dataset: Dataset[Any], names: np.ndarray, shard: range):
        self.dataset, self.names, self.shard = dataset, names, shard

    def __len__(self) -> int:
        return len(self.shard)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        position = self.shard[i]
        name = self.names[position].item() if len(self.names) else None
        try:
            example = self.dataset[position]
        except Exception as error:
            raise RuntimeError(f"reading example {name!r} failed: {error}") from error
        if not isinstance(example, tuple | list) or len(example) != 2:
            raise RuntimeError(
                f"an example is a pair (x, y), but {name!r} is {type(example).__name__}"
            )
        return example[0], example[1]


def _of_batch(
    function: Function, model: nn.Module, x: Any, y: Any, names: np.ndarray
) -> Tensor:
    """Scores of a batch, [B] on the CPU; an error names the examples."""
    device = next(
        (t.device for t in [*model.parameters(), *model.buffers()]), torch.device("cpu")
    )
    try:
        x, y = _moved(x, device), _moved(y, device)
        return _checked(function(model, x, y), len(names))
    except Exception as error:
        guilty = [
            name
            for i, name in enumerate(names)
            if _fails(function, model, _row(x, i), _row(y, i))
        ] or list(names)
        shown = ", ".join(repr(n.item()) for n in guilty[:10])
        more = f" and {len(guilty) - 10} more" if len(guilty) > 10 else ""
        raise RuntimeError(f"scoring {shown}{more} failed: {error}") from error


def _checked(found: Tensor, n: int) -> Tensor:
    if found.shape != (n,):
        raise ValueError(
            f"a score is one number an example, [{n}], got shape {list(found.shape)}"
        )
    if not torch.isfinite(found).all():
        raise ValueError("the score is NaN or infinite")
    return found.detach().float().cpu()


def _fails(function: Function, model: nn.Module, x: Any, y: Any) -> bool:
    """Whether an example fails by itself."""
    try:
        _checked(function(model, x, y), 1)
    except Exception:
        return True
    return False


def _moved(batch: Any, device: torch.device) -> Any:
    return _map(batch, lambda tensor: tensor.to(device, non_blocking=True))


def _row(batch: Any, i: int) -> Any:
    return _map(batch, lambda tensor: tensor[i : i + 1])


def _map(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: _map(value, change) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(_map(value, change) for value in batch)
    return batch


def _gather(per_run: Tensor, problem: RuntimeError | None, seconds: float) -> float:
    """Adds up the ranks' shards in place; raises on all ranks if one had a problem.

    Adding is exact: every other rank has a zero there. Returns the longest time.
    """
    if not _spread():
        if problem is not None:
            raise problem
        return seconds
    reports: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(reports, (seconds, problem and str(problem)))
    for rank, (_, text) in enumerate(reports):
        if text is not None:
            raise RuntimeError(f"on rank {rank}: {text}") from problem
    on_gpu = dist.get_backend() == "nccl"
    shared = per_run.cuda() if on_gpu else per_run
    dist.all_reduce(shared)
    per_run.copy_(shared)
    return max(seconds for seconds, _ in reports)


def _spread() -> bool:
    return dist.is_available() and dist.is_initialized()


def _length(dataset: Any) -> int:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ValueError(
            "score needs a data set with a length and dataset[i]; a stream has no "
            "examples to come back to: number them and wrap it"
        )
    if len(dataset) == 0:
        raise ValueError("the data set is empty")
    return len(dataset)


def _names(ids: Sequence[Any] | np.ndarray | None, n_examples: int) -> np.ndarray:
    if ids is None:
        return np.arange(n_examples)
    names = np.asarray(ids)
    if names.shape != (n_examples,):
        raise ValueError(
            f"ids are one for each of {n_examples} examples, got shape {names.shape}"
        )
    values, counts = np.unique(names, return_counts=True)
    if len(values) < n_examples:
        raise ValueError(f"ids are unique, but {values[counts > 1][0]!r} comes twice")
    return names


def _with_bar(loader: Iterable[Any], progress: bool) -> Iterable[Any]:
    if not progress:
        return loader
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install tqdm") from error
    return tqdm(loader, desc="score", unit="batch")


def _write_csv(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _write_parquet(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            "a .parquet file needs pyarrow: pip install pyarrow, or write .csv"
        ) from error
    parquet.write_table(pyarrow.table(dict(columns)), path)
