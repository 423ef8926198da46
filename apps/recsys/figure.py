"""The figure of a comparison: NDCG@20 and paired differences, with intervals."""

from pathlib import Path

from apps.common import figures
from apps.common.statistics import Interval
from apps.recsys.comparison import Comparison
from apps.recsys.result import CHOSEN_BY

SUFFIXES = (".png", ".svg")


def draw(comparison: Comparison, path: Path) -> None:
    """Writes a figure whose format is the path's suffix, .png or .svg.

    Left: NDCG@20 of every seed (small dots), mean and 95 % interval. Right: difference
    to the baseline, paired by user; an interval that misses 0 is a difference.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"a figure ends in {' or '.join(SUFFIXES)}, got {path.name}")
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: no window, works on servers

    labels = [row["run"].removesuffix(" *") for row in comparison.rows()][::-1]
    with matplotlib.rc_context(figures.rc()):
        figure = Figure(figsize=(8, 1.2 + 0.4 * len(labels)))
        left, right = figure.subplots(1, 2, sharey=True)
        for row, label in enumerate(labels):
            color = figures.line(label)["color"]
            seeds = comparison.values[label][CHOSEN_BY]
            left.plot(seeds, [row] * len(seeds), ".", color=color, alpha=0.4)
            _interval(left, row, comparison.interval(label), color)
            if label != comparison.baseline:
                over_users = comparison.difference_over_users(label)
                _interval(right, row, over_users, color)
        left.set_yticks(range(len(labels)), labels)
        left.set_xlabel("NDCG@20")
        right.axvline(0, color=figures.INK, linewidth=1)
        right.set_xlabel(f"difference to {comparison.baseline}, paired by user")
        title = f"{len(comparison.seeds)} seeds, 95 % intervals"
        figure.suptitle(title, fontsize=10)
        figure.savefig(path, dpi=200)


def _interval(axes, row: int, interval: Interval, color: str) -> None:
    axes.plot([interval.low, interval.high], [row, row], "-", color=color)
    axes.plot(interval.value, row, "o", color=color)
