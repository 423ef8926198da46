"""The figure of a comparison: accuracy and paired differences, with intervals."""

from pathlib import Path

from apps.classify.compare import Comparison
from apps.common import figures
from apps.common.statistics import Interval

SUFFIXES = (".png", ".svg")


def draw(comparison: Comparison, path: Path) -> None:
    """Writes a figure whose format is the path's suffix, .png or .svg.

    Left: accuracy of every seed (small dots), mean and 95 % interval. Right: paired
    difference to the baseline, in points; an interval that misses 0 is a difference.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"a figure ends in {' or '.join(SUFFIXES)}, got {path.name}")
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: no window, works on servers

    labels = list(comparison.values)[::-1]
    with matplotlib.rc_context(figures.rc()):
        figure = Figure(figsize=(8, 1.2 + 0.4 * len(labels)))
        left, right = figure.subplots(1, 2, sharey=True)
        for row, label in enumerate(labels):
            color = figures.line(label)["color"]
            seeds = [100 * v for v in comparison.values[label]["accuracy"]]
            left.plot(seeds, [row] * len(seeds), ".", color=color, alpha=0.4)
            _interval(left, row, comparison.interval(label), color)
            if label != comparison.baseline:
                _interval(right, row, comparison.difference(label), color)
        left.set_yticks(range(len(labels)), labels)
        left.set_xlabel("test accuracy, %")
        right.axvline(0, color=figures.INK, linewidth=1)
        right.set_xlabel(f"difference to {comparison.baseline}, points")
        figure.suptitle(f"{len(comparison.seeds)} seeds, 95 % intervals", fontsize=10)
        figure.savefig(path, dpi=200)


def _interval(axes, row: int, interval: Interval, color: str) -> None:
    low, high = 100 * interval.low, 100 * interval.high
    axes.plot([low, high], [row, row], "-", color=color)
    axes.plot(100 * interval.value, row, "o", color=color)
