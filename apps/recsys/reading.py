"""Interactions from files: CSV, Parquet, RecBole's atomic files.

    read("ratings.csv")                       # columns user_id, item_id, ...
    read("log.parquet", Columns(user="u", item="sku", timestamp="at", unit="ms"))
    read("shop.csv.gz", where={"event": "buy,cart"})
    read("ml-100k.inter")                     # with .user and .item beside it

A bad row (missing id, rating or time; not a number; negative time; wrong number of
fields) is an error that names the rows, or with `bad_rows="drop"` left out and counted.
"""

import codecs
import csv
import gzip
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from apps.recsys.cells import ids, numbers, times
from apps.recsys.diagnosis import BadTable, diagnose, unknown_columns
from apps.recsys.interactions import Interactions, id_order
from apps.recsys.side_tables import catalogue as catalogue_of
from apps.recsys.side_tables import side_table
from sparsekit.spelling import choice

SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t"}
UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
LATEST = 1e11  # seconds: the year 5138; a larger number counts something smaller
BadRows = Literal["raise", "drop"]


@dataclass(frozen=True)
class Columns:
    """Names of a file's columns; those that are not named are not read.

    rating, timestamp: may be absent under their default names; None to ignore them.
    unit: of numeric timestamps since 1970: s, ms, us or ns. Text in ISO 8601 is
    understood too; without a zone it is UTC.
    """

    user: str = "user_id"
    item: str = "item_id"
    rating: str | None = "rating"
    timestamp: str | None = "timestamp"
    unit: str = "s"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"unit must be {', '.join(UNITS)}, got {self.unit!r}")

    def present(
        self, header: list[str], path: Path, others: Mapping[str, str]
    ) -> dict[str, str]:
        """{"user": its column, ...} of those that the file has; `others` too."""
        for name in others:
            if name not in header:
                raise ValueError(choice(f"{path} has no column {name!r}", name, header))
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
    where: Mapping[str, str] | None = None,
    catalogue: str | Path | None = None,
) -> Interactions:
    """Interactions of a file; duplicates stay, see `without_duplicates`.

    path: .csv, .tsv, .inter (then .user and .item beside it are side information), each
    also as .gz; .parquet. separator: of a text file, default by its suffix. In CSV and
    TSV an id may stand in double quotes and then hold separators. where: {column: value
    or values, with commas between}, which rows count; the others may be as bad as they
    like. catalogue: a file of the items (see `side_tables`); its ids are in the column
    that has the same name as that of the interactions.

    Raises ValueError that names file, row and fix; FileNotFoundError.
    """
    path, columns = Path(path), columns or Columns()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if bad_rows not in ("raise", "drop"):
        raise ValueError(f"bad_rows must be raise or drop, got {bad_rows!r}")
    where = dict(where or {})
    if path.suffix == ".parquet":
        table, dropped = _read_parquet(path, columns, where), {}
    else:
        table, dropped = text_file(path, separator, encoding).read(
            columns, where, bad_rows
        )
    log = _encode(table, path, columns, where, bad_rows, dropped)
    if catalogue is not None:
        items = catalogue_of(
            catalogue, log.item_ids, key=columns.item, encoding=encoding
        )
        return replace(log, item_table=items)
    return _with_tables(log, path) if _suffix(path) == ".inter" else log


def text_file(path: Path, separator: str | None, encoding: str) -> "TextFile":
    """The file, its separator by its suffix if none is given."""
    if separator is None and _suffix(path) not in SEPARATORS:
        known = ", ".join((*SEPARATORS, ".parquet"))
        raise ValueError(f"{path}: give its separator, or use a suffix of {known}")
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise ValueError(f"no encoding {encoding!r}; try utf-8 or cp1252") from None
    return TextFile(path, separator or SEPARATORS[_suffix(path)], encoding)


def _suffix(path: Path) -> str:
    """Of what is in the file: .csv for clicks.csv and clicks.csv.gz."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


@dataclass(frozen=True)
class TextFile:
    """A text file with a header and one interaction a line."""

    path: Path
    separator: str
    encoding: str

    @property
    def quotes(self) -> bool:
        return _suffix(self.path) != ".inter"  # atomic files know none

    def lines(self) -> IO[str]:
        """The open file, unpacked if it is packed."""
        opened = gzip.open if self.path.suffix == ".gz" else open
        return opened(self.path, "rt", encoding=self.encoding, newline="")

    def header(self) -> list[str]:
        """Names of the columns; without the types that atomic files add."""
        try:
            with self.lines() as file:
                line = file.readline().rstrip("\r\n").removeprefix("\ufeff")
        except UnicodeDecodeError:
            raise ValueError(self._not_decodable()) from None
        except (EOFError, gzip.BadGzipFile) as error:
            raise ValueError(f"{self.path}: {error}") from None
        if not line:
            raise ValueError(f"{self.path} is empty: it needs a header and rows")
        if self.quotes:
            return next(csv.reader([line], delimiter=self.separator))
        return [name.split(":")[0] for name in line.split(self.separator)]

    def read(
        self, columns: Columns, where: Mapping[str, str], bad_rows: BadRows
    ) -> tuple[Any, dict[str, int]]:
        """An Arrow table with columns user, item, rating, timestamp as there are.

        The columns of `where` are there under names of `_condition`.
        """
        import pyarrow as pa
        from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions, read_csv

        header = self.header()
        roles = columns.present(header, self.path, where)
        dropped: dict[str, int] = {}

        def skip(row: Any) -> str:
            dropped["wrong number of fields"] = (
                dropped.get("wrong number of fields", 0) + 1
            )
            return "skip"

        needed = list(dict.fromkeys([*roles.values(), *where]))
        try:
            table = read_csv(
                self.path,
                read_options=ReadOptions(
                    column_names=header, skip_rows=1, encoding=self.encoding,
                    block_size=1 << 24,
                ),
                parse_options=ParseOptions(
                    delimiter=self.separator,
                    quote_char='"' if self.quotes else False,
                    invalid_row_handler=skip if bad_rows == "drop" else None,
                ),
                convert_options=ConvertOptions(
                    include_columns=needed,
                    column_types=dict.fromkeys(needed, pa.string()),
                ),
            )  # fmt: skip
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            if "codec" in str(error) or "UTF8" in str(error):
                raise ValueError(self._not_decodable()) from None
            raise ValueError(diagnose(self) or f"{self.path}: {error}") from None
        except OSError as error:  # a packed file that is cut off
            raise ValueError(f"{self.path}: {error}") from None
        return _by_role(table, roles, where), dropped

    def _not_decodable(self) -> str:
        opened = gzip.open if self.path.suffix == ".gz" else open
        with opened(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    line.decode(self.encoding)
                except UnicodeDecodeError as error:
                    byte = line[error.start]
                    return (
                        f"{self.path}, line {number}: byte {byte:#04x} is not "
                        f"{self.encoding}; save it as utf-8, or say which it is: "
                        "encoding='latin-1' (--encoding latin-1)"
                    )
        return f"{self.path} is not {self.encoding}; save it as utf-8"


def _read_parquet(path: Path, columns: Columns, where: Mapping[str, str]) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        roles = columns.present(parquet.read_schema(path).names, path, where)
        needed = list(dict.fromkeys([*roles.values(), *where]))
        table = parquet.read_table(path, columns=needed)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from None
    return _by_role(table, roles, where)


def _by_role(table: Any, roles: Mapping[str, str], where: Mapping[str, str]) -> Any:
    """Columns named by what they are for; a column may be for several things."""
    import pyarrow as pa

    names = {**roles, **{_condition(name): name for name in where}}
    return pa.table({role: table[name] for role, name in names.items()})


def _condition(column: str) -> str:
    return f"where {column}"


def _meeting(
    table: Any, path: Path, where: Mapping[str, str], dropped: dict[str, int]
) -> np.ndarray:
    """[N] bool: the rows that meet every condition; the others are counted."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = np.ones(table.num_rows, bool)
    for name, values in where.items():
        column = pc.cast(table[_condition(name)], pa.string())
        listed = [value.strip() for value in values.split(",")]
        met = pc.is_in(column, pa.array(listed)).to_numpy()
        if not met.any():
            there = [v for v in pc.unique(column).to_pylist()[:1000] if v is not None]
            refused = f"{path}: no row has {name} {values!r}"
            raise ValueError(choice(refused, values, there[:10]))
        others = int((wanted & ~met).sum())
        if others:
            dropped[f"{name} is not {' or '.join(listed)}"] = others
        wanted &= met
    if not wanted.any():
        raise ValueError(f"{path}: no row meets all of where")
    return wanted


def _encode(
    table: Any,
    path: Path,
    columns: Columns,
    where: Mapping[str, str],
    bad_rows: BadRows,
    dropped: dict[str, int],
) -> Interactions:
    """Columns of the table as numbers; a bad row is refused, or dropped and counted."""
    if table.num_rows == 0:
        raise ValueError(f"{path} has a header but no rows")
    bad = BadTable(path, _meeting(table, path, where, dropped))
    users, user_ids = ids(table["user"])
    items, item_ids = ids(table["item"])
    bad.note(users < 0, "user id is missing")
    bad.note(items < 0, "item id is missing")
    ratings = timestamps = None
    names = table.column_names
    if "rating" in names:
        ratings, wrong = numbers(table["rating"])
        bad.note(wrong, "rating is missing or no finite number")
    if "timestamp" in names:
        timestamps, wrong = times(table["timestamp"], UNITS[columns.unit])
        bad.note(wrong, "timestamp is missing, no number and no ISO 8601 time")
        bad.note(timestamps < 0, "timestamp is negative")
        late = (timestamps > LATEST) & bad.wanted
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
    return Interactions(
        name=path.name.removesuffix(".gz").removesuffix(_suffix(path)),
        users=users,
        items=items,
        user_ids=user_ids,
        item_ids=item_ids,
        ratings=None if ratings is None else ratings.astype(np.float32),
        timestamps=timestamps,
        dropped=dropped,
    )


def _in_order(codes: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes in the order of the ids that occur."""
    used = np.flatnonzero(np.bincount(codes, minlength=len(ids)))
    used = used[id_order(ids[used])]
    new = np.full(len(ids), -1, np.int32)
    new[used] = np.arange(len(used), dtype=np.int32)
    return new[codes], ids[used]


def _with_tables(log: Interactions, path: Path) -> Interactions:
    """With the side information of .user and .item files, if they are there."""
    bare = path.with_suffix("") if path.suffix == ".gz" else path
    tables = {
        f"{kind}_table": side_table(bare.with_suffix(f".{kind}"), ids)
        for kind, ids in (("user", log.user_ids), ("item", log.item_ids))
        if bare.with_suffix(f".{kind}").is_file()
    }
    return replace(log, **tables)
