"""The figure of a comparison: signed gaps to retraining, and the mean gap."""

from pathlib import Path

from apps.common import figures
from apps.unlearning.compare import Comparison
from apps.unlearning.metrics import NAMES


def draw(comparison: Comparison, path: Path) -> None:
    """Writes a figure whose format is the path's suffix, .png or .svg.

    Left: the signed gap of each metric, in points; 0 is retraining. Right: the mean of
    their sizes. Means over seeds with 95 % intervals.
    """
    labels = list(comparison.values)[::-1]
    with figures.drawn(path, (8, 1.4 + 0.5 * len(labels))) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for row, label in enumerate(labels):
            for i, name in enumerate(NAMES):
                figures.interval_point(
                    left, row + 0.15 * (1.5 - i),
                    comparison.interval(label, f"{name} gap"), f"C{i}", scale=100,
                    label=name if row == 0 else None,
                )  # fmt: skip
            mean = comparison.interval(label)
            figures.interval_point(right, row, mean, figures.INK, scale=100)
        left.axvline(0, color=figures.INK, linewidth=1)
        left.set_yticks(range(len(labels)), labels)
        left.set_xlabel("gap to retraining, points")
        left.legend()
        right.set_xlim(left=0)
        right.set_xlabel("mean gap, points")
        figure.suptitle(figures.title_of(len(comparison.seeds)), fontsize=10)
