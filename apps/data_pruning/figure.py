"""The figure of a comparison: accuracy against the share kept, for each budget."""

from pathlib import Path
from typing import TYPE_CHECKING

from apps.common import figures
from apps.data_pruning.comparison import FULL, Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")


def draw(comparison: Comparison, path: Path) -> None:
    """Writes a figure whose format is the path's suffix, .png or .svg.

    One panel a budget; mean and 95 % interval over seeds, all data as a dashed line.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"a figure ends in {' or '.join(SUFFIXES)}, got {path.name}")
    if not comparison.rows:
        raise ValueError("nothing was measured: there is nothing to draw")
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: no window, works on servers

    with matplotlib.rc_context(figures.rc()):
        budgets = sorted({r.budget for r in comparison.rows if r.label != FULL})
        figure = Figure(figsize=(1 + 4 * max(1, len(budgets)), 4))
        panels = figure.subplots(1, max(1, len(budgets)), sharey=True, squeeze=False)[0]
        for axes, budget in zip(panels, budgets, strict=False):
            draw_budget(axes, comparison, budget)
        panels[0].set_ylabel("test accuracy, %")
        panels[-1].legend()
        n = len(comparison.seeds)
        title = f"{n} seed{'s' if n > 1 else ''}, 95 % intervals"
        figure.suptitle(title, fontsize=10)
        figure.savefig(path, dpi=200)


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
