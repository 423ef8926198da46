"""Time and memory of loading interactions with text ids, from CSV and from Parquet.

    python -m benchmarks.recsys_load                 # ten million rows
    python -m benchmarks.recsys_load --rows 100000

The rows are made up: users and items drawn from power laws, ids such as "u-00c0ffee",
ratings, times; repeated pairs occur. Each file is read, freed of duplicates and split
in a process of its own; its peak is that of the resident memory of the whole process.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import reports
from benchmarks.reports import save, table
from sparsekit.memory import peak_rss

ROWS = 10_000_000
FORMS = ("csv", "parquet")


def write(folder: Path, rows: int) -> dict[str, Path]:
    """The same table in each form."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    rng = np.random.default_rng(0)
    n_users, n_items = max(rows // 20, 10), max(rows // 100, 10)
    columns = {}
    for name, n in (("user_id", n_users), ("item_id", n_items)):
        # Share of rank r: like 1 / r for items, like 1 / sqrt(r) for users.
        draw = rng.random(rows)
        ranks = n**draw if name == "item_id" else n * draw**2
        ranks = ranks.astype(np.int32)
        ids = pa.array([f"{name[0]}-{i * 2654435761 % 2**32:08x}" for i in range(n)])
        columns[name] = ids.take(pa.array(ranks % n))
    columns["rating"] = pa.array(rng.integers(1, 6, rows), pa.int32())
    columns["timestamp"] = pa.array(rng.integers(1_000_000_000, 1_700_000_000, rows))
    table = pa.table(columns)
    paths = {form: folder / f"log.{form}" for form in FORMS}
    csv.write_csv(table, paths["csv"])
    parquet.write_table(table, paths["parquet"])
    return paths


def measure(path: Path) -> dict[str, float]:
    from apps.recsys.interactions import without_duplicates
    from apps.recsys.reading import read
    from apps.recsys.splits import random_ratio

    began = time.perf_counter()
    log = read(path)
    read_seconds = time.perf_counter() - began
    n_rows = len(log)
    log = without_duplicates(log)
    data = random_ratio(log)
    seconds = time.perf_counter() - began
    peak = peak_rss()
    return {
        "file": path.suffix[1:],
        "file_mb": path.stat().st_size / 1e6,
        "rows": n_rows,
        "users": data.shape[0],
        "items": data.shape[1],
        "pairs": len(log),
        "read_seconds": read_seconds,
        "seconds": seconds,
        "peak_mb": peak / 1e6,
    }


def markdown(rows: list[dict[str, float]]) -> list[str]:
    return table(
        "file | MB | rows | users x items | read, s | with duplicates and split, s "
        "| peak of the process, MB",
        (
            f"{row['file']} | {row['file_mb']:.0f} | {row['rows']:,} | "
            f"{row['users']:,} x {row['items']:,} | {row['read_seconds']:.1f} | "
            f"{row['seconds']:.1f} | {row['peak_mb']:,.0f}"
            for row in rows
        ),
    )


def main() -> None:
    parser = reports.parser(__doc__, rows=ROWS)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(measure(args.one)))
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = write(Path(folder), args.rows).values()
        rows = [reports.fresh("recsys_load", "--one", path) for path in paths]
    save(args.out / "recsys_load.json", rows, markdown(rows))


if __name__ == "__main__":
    main()
