"""The figure of a comparison: accuracy and paired differences, with intervals."""

from pathlib import Path

from apps.classify.compare import Comparison

SUFFIXES = (".png", ".svg")


def draw(comparison: Comparison, path: Path) -> None:
    """Writes a figure whose format is the path's suffix, .png or .svg.

    Left: accuracy of every seed (small dots), mean and 95 % interval. Right: paired
    difference to the baseline, in points; an interval that misses 0 is a difference.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"a figure ends in {' or '.join(SUFFIXES)}, got {path.name}")
    import matplotlib

    matplotlib.use("Agg")  # no window: works on servers
    import matplotlib.pyplot as plt

    labels = list(comparison.values)[::-1]
    size = (8, 1.2 + 0.4 * len(labels))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=size, sharey=True, layout="constrained"
    )
    for row, label in enumerate(labels):
        seeds = [100 * v for v in comparison.values[label]["accuracy"]]
        left.plot(seeds, [row] * len(seeds), ".", color="0.6", markersize=4)
        _interval(left, row, comparison.interval(label))
        if label != comparison.baseline:
            _interval(right, row, comparison.difference(label))
    left.set_yticks(range(len(labels)), labels)
    left.set_xlabel("test accuracy, %")
    right.axvline(0, color="0.6", linewidth=1)
    right.set_xlabel(f"difference to {comparison.baseline}, points")
    figure.suptitle(f"{len(comparison.seeds)} seeds, 95 % intervals", fontsize=10)
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=200)
    plt.close(figure)


def _interval(axes, row: int, interval) -> None:
    low, high = 100 * interval.low, 100 * interval.high
    axes.plot([low, high], [row, row], color="C0", linewidth=2)
    axes.plot(100 * interval.value, row, "o", color="C0", markersize=5)
