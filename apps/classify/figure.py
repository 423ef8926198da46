"""The figure of a comparison: accuracy and paired differences, with intervals."""

from pathlib import Path

from apps.classify.compare import Comparison
from apps.common import figures


def draw(comparison: Comparison, path: Path) -> None:
    """Writes a figure whose format is the path's suffix, .png or .svg.

    Left: accuracy of every seed (small dots), mean and 95 % interval. Right: paired
    difference to the baseline, in points; an interval that misses 0 is a difference.
    """
    labels = list(comparison.values)[::-1]
    with figures.drawn(path, (8, 1.2 + 0.4 * len(labels))) as figure:
        seeds = {label: comparison.of(label) for label in labels}
        left, right = figures.differences(
            figure, labels, comparison.baseline, seeds, comparison.difference, scale=100
        )
        left.set_xlabel("test accuracy, %")
        right.set_xlabel(f"difference to {comparison.baseline}, points")
