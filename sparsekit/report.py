"""Reports: a table, pictures and a history of what the masks are and were.

Everything takes a sparsifier (any object with `.model` and `.alive`) or masks by name.
Pictures return the matplotlib Axes they draw on; matplotlib is imported when one is
drawn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sparsekit.accounting import Layer, forward_flops, layers
from sparsekit.columns import aligned
from sparsekit.packing import FORMATS
from sparsekit.values import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Masks = Mapping[str, Tensor]


class Sparsified(Protocol):
    """What a report reads of a sparsifier."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def alive(self) -> Masks: ...


@dataclass(frozen=True)
class Table:
    """One row a parameter; `str` renders it as text, with the total.

    `other_flops`: of products between activations; None if FLOPs were not counted.
    """

    rows: list[Layer]
    other_flops: int | None

    def __str__(self) -> str:
        flops = self.other_flops is not None
        header = ["parameter", "shape", "active", "of", "sparsity"]
        header += ["FLOPs", "dense FLOPs"] if flops else []
        header += [f"{format} B" for format in FORMATS]
        lines = [header]
        for row in self.rows:
            shape = "x".join(map(str, row.shape))
            counts = [f"{row.active:,}", f"{row.numel:,}", f"{row.sparsity:.4f}"]
            if flops:
                counts += [f"{row.sparse_flops:,}", f"{row.dense_flops:,}"]
            counts += [f"{row.nbytes[format]:,}" for format in FORMATS]
            lines.append([row.name, shape, *counts])
        if self.other_flops:
            other = f"{self.other_flops:,}"
            blank = [""] * len(FORMATS)
            lines.append(["between activations", *[""] * 4, other, other, *blank])
        lines.append(self._total(flops))
        return "\n".join(aligned(lines, right=range(1, len(header))))

    def _total(self, flops: bool) -> list[str]:
        other = self.other_flops or 0
        active = sum(row.active for row in self.rows)
        numel = sum(row.numel for row in self.rows)
        line = ["total", "", f"{active:,}", f"{numel:,}", f"{1 - active / numel:.4f}"]
        if flops:
            line += [
                f"{sum(r.sparse_flops or 0 for r in self.rows) + other:,}",
                f"{sum(r.dense_flops or 0 for r in self.rows) + other:,}",
            ]
        return line + [f"{sum(r.nbytes[f] for r in self.rows):,}" for f in FORMATS]


def table(
    source: Sparsified | nn.Module,
    *inputs: Any,
    masks: Masks | None = None,
) -> Table:
    """The account of every parameter: counts, bytes and, with an input, FLOPs.

    Args:
        source: a sparsifier, or a model together with `masks`.
        inputs: what the model is called with to count FLOPs; none = no FLOPs.
        masks: {parameter name: bool mask}; default: `source.alive`.

    Raises:
        ValueError: for a model with neither masks nor `.alive`, or a mask that does not
            fit a parameter.

    >>> model = torch.nn.Linear(4, 2)
    >>> masks = {"weight": torch.arange(8).view(2, 4) < 2}
    >>> print(table(model, masks=masks))
    parameter  shape  active  of  sparsity  dense B  csr B  bitmask B  delta B
    weight       2x4       2   8    0.7500       32     28          9       10
    bias           2       2   2    0.0000        8      8          8        8
    total                  4  10    0.6000       40     36         17       18
    >>> table(model, torch.zeros(1, 4), masks=masks).rows[0].sparse_flops
    4
    """
    alive, model = _masks(source) if masks is None else masks, _model(source)
    flops = forward_flops(model, *inputs) if inputs else None
    return Table(layers(model, alive, flops), flops.other if flops else None)


class History:
    """What the masks of a sparsifier did over training.

    `record()` after a step appends to every list:

    step: of the sparsifier, or the number of records before.
    density: active share over all masked tensors.
    exploration: R_s = |union over time of masks| / N, over all masked tensors.
    explorations: the same for each tensor, by name.
    moved: connections that are alive now and were not at the record before.
    survived: those of the record before's `moved` that are alive still.

    The union is the sparsifier's own `visited` if it has one, else that of the records.

    >>> from types import SimpleNamespace
    >>> thing = SimpleNamespace(alive={"w": torch.tensor([True, False, False, False])})
    >>> history = History(thing)
    >>> history.record()
    >>> thing.alive["w"] = torch.tensor([False, True, False, False])
    >>> history.record()
    >>> history.exploration, history.moved, history.survived
    ([0.25, 0.5], [0, 1], [0, 0])

    Source: Liu et al. 2021 (ITOP), arXiv 2102.02887.
    """

    def __init__(self, sparsifier: Any):
        self.sparsifier = sparsifier
        self.step: list[int] = []
        self.density: list[float] = []
        self.exploration: list[float] = []
        self.explorations: dict[str, list[float]] = {n: [] for n in _masks(sparsifier)}
        self.moved: list[int] = []
        self.survived: list[int] = []
        self._before: dict[str, Tensor] = {}
        self._grown: dict[str, Tensor] = {}
        self._union: dict[str, Tensor] = {}

    def record(self) -> None:
        alive = {name: mask.clone() for name, mask in _masks(self.sparsifier).items()}
        visited = getattr(self.sparsifier, "visited", None) or self._union
        self._union = {
            n: m | visited[n] if n in visited else m for n, m in alive.items()
        }
        total = sum(mask.numel() for mask in alive.values())
        self.step.append(int(getattr(self.sparsifier, "step", len(self.step))))
        self.density.append(_count(alive) / total)
        self.exploration.append(_count(self._union) / total)
        for name, union in self._union.items():
            self.explorations[name].append(int(union.sum()) / union.numel())
        self.survived.append(_count({n: m & alive[n] for n, m in self._grown.items()}))
        self._grown = {n: m & ~self._before.get(n, m) for n, m in alive.items()}
        self.moved.append(_count(self._grown))
        self._before = alive

    def to_dict(self) -> dict[str, list[float]]:
        """Lists of equal length; those of each tensor are called exploration/NAME."""
        lists: dict[str, list[float]] = {
            "step": list(self.step),
            "density": list(self.density),
            "exploration": list(self.exploration),
            "moved": list(self.moved),
            "survived": list(self.survived),
        }
        for name, values in self.explorations.items():
            lists[f"exploration/{name}"] = list(values)
        return lists


def sparsity_per_layer(source: Sparsified | Masks, ax: "Axes | None" = None) -> "Axes":
    """Horizontal bars: sparsity of each masked tensor, and of all of them as a line."""
    masks = _masks(source)
    ax = _axes(ax, height=1.2 + 0.32 * len(masks))
    names = list(masks)
    values = [100 * (1 - int(masks[n].sum()) / masks[n].numel()) for n in names]
    total = 100 * (1 - _count(masks) / sum(m.numel() for m in masks.values()))
    ax.barh(names, values, color=_BLUE)
    for i, value in enumerate(values):
        inside = value > 15
        ax.annotate(
            f"{value:.1f}",
            (value, i),
            xytext=(-4 if inside else 4, 0),
            textcoords="offset points",
            ha="right" if inside else "left",
            va="center",
            color="white" if inside else _INK,
            fontsize="small",
        )
    ax.axvline(total, color=_ORANGE, linestyle="--", label=f"all: {total:.1f} %")
    ax.invert_yaxis()
    ax.set(xlim=(0, 100), xlabel="sparsity (% zeros)", title="Sparsity per layer")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)  # beside it
    return ax


def mask_picture(mask: Tensor, name: str = "", ax: "Axes | None" = None) -> "Axes":
    """A mask as an image (out, in * kernel): blue = alive, white = absent."""
    from matplotlib.colors import ListedColormap

    matrix = _matrix(mask).cpu().numpy()
    ax = _axes(ax)
    colors = ListedColormap(["white", _BLUE])
    ax.imshow(matrix, cmap=colors, vmin=0, vmax=1, interpolation="nearest")
    inputs = "input" if mask.dim() == 2 else "input x kernel"
    ax.set(
        xlabel=f"{inputs} (index)",
        ylabel="output (index)",
        title=f"{name or 'Mask'}: {100 * matrix.mean():.1f} % alive",
    )
    return ax


def degree_histogram(mask: Tensor, name: str = "", ax: "Axes | None" = None) -> "Axes":
    """In-degrees of the outputs and out-degrees of the inputs, against random masks.

    Bars: neurons with each number of connections. Lines: the expectation for a random
    mask of the same density, binomial with (in, density) and (out, density).
    """
    matrix = _matrix(mask).cpu().numpy()
    density = float(matrix.mean())
    ax = _axes(ax)
    sides = (
        ("in-degree of outputs", matrix.sum(1), matrix.shape[1], _BLUE),
        ("out-degree of inputs", matrix.sum(0), matrix.shape[0], _ORANGE),
    )
    for label, degrees, trials, color in sides:
        values, counts = np.unique(degrees, return_counts=True)
        share = 100 * counts / len(degrees)
        ax.bar(values, share, width=0.9, alpha=0.5, color=color, label=label)
        expected = 100 * binomial(trials, density)
        shown = np.flatnonzero(expected > 0.01)
        ax.plot(shown, expected[shown], color=color, label=f"{label}, random mask")
    ax.set(
        xlabel="degree (connections of a neuron)",
        ylabel="neurons (%)",
        title=f"Degrees{' of ' + name if name else ''}",
    )
    ax.legend(frameon=False, fontsize="small")
    return ax


def exploration_curve(history: History, ax: "Axes | None" = None) -> "Axes":
    """R_s over training: all tensors together, and each of them thin."""
    ax = _axes(ax)
    for name, values in history.explorations.items():
        ax.plot(history.step, values, linewidth=0.9, alpha=0.7, label=name)
    ax.plot(history.step, history.exploration, color=_INK, linewidth=2, label="all")
    ax.plot(
        history.step,
        history.density,
        color=_INK,
        linestyle=":",
        label="density, all",
    )
    ax.set(
        xlabel="step (optimizer steps)",
        ylabel="share of weights",
        title="Exploration $R_s$: weights that were ever alive",
        ylim=(0, 1.03),
    )
    ax.legend(frameon=False, fontsize="small")
    return ax


def binomial(trials: int, probability: float) -> np.ndarray:
    """P(k successes in `trials`), k = 0 ... trials.

    >>> binomial(2, 0.5).round(6).tolist()
    [0.25, 0.5, 0.25]
    """
    k = torch.arange(trials + 1, dtype=torch.float64)
    law = torch.distributions.Binomial(
        torch.tensor(trials, dtype=torch.float64),
        torch.tensor(probability, dtype=torch.float64),
    )
    return law.log_prob(k).exp().numpy()


_BLUE, _ORANGE = "#2b6ca3", "#d9822b"
_INK = "#7b7b7b"  # readable on white and on dark pages


def _axes(ax: "Axes | None", height: float = 3.6) -> "Axes":
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(6, height), layout="constrained")[1]


def _masks(source: Any) -> dict[str, Tensor]:
    masks = source if isinstance(source, Mapping) else getattr(source, "alive", None)
    if not isinstance(masks, Mapping) or not masks:
        raise ValueError(
            f"{type(source).__name__} has no masks: give a sparsifier, or masks by "
            "name (table: `masks=`)"
        )
    return dict(masks)


def _model(source: Any) -> nn.Module:
    """With dense layers: parameters and masks have the same names."""
    return plain(source if isinstance(source, nn.Module) else source.model)


def _count(masks: Masks) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


def _matrix(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool or mask.dim() < 1 or mask.numel() == 0:
        raise ValueError(
            f"a mask is bool with at least one entry, got {mask.dtype} of shape "
            f"{tuple(mask.shape)}"
        )
    return mask.reshape(1 if mask.dim() == 1 else mask.shape[0], -1)
