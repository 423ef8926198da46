"""What is known about users and items beside who did what: titles, categories, texts.

    side_table("ml-100k.item", log.item_ids)           # of an atomic file
    catalogue("items.csv", log.item_ids, key="sku")    # of a file of your own

A side table is a pandas table with a row for each id, in their order; its first column
are the ids. Text of others: whoever shows it escapes it.
"""

from pathlib import Path
from typing import Any

import numpy as np

from apps.recsys.diagnosis import SHOWN, unknown_columns
from sparsekit.spelling import meant

SEPARATORS = {".csv": ",", ".tsv": "\t"}


def side_table(source: Any, ids: np.ndarray) -> Any:
    """An atomic file's table with a row for each of `ids`; first column: the id.

    source: path or open file. Tokens stay text ("07001" is a zip code), floats become
    numbers. Ids that the file lacks have missing values; of a repeated id the first row
    counts.
    """
    import pandas as pd

    table = pd.read_csv(source, sep="\t", dtype=str, quoting=3, keep_default_na=False)
    for column in list(table.columns):
        name, _, kind = column.partition(":")
        if kind == "float":
            table[column] = pd.to_numeric(table[column], errors="coerce")
        table = table.rename(columns={column: name})
    return _rows_of(table, table.columns[0], ids)


def catalogue(
    path: str | Path,
    ids: np.ndarray,
    *,
    key: str = "item_id",
    encoding: str = "utf-8",
) -> Any:
    """The table of a file of items, a row for each of `ids`; first column: the id.

    path: .csv, .tsv (also as .gz) or .parquet; more items than `ids`, and other
    columns, are welcome: a log that repeats each item's title will do. key: the column
    of the ids. A column of whole numbers stays text, as a category may be; one of other
    numbers becomes numbers. Ids that the file lacks have missing values; of a repeated
    id the first row counts.

    Raises ValueError for a file that is no table, without that column, or that has none
    of the ids; FileNotFoundError.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    table = _read(path, encoding)
    if key not in table.columns:
        raise ValueError(unknown_columns(path, "item", key, list(table.columns)))
    table = table[[key, *(column for column in table.columns if column != key)]]
    found = _rows_of(table, key, ids)
    known = int(np.isin(ids.astype(str), table[key].to_numpy(str)).sum())
    if not known:
        some, theirs = ", ".join(ids[:SHOWN]), ", ".join(table[key][:SHOWN].astype(str))
        raise ValueError(
            f"{path}: its column {key!r} has none of the items of the interactions: "
            f"{theirs}, ... there, {some}, ... here"
        )
    for column in found.columns[1:]:
        found[column] = _numbers(found[column])
    return found


def _read(path: Path, encoding: str) -> Any:
    """A file as a pandas table of text; missing cells are empty."""
    import pandas as pd

    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        try:
            # 7.0 is how pandas writes 7 when a neighbour is missing.
            table = parquet.read_table(path).to_pandas().convert_dtypes()
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} is no Parquet file: {error}") from None
        return table.astype(object).where(table.notna(), "").astype(str)
    if suffix not in SEPARATORS:
        near = meant(suffix, [*SEPARATORS, ".parquet"])
        hint = f"; did you mean {near}?" if near else ""
        raise ValueError(f"{path}: a catalogue is .csv, .tsv or .parquet{hint}")
    try:
        return pd.read_csv(
            path, sep=SEPARATORS[suffix], dtype=str, keep_default_na=False,
            encoding="utf-8-sig" if encoding == "utf-8" else encoding,
        )  # fmt: skip
    except (ValueError, EOFError) as error:  # pandas' errors are ValueErrors
        raise ValueError(f"{path}: {error}") from None


def _numbers(column: Any) -> Any:
    """Numbers, if all cells that are not missing are, and one is not whole."""
    import pandas as pd

    texts = column.fillna("").astype(str)
    values = pd.to_numeric(texts.where(texts != ""), errors="coerce")
    if values.isna().sum() > (texts == "").sum() or not (values % 1 > 0).any():
        return column
    return values


def _rows_of(table: Any, key: str, ids: np.ndarray) -> Any:
    table = table.drop_duplicates(key).set_index(key)
    return table.reindex(ids).rename_axis(key).reset_index()
