"""Interactions from files: CSV, Parquet, RecBole's atomic files.

    read("ratings.csv")                       # columns user_id, item_id, ...
    read("log.parquet", Columns(user="u", item="sku", timestamp="at", unit="ms"))
    read("ml-100k.inter")                     # with .user and .item beside it

A bad row (missing id, rating or time; not a number; negative time; wrong number of
fields) is an error that names the rows, or with `bad_rows="drop"` left out and counted.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from apps.recsys.diagnosis import BadTable, diagnose, unknown_columns
from apps.recsys.interactions import Interactions, id_order

SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t"}
UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
LATEST = 1e11  # seconds: the year 5138; a larger number counts something smaller
BadRows = Literal["raise", "drop"]


@dataclass(frozen=True)
class Columns:
    """Names of a file's columns; those that are not named are not read.

    rating, timestamp: may be absent under their default names; None to ignore them.
    unit: of numeric timestamps since 1970: s, ms, us or ns. Text in ISO 8601 is
    understood too.
    """

    user: str = "user_id"
    item: str = "item_id"
    rating: str | None = "rating"
    timestamp: str | None = "timestamp"
    unit: str = "s"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"unit must be {', '.join(UNITS)}, got {self.unit!r}")

    def present(self, header: list[str], path: Path) -> dict[str, str]:
        """{"user": its column, ...} of those that the file has."""
        default, found = Columns(), {}
        for role in ("user", "item", "rating", "timestamp"):
            name = getattr(self, role)
            if name is None:
                continue
            if name in header:
                found[role] = name
            elif role in ("user", "item") or name != getattr(default, role):
                raise ValueError(unknown_columns(path, role, name, header))
        return found


def read(
    path: str | Path,
    columns: Columns | None = None,
    *,
    separator: str | None = None,
    encoding: str = "utf-8",
    bad_rows: BadRows = "raise",
) -> Interactions:
    """Interactions of a file; duplicates stay, see `without_duplicates`.

    path: .csv, .tsv, .inter (then .user and .item beside it are side information),
    .parquet. separator: of a text file, default by its suffix. In CSV and TSV an id may
    stand in double quotes and then hold separators.

    Raises ValueError that names file, row and fix; FileNotFoundError.
    """
    path, columns = Path(path), columns or Columns()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if bad_rows not in ("raise", "drop"):
        raise ValueError(f"bad_rows must be raise or drop, got {bad_rows!r}")
    if path.suffix == ".parquet":
        table, dropped = _read_parquet(path, columns), {}
    else:
        if separator is None and path.suffix not in SEPARATORS:
            known = ", ".join((*SEPARATORS, ".parquet"))
            raise ValueError(f"{path}: give its separator, or use a suffix of {known}")
        text = TextFile(path, separator or SEPARATORS[path.suffix], encoding)
        table, dropped = text.read(columns, bad_rows)
    log = _encode(table, path, columns, bad_rows, dropped)
    return _with_tables(log, path) if path.suffix == ".inter" else log


@dataclass(frozen=True)
class TextFile:
    """A text file with a header and one interaction a line."""

    path: Path
    separator: str
    encoding: str

    @property
    def quotes(self) -> bool:
        return self.path.suffix != ".inter"  # atomic files know none

    def header(self) -> list[str]:
        """Names of the columns; without the types that atomic files add."""
        try:
            with open(self.path, encoding=self.encoding, newline="") as file:
                line = file.readline().rstrip("\r\n").removeprefix("\ufeff")
        except UnicodeDecodeError:
            raise ValueError(self._not_decodable()) from None
        if not line:
            raise ValueError(f"{self.path} is empty: it needs a header and rows")
        names = line.split(self.separator)
        if self.quotes:
            names = [name.strip('"') for name in names]
        return [n.split(":")[0] if self.path.suffix == ".inter" else n for n in names]

    def read(self, columns: Columns, bad_rows: BadRows) -> tuple[Any, dict[str, int]]:
        """An Arrow table with columns user, item, rating, timestamp as there are."""
        import pyarrow as pa
        from pyarrow import csv

        header = self.header()
        roles = columns.present(header, self.path)
        dropped: dict[str, int] = {}

        def skip(row: Any) -> str:
            dropped["wrong number of fields"] = (
                dropped.get("wrong number of fields", 0) + 1
            )
            return "skip"

        types = {roles["user"]: pa.string(), roles["item"]: pa.string()}
        for role in ("rating", "timestamp"):
            if role in roles:
                types[roles[role]] = pa.string()
        try:
            table = csv.read_csv(
                self.path,
                read_options=csv.ReadOptions(
                    column_names=header, skip_rows=1, encoding=self.encoding,
                    block_size=1 << 24,
                ),
                parse_options=csv.ParseOptions(
                    delimiter=self.separator,
                    quote_char='"' if self.quotes else False,
                    invalid_row_handler=skip if bad_rows == "drop" else None,
                ),
                convert_options=csv.ConvertOptions(
                    include_columns=list(roles.values()), column_types=types
                ),
            )  # fmt: skip
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            if "codec" in str(error) or "UTF8" in str(error):
                raise ValueError(self._not_decodable()) from None
            raise ValueError(diagnose(self, roles) or f"{self.path}: {error}") from None
        return table.select(list(roles.values())).rename_columns(list(roles)), dropped

    def _not_decodable(self) -> str:
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    line.decode(self.encoding)
                except UnicodeDecodeError as error:
                    byte = line[error.start]
                    return (
                        f"{self.path}, line {number}: byte {byte:#04x} is not "
                        f"{self.encoding}; save it as utf-8, or "
                        "read(..., encoding='latin-1')"
                    )
        return f"{self.path} is not {self.encoding}; save it as utf-8"


def _read_parquet(path: Path, columns: Columns) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        roles = columns.present(parquet.read_schema(path).names, path)
        table = parquet.read_table(path, columns=list(roles.values()))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from None
    return table.select(list(roles.values())).rename_columns(list(roles))


def _encode(
    table: Any, path: Path, columns: Columns, bad_rows: BadRows, dropped: dict[str, int]
) -> Interactions:
    """Columns of the table as numbers; a bad row is refused, or dropped and counted."""
    if table.num_rows == 0:
        raise ValueError(f"{path} has a header but no rows")
    bad = BadTable(path, table.num_rows)
    users, user_ids = _ids(table["user"])
    items, item_ids = _ids(table["item"])
    bad.note(users < 0, "user id is missing")
    bad.note(items < 0, "item id is missing")
    ratings = timestamps = None
    names = table.column_names
    if "rating" in names:
        ratings, wrong = _numbers(table["rating"])
        bad.note(wrong, "rating is missing or no finite number")
    if "timestamp" in names:
        timestamps, wrong = _times(table["timestamp"], UNITS[columns.unit])
        bad.note(wrong, "timestamp is missing, no number and no ISO 8601 time")
        bad.note(timestamps < 0, "timestamp is negative")
        late = timestamps > LATEST
        if late.any():
            raise ValueError(
                f"{path}: timestamp of row {late.argmax() + 1} lies after the year "
                f"5138 if it counts {columns.unit}; say unit='ms', 'us' or 'ns'"
            )
    kept = bad.rows(bad_rows, dropped)
    if kept is not None:
        users, items = users[kept], items[kept]
        ratings = None if ratings is None else ratings[kept]
        timestamps = None if timestamps is None else timestamps[kept]
    users, user_ids = _in_order(users, user_ids)
    items, item_ids = _in_order(items, item_ids)
    if len(user_ids) < 2 or len(item_ids) < 2:
        raise ValueError(
            f"{path} has {len(user_ids)} user(s) and {len(item_ids)} item(s): nothing "
            "to compare; are the columns the right ones?"
        )
    return Interactions(
        name=path.stem,
        users=users,
        items=items,
        user_ids=user_ids,
        item_ids=item_ids,
        ratings=None if ratings is None else ratings.astype(np.float32),
        timestamps=timestamps,
        dropped=dropped,
    )


def _ids(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """Codes [N] int32, -1 where the id is missing or empty, and the ids as text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_floating(column.type):
        whole = pc.cast(column, pa.int64(), safe=False)
        # 7.0 is how pandas writes 7 when a neighbour is missing.
        if pc.all(pc.equal(pc.cast(whole, column.type), column)).as_py():
            column = whole
    if not pa.types.is_string(column.type):
        column = pc.cast(column, pa.string())
    encoded = column.dictionary_encode().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().chunk(0)
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    ids = encoded.dictionary.to_numpy(zero_copy_only=False).astype(object)
    empty = np.flatnonzero(ids == "")
    if len(empty):
        codes = np.where(codes == empty[0], np.int32(-1), codes)
    return codes.astype(np.int32, copy=False), ids


def _in_order(codes: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes in the order of the ids that occur."""
    used = np.flatnonzero(np.bincount(codes, minlength=len(ids)))
    used = used[id_order(ids[used])]
    new = np.full(len(ids), -1, np.int32)
    new[used] = np.arange(len(used), dtype=np.int32)
    return new[codes], ids[used]


def _numbers(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """[N] float64, and [N] bool where there is no finite number."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        values = pc.cast(column, pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        series = pd.Series(column.to_pylist(), dtype=object)
        values = pd.to_numeric(series, errors="coerce").to_numpy(np.float64)
    return values, ~np.isfinite(values)


def _times(column: Any, per_second: float) -> tuple[np.ndarray, np.ndarray]:
    """[N] float64 seconds since 1970, and [N] bool where there is no time."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        values, wrong = _numbers(column)
        if not wrong.all():
            return values / per_second, wrong
        try:
            column = pc.cast(column, pa.timestamp("us"))
        except pa.ArrowInvalid:
            return values, wrong
    if pa.types.is_temporal(column.type):
        moments = pc.cast(pc.cast(column, pa.timestamp("us"), safe=False), pa.int64())
        values, wrong = _numbers(moments)
        return values / 1e6, wrong
    values, wrong = _numbers(column)
    return values / per_second, wrong


def _with_tables(log: Interactions, path: Path) -> Interactions:
    """With the side information of .user and .item files, if they are there."""
    from dataclasses import replace

    tables = {
        f"{kind}_table": side_table(path.with_suffix(f".{kind}"), ids)
        for kind, ids in (("user", log.user_ids), ("item", log.item_ids))
        if path.with_suffix(f".{kind}").is_file()
    }
    return replace(log, **tables)


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
    key = table.columns[0]
    table = table.drop_duplicates(key).set_index(key)
    return table.reindex(ids).rename_axis(key).reset_index()
