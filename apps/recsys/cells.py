"""Columns of an Arrow table as arrays: ids as codes, numbers, times.

Nothing is refused here: what makes no sense is marked, and who reads a file says where.
"""

from typing import Any

import numpy as np


def ids(column: Any) -> tuple[np.ndarray, np.ndarray]:
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
    texts = encoded.dictionary.to_numpy(zero_copy_only=False).astype(object)
    empty = np.flatnonzero(texts == "")
    if len(empty):
        codes = np.where(codes == empty[0], np.int32(-1), codes)
    return codes.astype(np.int32, copy=False), texts


def numbers(column: Any) -> tuple[np.ndarray, np.ndarray]:
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


def times(column: Any, per_second: float) -> tuple[np.ndarray, np.ndarray]:
    """[N] float64 seconds since 1970, and [N] bool where there is no time.

    In a column of text, what is no number may be a time in ISO 8601.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_temporal(column.type):
        moments = pc.cast(pc.cast(column, pa.timestamp("us"), safe=False), pa.int64())
        values, wrong = numbers(moments)
        return values / 1e6, wrong
    values, wrong = numbers(column)
    values = values / per_second
    if wrong.any() and _is_text(column.type):
        rows = np.flatnonzero(wrong)
        values[rows] = _moments(column.take(pa.array(rows)))
        wrong[rows] = np.isnan(values[rows])
    return values, wrong


def _moments(column: Any) -> np.ndarray:
    """[N] float64 seconds since 1970 of text in ISO 8601, UTC if it has no zone.

    NaN where it is none.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    for zone in (None, "UTC"):  # fast, if all have the same form
        try:
            moments = pc.cast(column, pa.timestamp("us", zone))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
        return numbers(pc.cast(moments, pa.int64()))[0] / 1e6
    texts = pd.Series(column.to_pylist(), dtype=object)
    texts[~texts.astype(str).str.match(r"\d")] = None  # pandas takes "now" as a time
    found = pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce")
    seconds = (found - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(1, "s")
    return seconds.to_numpy(np.float64)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
