"""The house style of figures: readable on light and dark pages, the same everywhere.

    from apps.common import figures

    figures.use_house_style()
    figures.interval_band(axes, sparsities, accuracy, **figures.line("rigl"))

`matplotlib` is imported inside the functions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from apps.common.statistics import Interval, mean_interval
from sparsekit import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")

# Text and axes. A figure is drawn once for both themes: on a dark page the book's
# style sheet makes it DARK_BRIGHTNESS times as bright. Then text has a contrast of
# 4.5 : 1 on both pages, lines 3 : 1 (WCAG 2.1), which one grey cannot have.
INK = "#757575"
DARK_BRIGHTNESS = 1.2

# The hues of Okabe and Ito (2008). Their lightness was searched for, until any two,
# and the grey, are far apart for every colour vision, on both pages.
BLUE, ORANGE, GREEN = "#0068b0", "#e36c00", "#08674b"
VERMILION, PURPLE, SKY, OLIVE = "#bc1500", "#e762af", "#3a9bd9", "#546612"
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, SKY, OLIVE, ORANGE)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

# One appearance per name in the whole book. The baselines have line styles that no
# method has.
LINES: dict[str, dict[str, Any]] = {
    "dense": {"color": INK, "linestyle": "--", "marker": ""},
    "random": {"color": ORANGE, "linestyle": ":", "marker": "X"},
    "static": {"color": ORANGE, "linestyle": "-", "marker": "X"},
    "oneshot": {"color": SKY, "linestyle": "-", "marker": "v"},
    "gradual": {"color": BLUE, "linestyle": "-", "marker": "o"},
    "imp": {"color": PURPLE, "linestyle": "-", "marker": "D"},
    "set": {"color": GREEN, "linestyle": "-", "marker": "^"},
    "rigl": {"color": VERMILION, "linestyle": "-", "marker": "s"},
    "mest": {"color": BLUE, "linestyle": "-", "marker": "D"},
    "tdm": {"color": BLUE, "linestyle": "-", "marker": "P"},
    "snip": {"color": PURPLE, "linestyle": "-", "marker": "P"},
    "grasp": {"color": OLIVE, "linestyle": "-", "marker": "v"},
    "synflow": {"color": GREEN, "linestyle": "-", "marker": "P"},
    "stratified": {"color": OLIVE, "linestyle": ":", "marker": "P"},
    "el2n": {"color": VERMILION, "linestyle": "-", "marker": "o"},
    "ccs": {"color": BLUE, "linestyle": "-", "marker": "s"},
    "aum": {"color": SKY, "linestyle": "-", "marker": "^"},
    "grand": {"color": PURPLE, "linestyle": "-", "marker": "s"},
    "forgetting": {"color": GREEN, "linestyle": "-", "marker": "o"},
    "popularity": {"color": ORANGE, "linestyle": ":", "marker": "P"},
    "itemknn": {"color": SKY, "linestyle": "-", "marker": "s"},
    "ease": {"color": BLUE, "linestyle": "-", "marker": "^"},
    "ials": {"color": PURPLE, "linestyle": "-", "marker": "v"},
    "mf": {"color": GREEN, "linestyle": "-", "marker": "X"},
    "lightgcn": {"color": VERMILION, "linestyle": "-", "marker": "D"},
    "finetune": {"color": INK, "linestyle": ":", "marker": ""},
    "joint": {"color": INK, "linestyle": "-.", "marker": ""},
    "gdumb": {"color": ORANGE, "linestyle": ":", "marker": "D"},
    "lwf": {"color": OLIVE, "linestyle": "-", "marker": "^"},
    "ewc": {"color": SKY, "linestyle": "-", "marker": "D"},
    "agem": {"color": PURPLE, "linestyle": "-", "marker": "X"},
    "er": {"color": GREEN, "linestyle": "-", "marker": "s"},
    "derpp": {"color": VERMILION, "linestyle": "-", "marker": "P"},
}


def line(name: str) -> dict[str, Any]:
    """Colour, line style, marker and label of a method, as keywords for `plot`.

    A name that is not in `LINES` gets an appearance that depends on the name alone,
    so it is the same in every figure.

    >>> line("dense")
    {'color': '#757575', 'linestyle': '--', 'marker': '', 'label': 'dense'}
    """
    if name in LINES:
        return {**LINES[name], "label": name}
    index = crc32(name.encode())
    return {
        "color": CYCLE[index % len(CYCLE)],
        "linestyle": "-",
        "marker": MARKERS[index // len(CYCLE) % len(MARKERS)],
        "label": name,
    }


def rc() -> dict[str, Any]:
    """The house style as matplotlib settings."""
    from cycler import cycler

    return {
        "axes.edgecolor": INK,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.labelcolor": INK,
        "axes.prop_cycle": cycler(color=CYCLE),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": "medium",
        "figure.constrained_layout.use": True,
        "figure.facecolor": "none",
        "figure.figsize": (7.0, 3.6),
        "font.size": 11.0,
        "grid.alpha": 0.25,
        "grid.color": INK,
        "image.cmap": "viridis",
        "image.interpolation": "nearest",
        "legend.framealpha": 0.0,
        "lines.linewidth": 1.8,
        "lines.markersize": 5.0,
        "savefig.facecolor": "none",
        "svg.fonttype": "path",
        "svg.hashsalt": "sparsekit",  # the same figure gives the same file
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }


def use_house_style() -> None:
    """Set the style for this process; in a notebook, figures become SVG."""
    import matplotlib

    matplotlib.rcParams.update(rc())
    try:
        from IPython import get_ipython
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:
        return
    if get_ipython() is not None:
        set_matplotlib_formats("svg")


@contextmanager
def drawn(path: Path, size: tuple[float, float]) -> Iterator["Figure"]:
    """A figure of this size in inches; written to `path` when it is complete.

    Raises ValueError for a path that ends neither in .png nor in .svg.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"a figure ends in {' or '.join(SUFFIXES)}, got {path.name}")
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: no window, works on servers

    with matplotlib.rc_context(rc()):
        figure = Figure(figsize=size)
        yield figure
        form = path.suffix.removeprefix(".")
        # Without its date the same figure gives the same file.
        options: dict[str, Any] = {"format": form, "dpi": 200}
        if form == "svg":
            options["metadata"] = {"Date": None}
        atomic.write(path, lambda file: figure.savefig(file, **options))


def title_of(n_seeds: int) -> str:
    """What a figure of a comparison says above its panels."""
    return f"{n_seeds} seed{'s' if n_seeds > 1 else ''}, 95 % intervals"


def interval_point(
    axes: "Axes", row: float, interval: Interval, color: str, *, scale: float = 1,
    label: str | None = None,
) -> None:  # fmt: skip
    """A value as a point and its interval as a line through it, in a row of its own."""
    low, high = scale * interval.low, scale * interval.high
    axes.plot([low, high], [row, row], "-", color=color)
    axes.plot(scale * interval.value, row, "o", color=color, label=label)


def differences(
    figure: "Figure", labels: Sequence[str], baseline: str,
    seeds: Mapping[str, Sequence[float]], difference: Callable[[str], Interval],
    *, scale: float = 1,
) -> tuple["Axes", "Axes"]:  # fmt: skip
    """Left: every seed (small dots), mean, interval. Right: difference to the baseline.

    labels: rows from below. seeds: {label: one value a seed}. An interval on the right
    that misses 0 is a difference.
    """
    left, right = figure.subplots(1, 2, sharey=True)
    for row, label in enumerate(labels):
        color = line(label)["color"]
        values = [scale * value for value in seeds[label]]
        left.plot(values, [row] * len(values), ".", color=color, alpha=0.4)
        interval_point(left, row, mean_interval(values), color)
        if label != baseline:
            interval_point(right, row, difference(label), color, scale=scale)
    left.set_yticks(range(len(labels)), labels)
    right.axvline(0, color=INK, linewidth=1)
    figure.suptitle(title_of(len(values)), fontsize=10)
    return left, right


def interval_band(
    ax: "Axes",
    x: Sequence[float],
    values_per_seed: Sequence[Sequence[float]],
    label: str | None = None,
    **style: Any,
) -> None:
    """Draw the mean over seeds and its 95 % interval at each x.

    x: n numbers. values_per_seed: n rows, one value a seed in each; rows may differ
    in length. A row of one seed has no interval and gets a point without a band.
    style: as for `plot`; `line(name)` gives a method's.

    Raises ValueError if the lengths differ or a row is empty.
    """
    if len(x) != len(values_per_seed):
        raise ValueError(
            f"x has {len(x)} values and values_per_seed {len(values_per_seed)} rows; "
            "give one row of seeds for each x"
        )
    for position, row in zip(x, values_per_seed, strict=True):
        if len(row) == 0:
            raise ValueError(f"no values at x = {position}; leave that x out")
    if label is not None:
        style["label"] = label
    rows = [mean_interval(row) for row in values_per_seed]
    (drawn,) = ax.plot(x, [row.value for row in rows], **style)
    ax.fill_between(
        x,
        [row.low for row in rows],  # nan for one seed: matplotlib leaves it out
        [row.high for row in rows],
        color=drawn.get_color(),
        alpha=0.2,
        linewidth=0,
    )
