"""Files of scores and of subsets, of ours or of anybody's.

scores.parquet    id, score, and if known label, spread, run_0, run_1, ...
subset.csv        id, one line an example that is kept

Both are taken as .parquet or .csv, and are checked before they are used.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sparsekit import atomic

if TYPE_CHECKING:
    import pyarrow as pa

MOST_ROWS = 200_000_000


@dataclass(frozen=True)
class ScoreFile:
    """ids: [N] unique integers or strings; scores: [N] float64, larger = harder,
    infinity allowed; labels: [N] integers or strings, or None."""

    ids: np.ndarray
    scores: Tensor
    labels: np.ndarray | None


def write_scores(
    path: Path, ids: np.ndarray, labels: np.ndarray, per_run: Tensor
) -> None:
    """id, label, score (mean over runs), spread (standard deviation), run_0, ..."""
    import pyarrow as pa
    from pyarrow import parquet

    runs = per_run.double()
    columns: dict[str, np.ndarray] = {"id": ids, "label": labels}
    columns["score"] = runs.mean(0).float().numpy()
    columns["spread"] = _spread(runs)
    columns |= {f"run_{r}": row.numpy() for r, row in enumerate(per_run)}
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer)
    atomic.write_bytes(path, buffer.getvalue())


def _spread(runs: Tensor) -> np.ndarray:
    """NaN for a single run, and where an infinite score leaves none."""
    if len(runs) == 1:
        return np.full(runs.shape[1], np.nan, np.float32)
    return runs.std(0).float().numpy()


def read_scores(path: Path) -> ScoreFile:
    """A score file; columns that nobody asks for are not read.

    Raises FileNotFoundError, and ValueError that names the file and what is wrong:
    no such column, ids that repeat, scores that are no numbers or NaN, no rows.
    """
    path = Path(path)
    try:
        table = _table(path, ("id", "score"), ("label",))
        ids = _ids(table["id"])
        column = table["score"]
        if column.dtype.kind not in "iuf":
            raise ValueError(f"score holds {column.dtype}, not numbers")
        scores = torch.from_numpy(column.astype(np.float64))
        bad = torch.isnan(scores).nonzero()
        if len(bad):
            raise ValueError(
                f"score is NaN or missing in {len(bad)} rows, first that of id "
                f"{ids[int(bad[0])].item()!r}"
            )
        labels = table.get("label")
        if labels is not None and labels.dtype.kind not in "iuU":
            raise ValueError("label must hold integers or text, none missing")
        return ScoreFile(ids, scores, labels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_subset(path: Path, ids: np.ndarray) -> None:
    """CSV with the column id."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["id"])
    writer.writerows([value] for value in ids.tolist())
    atomic.write_text(path, buffer.getvalue())


def read_subset(path: Path, known: Tensor) -> Tensor:
    """Positions [n], sorted, of a subset's ids among `known` [N].

    Raises ValueError for ids that are not among them, as those of another split are.
    """
    path = Path(path)
    try:
        ids = _ids(_table(path, ("id",), ())["id"])
        if ids.dtype.kind not in "iu":
            raise ValueError("id must hold the integers that `score` wrote")
        place = {int(number): i for i, number in enumerate(known.tolist())}
        foreign = [number for number in ids.tolist() if number not in place]
        if foreign:
            raise ValueError(
                f"{len(foreign)} of {len(ids)} ids are no training examples, first "
                f"{foreign[0]}; the seed decides which are: use that of the scores"
            )
        return torch.tensor([place[number] for number in ids.tolist()]).sort().values
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _ids(column: np.ndarray) -> np.ndarray:
    if column.dtype.kind not in "iuU":
        raise ValueError("id must hold integers or text, none missing")
    values, counts = np.unique(column, return_counts=True)
    if len(values) < len(column):
        repeated = values[counts > 1][0].item()
        raise ValueError(f"id {repeated!r} stands in {counts.max()} rows")
    return column


def _table(
    path: Path, required: tuple[str, ...], optional: tuple[str, ...]
) -> Mapping[str, np.ndarray]:
    """Columns as arrays of integers, floats or text; missing values make objects."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    readers = {".parquet": _read_parquet, ".csv": _read_csv}
    if path.suffix not in readers:
        raise ValueError(f"must end in .parquet or .csv, got {path.name!r}")
    table = readers[path.suffix](path, (*required, *optional))
    names = table.column_names
    for name in required:
        if name not in names:
            raise ValueError(f"has no column {name!r}")
    for name in (*required, *optional):
        if names.count(name) > 1:
            raise ValueError(f"has two columns {name!r}")
    if table.num_rows == 0:
        raise ValueError("has no rows")
    found = {}
    for name in (*required, *optional):
        if name in names:
            found[name] = _array(table[name])
    return found


def _array(column: "pa.ChunkedArray") -> np.ndarray:
    array = column.to_numpy()
    if array.dtype.kind == "O" and column.null_count == 0:
        values = array.tolist()
        if all(isinstance(value, str) for value in values):
            return np.array(values, dtype=str)
    return array


def _read_parquet(path: Path, wanted: tuple[str, ...]) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            _require_rows(file.metadata.num_rows)
            names = file.schema_arrow.names
            return file.read([name for name in dict.fromkeys(names) if name in wanted])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not a Parquet file, or a damaged one: {error}") from error


def _read_csv(path: Path, wanted: tuple[str, ...]) -> Any:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    try:
        options = arrow_csv.ConvertOptions(strings_can_be_null=True)
        table = arrow_csv.read_csv(path, convert_options=options)
        _require_rows(table.num_rows)
        return table
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not a CSV file, or a damaged one: {error}") from error


def _require_rows(n_rows: int) -> None:
    if n_rows > MOST_ROWS:
        raise ValueError(f"has {n_rows:,} rows; {MOST_ROWS:,} are allowed")
