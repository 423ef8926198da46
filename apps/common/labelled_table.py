"""A table of numbers with a class for each row: .csv or .parquet.

    age,height,label
    31,1.7,yes
    28,1.6,no

The column called y, label, class or target holds the classes, all others are inputs, in
their order. Row 0 is the first below the header.
"""

from pathlib import Path
from typing import Any

import numpy as np

LABELS = ("y", "label", "class", "target")
SUFFIXES = (".csv", ".parquet")


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """x: [N, D] float64; y: [N] integers or text.

    Raises FileNotFoundError, and ValueError that names the column and the fix.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        return _arrays(_table(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _table(path: Path) -> Any:
    import pandas as pd
    import pyarrow as pa

    if path.suffix == ".csv":
        return pd.read_csv(path, encoding="utf-8-sig", low_memory=False)
    try:
        return pd.read_parquet(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not a Parquet file, or a damaged one: {error}") from None


def _arrays(table: Any) -> tuple[np.ndarray, np.ndarray]:
    from pandas.api import types

    names = [str(column) for column in table.columns]
    labels = [i for i, name in enumerate(names) if name.lower() in LABELS]
    if len(labels) != 1:
        raise ValueError(
            f"needs one column of classes, called {', '.join(LABELS[:-1])} or "
            f"{LABELS[-1]}; it has {', '.join(names)[:200]}"
        )
    for i, name in enumerate(names):
        column = table.iloc[:, i]
        if name.startswith("Unnamed: "):
            raise ValueError(
                f"column {i + 1} has no name; if it numbers the rows, leave it out: "
                "to_csv(path, index=False)"
            )
        if column.isna().any():
            row = int(column.isna().to_numpy().argmax())
            raise ValueError(f"column {name!r} is empty in row {row}")
        if i not in labels and not types.is_numeric_dtype(column):
            raise ValueError(
                f"column {name!r} holds {str(column.iloc[0])[:40]!r}, which is no "
                "number: leave it out, or give it as numbers"
            )
    y = table.iloc[:, labels[0]]
    inputs = [i for i in range(len(names)) if i not in labels]
    if not inputs:
        raise ValueError("has no column of inputs")
    kept = types.is_integer_dtype(y) or types.is_bool_dtype(y)
    x = table.iloc[:, inputs].to_numpy(np.float64)
    return x, y.to_numpy() if kept else y.astype(str).to_numpy(str)
