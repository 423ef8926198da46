"""What a packed recommender costs: its file, its memory, the time of a query.

    size = write(path, packed)
    cost = measure(path, history_path)      # {"mb": ..., "ms": ...}, in a new process

The process reads the file with numpy alone and recommends 20 items to one user after
another, known items left out.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from apps.recsys import container
from apps.recsys.ragged import Ragged
from apps.recsys.scoring import FactorScorer, FoldIn, best
from apps.recsys.tables import Table, from_arrays
from sparsekit.memory import peak_rss, restart_peak, rss

if TYPE_CHECKING:
    from apps.recsys.compression.packed import Packed

ROOT = Path(__file__).resolve().parents[3]
QUERIES, SECONDS, K = 200, 10.0, 20  # no more queries after so many seconds


def write(path: Path, packed: "Packed") -> int:
    """Bytes of the file, on disk, that holds the tables and what they are."""
    arrays, about = {}, {}
    for name, table in packed.tables.items():
        arrays |= {f"{name}.{key}": array for key, array in table.arrays().items()}
        about[name] = {
            "kind": table.kind, "shape": list(table.shape),
            "settings": table.settings(),
        }  # fmt: skip
    fold = getattr(packed, "fold_in", None)
    told = {"tables": about}
    if fold is not None:
        told["fold_in"] = {"unseen": fold.unseen, "l2": fold.l2}
    container.write(path, arrays, told)
    return path.stat().st_size


def measure(path: Path, history: Path) -> dict[str, float]:
    """MB (10^6 bytes) of memory beyond that of numpy, and the median ms of a query.

    history: a file of `container` with "offsets" and "items": the users' known items.
    """
    command = [sys.executable, "-m", "apps.recsys.compression.probe"]
    done = subprocess.run(
        [*command, str(path), str(history)], capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode:
        raise RuntimeError(f"measuring {path.name} failed: {done.stderr[-500:]}")
    return json.loads(done.stdout)


def main(arguments: list[str]) -> None:
    """Opens a file and a history, answers queries, prints what that took."""
    restart_peak()
    before = rss()
    history_arrays, _, _ = container.read(arguments[1])
    history = Ragged(history_arrays["offsets"], history_arrays["items"])
    arrays, about, _ = container.read(arguments[0])
    tables = {}
    for name, entry in about["tables"].items():
        prefix = f"{name}."
        own = {
            key.removeprefix(prefix): array
            for key, array in arrays.items()
            if key.startswith(prefix)
        }
        shape = tuple(entry["shape"])
        tables[name] = from_arrays(entry["kind"], shape, own, entry["settings"])
    fold = FoldIn(**about["fold_in"]) if "fold_in" in about else None
    seconds = []
    for user in np.linspace(0, len(history) - 1, QUERIES).astype(int).tolist():
        began = time.perf_counter()
        seen = history[user]
        scores = _scores(tables, fold, user, seen)
        scores[seen] = -np.inf
        best(scores, K)
        seconds.append(time.perf_counter() - began)
        if sum(seconds) > SECONDS:
            break
    megabytes = (peak_rss() - before) / 1e6
    print(json.dumps({"mb": megabytes, "ms": 1e3 * median(seconds)}))


def _scores(
    tables: dict[str, Table], fold: FoldIn | None, user: int, seen: np.ndarray
) -> np.ndarray:
    if "weights" in tables:
        return tables["weights"].total(seen)
    if fold is None:
        vector = tables["users"].rows(np.array([user]))
        return tables["items"].scores(vector)[0]
    return FactorScorer(None, tables["items"], fold).folded(seen)


if __name__ == "__main__":
    main(sys.argv[1:])
