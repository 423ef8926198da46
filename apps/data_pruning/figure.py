"""The figure of a comparison: accuracy against the share kept, for each budget."""

from pathlib import Path
from typing import TYPE_CHECKING

from apps.common import figures
from apps.data_pruning.comparison import FULL, Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(comparison: Comparison, path: Path) -> None:
    """Writes a figure whose format is the path's suffix, .png or .svg.

    One panel a budget; mean and 95 % interval over seeds, all data as a dashed line.
    """
    if not comparison.rows:
        raise ValueError("nothing was measured: there is nothing to draw")
    budgets = sorted({r.budget for r in comparison.rows if r.label != FULL})
    n_panels = max(1, len(budgets))
    with figures.drawn(path, (1 + 4 * n_panels, 4)) as figure:
        panels = figure.subplots(1, n_panels, sharey=True, squeeze=False)[0]
        for axes, budget in zip(panels, budgets, strict=False):
            draw_budget(axes, comparison, budget)
        panels[0].set_ylabel("test accuracy, %")
        panels[-1].legend()
        figure.suptitle(figures.title_of(len(comparison.seeds)), fontsize=10)


def draw_budget(axes: "Axes", comparison: Comparison, budget: str) -> None:
    """A line for each strategy, on axes of your own."""
    if FULL in comparison.labels:
        value = comparison.interval(FULL, 1.0, budget).value
        axes.axhline(100 * value, **(figures.line("dense") | {"label": FULL}))
    for label in comparison.labels:
        keeps = sorted(
            k for name, k, b in comparison.cells() if (name, b) == (label, budget)
        )
        if not keeps or label == FULL:
            continue
        shares = [100 * keep for keep in keeps]
        rows = [
            [100 * v for v in comparison.values(label, keep, budget).values()]
            for keep in keeps
        ]
        figures.interval_band(axes, shares, rows, **figures.line(label))
    axes.set_xlabel("share kept, %")
    axes.set_title(f"equal {budget}", fontsize=10)
