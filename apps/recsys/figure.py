"""The figure of a comparison: NDCG@20 and paired differences, with intervals."""

from pathlib import Path

from apps.common import figures
from apps.recsys.comparison import Comparison


def draw(comparison: Comparison, path: Path) -> None:
    """Writes a figure whose format is the path's suffix, .png or .svg.

    Left: NDCG@20 of every seed (small dots), mean and 95 % interval. Right: difference
    to the baseline, paired by user; an interval that misses 0 is a difference.
    """
    labels = [row["run"].removesuffix(" *") for row in comparison.rows()][::-1]
    with figures.drawn(path, (8, 1.2 + 0.4 * len(labels))) as figure:
        seeds = {label: comparison.of(label) for label in labels}
        left, right = figures.differences(
            figure, labels, comparison.baseline, seeds, comparison.difference_over_users
        )
        left.set_xlabel("NDCG@20")
        right.set_xlabel(f"difference to {comparison.baseline}, paired by user")
