"""Which records are whose: a CSV or Parquet file with the columns subject and record.

    subject,record
    c-1041,17
    c-1041,18

A record is named by its index in the data set, from 0, as in every file of ids of this
app. Other columns are not read, so names and addresses do not enter the ledger.
"""

import csv
import hmac
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path

LONGEST = 200
COLUMNS = ("subject", "record")
FORMATS = (".csv", ".parquet")


def read_mapping(path: Path, n_records: int) -> list[tuple[str, int]]:
    """(subject, record) pairs. n_records: how many records the data set has.

    Raises FileNotFoundError, and ValueError that names the row (of a CSV file: the
    line) and what is wrong with it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if path.suffix not in FORMATS:
        raise ValueError(f"must end in .csv or .parquet, got {path.name!r}")
    try:
        rows = _csv(path) if path.suffix == ".csv" else _parquet(path)
        return _pairs(rows, n_records, "line" if path.suffix == ".csv" else "row")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def hashed(subject: str, salt: bytes | None) -> str:
    """The opaque id that the ledger keeps: HMAC-SHA256 in hex, or as given.

    >>> hashed("c-1041", b"salt")[:16]
    'd8e19df0599a4380'
    """
    if salt is None:
        return subject
    return hmac.new(salt, subject.encode("utf-8"), sha256).hexdigest()


def require_subject(subject: object) -> str:
    """ValueError unless it is a short text without control characters."""
    if not isinstance(subject, str) or not subject.strip():
        raise ValueError("subject is empty")
    if len(subject) > LONGEST:
        raise ValueError(f"subject has {len(subject)} characters; {LONGEST} are most")
    if not subject.isprintable():
        raise ValueError("subject holds control characters")
    return subject


def _pairs(
    rows: Iterable[tuple[int, object, object]], n_records: int, word: str
) -> list[tuple[str, int]]:
    seen: dict[tuple[str, int], int] = {}
    for number, subject, record in rows:
        try:
            pair = require_subject(subject), _index(record, n_records)
        except ValueError as error:
            raise ValueError(f"{word} {number}: {error}") from None
        if pair in seen:
            raise ValueError(f"{word} {number} repeats {word} {seen[pair]}")
        seen[pair] = number
    if not seen:
        raise ValueError("has no rows")
    return list(seen)


def _index(record: object, n_records: int) -> int:
    text = record if isinstance(record, str) else ""
    if isinstance(record, int) and not isinstance(record, bool):
        index = record
    elif text.isascii() and text.isdigit() and len(text) < 19:
        index = int(text)
    else:
        raise ValueError(f"record {record!r:.40} is no index 0, 1, 2, ...")
    if not 0 <= index < n_records:
        raise ValueError(f"record {index} is not among the {n_records:,} of the data")
    return index


def _csv(path: Path) -> Iterator[tuple[int, object, object]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            places = _places(next(reader, []))
            for row in reader:
                if not row:
                    continue
                if len(row) <= max(places):
                    raise ValueError(f"line {reader.line_num} has {len(row)} fields")
                yield reader.line_num, row[places[0]], row[places[1]]
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None


def _parquet(path: Path) -> Iterator[tuple[int, object, object]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            _places(file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(columns=list(COLUMNS)):
                columns = (batch.column(name).to_pylist() for name in COLUMNS)
                for subject, record in zip(*columns, strict=True):
                    number += 1
                    whole = isinstance(subject, int) and not isinstance(subject, bool)
                    yield number, str(subject) if whole else subject, record
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not a Parquet file, or a damaged one: {error}") from error


def _places(header: list[str]) -> tuple[int, int]:
    for name in COLUMNS:
        if header.count(name) != 1:
            raise ValueError(
                f"needs one column {name!r}, has {header.count(name)}; its first line "
                f"names {', '.join(map(repr, header))[:100] or 'nothing'}"
            )
    return header.index("subject"), header.index("record")
