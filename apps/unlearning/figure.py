"""The figure of a comparison: signed gaps to retraining, and the mean gap."""

from pathlib import Path

from apps.common import figures
from apps.common.statistics import Interval
from apps.unlearning.compare import Comparison
from apps.unlearning.metrics import NAMES

SUFFIXES = (".png", ".svg")


def draw(comparison: Comparison, path: Path) -> None:
    """Writes a figure whose format is the path's suffix, .png or .svg.

    Left: the signed gap of each metric, in points; 0 is retraining. Right: the mean of
    their sizes. Means over seeds with 95 % intervals.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"a figure ends in {' or '.join(SUFFIXES)}, got {path.name}")
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: no window, works on servers

    labels = list(comparison.values)[::-1]
    with matplotlib.rc_context(figures.rc()):
        figure = Figure(figsize=(8, 1.4 + 0.5 * len(labels)))
        left, right = figure.subplots(1, 2, sharey=True)
        for row, label in enumerate(labels):
            for i, name in enumerate(NAMES):
                interval = comparison.interval(label, f"{name} gap")
                title = name if row == 0 else None
                _interval(left, row + 0.15 * (1.5 - i), interval, f"C{i}", title)
            _interval(right, row, comparison.interval(label), figures.INK, None)
        left.axvline(0, color=figures.INK, linewidth=1)
        left.set_yticks(range(len(labels)), labels)
        left.set_xlabel("gap to retraining, points")
        left.legend()
        right.set_xlim(left=0)
        right.set_xlabel("mean gap, points")
        figure.suptitle(f"{len(comparison.seeds)} seeds, 95 % intervals", fontsize=10)
        figure.savefig(path, dpi=200)


def _interval(
    axes, row: float, interval: Interval, color: str, label: str | None
) -> None:
    low, high = 100 * interval.low, 100 * interval.high
    axes.plot([low, high], [row, row], "-", color=color)
    axes.plot(100 * interval.value, row, "o", color=color, label=label)
