"""Memory of scoring a data set: flat in N, but for the scores themselves.

    python -m benchmarks.streamed_scores                  # up to a million examples
    python -m benchmarks.streamed_scores --sizes 1000 10000

Examples are made when they are asked for, so that only what `score` keeps can grow. A
size is scored in a process of its own, once after a warm-up on one batch; its peak is
that of the resident memory above the warm process.
"""

import argparse
import json
import time

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks import reports
from benchmarks.reports import save, table
from sparsekit.data_pruning import el2n, score
from sparsekit.memory import peak_rss, restart_peak

SIZES = (10_000, 100_000, 300_000, 1_000_000)
FEATURES, CLASSES, BATCH = 64, 10, 1024


class Noise(Dataset):
    """`size` examples that exist only while they are looked at."""

    def __init__(self, size: int):
        self.size = size
        self.row = torch.randn(FEATURES, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.row * (1 + i % 7), i % CLASSES


def measure(size: int) -> dict[str, float]:
    """Megabytes (10^6 bytes) above the warm process, seconds, bytes an example."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(FEATURES, 128), nn.ReLU(), nn.Linear(128, CLASSES)
    ).eval()
    score(model, Noise(BATCH), el2n, batch_size=BATCH)
    restart_peak()
    base, began = peak_rss(), time.perf_counter()
    scores = score(model, Noise(size), el2n, batch_size=BATCH)
    seconds, grown = time.perf_counter() - began, peak_rss() - base
    assert scores.values.shape == (size,)
    return {
        "examples": size,
        "peak_mb": grown / 1e6,
        "bytes_an_example": grown / size,
        "seconds": seconds,
    }


def markdown(rows: list[dict[str, float]]) -> list[str]:
    cells = (
        f"{row['examples']:,} | {row['peak_mb']:.1f} | "
        f"{row['bytes_an_example']:.1f} | {row['seconds']:.1f}"
        for row in rows
    )
    return table("examples | peak, MB | bytes an example | seconds", cells)


def main() -> None:
    parser = reports.parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(measure(args.one)))
        return
    rows = [reports.fresh("streamed_scores", "--one", size) for size in args.sizes]
    save(args.out / "streamed_scores.json", rows, markdown(rows))


if __name__ == "__main__":
    main()
