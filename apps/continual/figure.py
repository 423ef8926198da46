"""Figures of a comparison: accuracy with intervals, and accuracy matrices."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.common import figures
from apps.continual.compare import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(comparison: Comparison, path: Path) -> None:
    """Writes a figure whose format is the path's suffix, .png or .svg.

    Above: accuracy of every seed (small dots), mean and 95 % interval. Below: the
    accuracy matrix of each run, the mean over seeds.
    """
    labels = list(comparison.values)
    height = 1.2 + 0.4 * len(labels)
    size = (2 + 1.8 * max(3, len(labels)), height + 2.4)
    with figures.drawn(path, size) as figure:
        upper, lower = figure.subfigures(2, 1, height_ratios=[height, 2.4])
        accuracies(comparison, upper.subplots())
        axes = lower.subplots(1, len(labels), squeeze=False)[0]
        for label, ax in zip(labels, axes, strict=True):
            matrix(np.mean(comparison.matrices[label], axis=0), ax)
            ax.set_title(label)
        axes[0].set_ylabel("after task")


def accuracies(comparison: Comparison, axes: "Axes") -> None:
    """A row a run: its seeds, their mean and interval."""
    labels = list(comparison.values)[::-1]
    for row, label in enumerate(labels):
        color = figures.line(label)["color"]
        seeds = [100 * v for v in comparison.of(label, "accuracy")]
        axes.plot(seeds, [row] * len(seeds), ".", color=color, alpha=0.4)
        interval = comparison.interval(label)
        figures.interval_point(axes, row, interval, color, scale=100)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"average accuracy, %; {len(comparison.seeds)} seeds")


def matrix(a: Any, axes: "Axes", numbers: bool = True) -> None:
    """An accuracy matrix [T, T] as a heat map: row i after task i, column j task j.

    Numbers are in percent; tasks that were not learned yet are pale.
    """
    a = np.asarray(a, dtype=float)
    n = len(a)
    axes.imshow(
        a, vmin=0, vmax=1, cmap="viridis", alpha=np.tril(np.full((n, n), 0.85)) + 0.15
    )
    if numbers:
        for i, j in np.ndindex(n, n):
            color = "black" if a[i, j] > 0.45 else figures.INK if j > i else "white"
            axes.text(
                j, i, f"{100 * a[i, j]:.0f}", ha="center", va="center", color=color,
                fontsize=8,
            )  # fmt: skip
    axes.set_xticks(range(n), [str(j + 1) for j in range(n)])
    axes.set_yticks(range(n), [str(i + 1) for i in range(n)])
    axes.set_xlabel("task")
    axes.grid(False)
