"""Quality by bytes: recipes at budgets, with intervals, beside the dense model.

curve.best(76_448)                       # the recipe that won on validation
curve.of_dense("svd int8", 76_448)       # Interval: NDCG@20 over the dense one's
print(curve.table())
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from apps.common import figures
from apps.common.runs import RunFolder
from apps.common.statistics import Interval, mean_interval
from apps.common.tables import aligned, percent, shown


@dataclass
class Point:
    """A recipe at a budget; lists have an entry a seed.

    valid: NDCG@20 on validation, by which the settings were chosen among `tried`.
    users: [U] float32, NDCG@20 on test, NaN for users without test items. nbytes: of
    the tables. file, memory and milliseconds: bytes on disk, MB beyond numpy's own, and
    a query's median, of the first seed's; None if they were not measured.
    """

    valid: list[float] = field(default_factory=list)
    users: list[np.ndarray] = field(default_factory=list)
    nbytes: list[int] = field(default_factory=list)
    settings: list[dict[str, Any]] = field(default_factory=list)
    tried: list[int] = field(default_factory=list)
    needs_history: bool = False
    file: int | None = None
    memory: float | None = None
    milliseconds: float | None = None

    @property
    def tests(self) -> np.ndarray:
        """[seeds] NDCG@20."""
        return np.nanmean(np.array(self.users), axis=1)


@dataclass(frozen=True)
class Curve:
    """points: {(recipe, budget): Point}; only recipes that every seed could fit.

    dense: the dense model; its `nbytes` are 4 bytes a number. references: what else is
    worth knowing, each at its own size. bytes_history: of the known items, which every
    recipe needs and no budget counts.
    """

    dataset: str
    seeds: tuple[int, ...]
    budgets: tuple[int, ...]
    dense: Point
    references: dict[str, Point]
    points: dict[tuple[str, int], Point]
    bytes_history: int
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes_dense(self) -> int:
        return self.dense.nbytes[0]

    def at(self, budget: int) -> dict[str, Point]:
        """The recipes that fit, the best on validation first."""
        found = {name: p for (name, size), p in self.points.items() if size == budget}
        return dict(sorted(found.items(), key=lambda item: -np.mean(item[1].valid)))

    def best(self, budget: int) -> str | None:
        """The recipe with the best mean on validation; None if nothing fits."""
        return next(iter(self.at(budget)), None)

    def of_dense(self, recipe: str, budget: int) -> Interval:
        """NDCG@20 as a share of the dense model's, paired and averaged over seeds."""
        return self._share_over_seeds(self.points[recipe, budget])

    def _share_over_seeds(self, point: Point) -> Interval:
        dense = self.dense.tests
        return mean_interval(
            point.tests / (dense if len(point.users) > 1 else dense.mean())
        )

    def _share_over_users(self, point: Point) -> Interval:
        """The same, with the interval over users of the means over seeds.

        `1 + mean(ours - dense) / mean(dense)`, the denominator taken as exact.
        """
        ours, dense = (np.mean(p.users, axis=0) for p in (point, self.dense))
        there = ~np.isnan(dense)
        found = mean_interval(1 + (ours[there] - dense[there]) / dense[there].mean())
        return found

    def rows(self, budget: int | None) -> list[dict[str, str]]:
        """The table's cells at a budget; None: of the dense model and references."""
        if budget is None:
            return [self._row(n, p) for n, p in self._fixed().items()]
        rows = [self._row(name, point) for name, point in self.at(budget).items()]
        if rows:
            rows[0]["recipe"] += " *"
        return rows

    def _fixed(self) -> dict[str, Point]:
        return {"dense": self.dense} | self.references

    def _row(self, name: str, point: Point) -> dict[str, str]:
        settings = point.settings[0] if point.settings else {}
        several = len(self.seeds) > 1
        return {
            "recipe": name + ("" if not point.needs_history else " (h)"),
            "NDCG@20": _value(point.tests),
            "% of dense": percent(self._share_over_seeds(point)),
            "over users": percent(self._share_over_users(point)),
            "kB": f"{np.mean(point.nbytes) / 1e3:.1f}",
            "file kB": "-" if point.file is None else f"{point.file / 1e3:.1f}",
            "MB": "-" if point.memory is None else f"{point.memory:.1f}",
            "ms": "-" if point.milliseconds is None else f"{point.milliseconds:.2f}",
            "settings" + (f", seed {self.seeds[0]}" if several else ""): ", ".join(
                f"{key} {value}" for key, value in settings.items()
            ),
        }

    def table(self) -> str:
        """Plain text: what needs no budget, then the recipes at each."""
        n = len(self.seeds)
        lines = [f"{self.dataset}: {n} seed{'s' * (n > 1)}, 95 % intervals", ""]
        lines += [*aligned(self.rows(None)), ""]
        for size in self.budgets:
            share = size / self.bytes_dense
            lines.append(f"{size / 1e3:,.1f} kB, {share:.2%} of the dense tables")
            rows = self.rows(size)
            lines += [*(aligned(rows) if rows else ["nothing fits"]), ""]
        lines += [
            "* the best on validation. (h) scores from the history, which all need to "
            f"leave out known items: {self.bytes_history / 1e3:,.1f} kB, in no budget.",
            "% of dense: over seeds, then over users. MB: memory beyond numpy's own; "
            "ms: a query of 20 items; both of the first seed's file.",
        ]
        return "\n".join(line.rstrip() for line in lines) + "\n"

    def save(self, folder: Path) -> None:
        """Writes budget.json, without values of single users, and budget.txt."""
        target = RunFolder(folder)
        target.write_text("budget.json", json.dumps(self.content(), indent=1) + "\n")
        target.write_text("budget.txt", self.table())

    def content(self) -> dict[str, Any]:
        """What budget.json holds."""
        return {
            "dataset": self.dataset,
            "seeds": list(self.seeds),
            "bytes_dense": self.bytes_dense,
            "bytes_history": self.bytes_history,
            "fixed": {name: self._content(p) for name, p in self._fixed().items()},
            "budgets": [
                {
                    "bytes": size,
                    "best": self.best(size),
                    "recipes": {n: self._content(p) for n, p in self.at(size).items()},
                }
                for size in self.budgets
            ],
            "provenance": self.provenance,
        }

    def _content(self, point: Point) -> dict[str, Any]:
        over_seeds, over_users = (
            share(point).plain()
            for share in (self._share_over_seeds, self._share_over_users)
        )
        return {
            "ndcg@20": point.tests.tolist(),
            "valid": point.valid,
            "of_dense": over_seeds,
            "of_dense_over_users": over_users,
            "nbytes": point.nbytes,
            "settings": point.settings,
            "tried": point.tried,
            "needs_history": point.needs_history,
            "file": point.file,
            "memory_mb": point.memory,
            "milliseconds": point.milliseconds,
        }

    def draw(self, path: Path) -> None:
        """Writes a figure, .png or .svg: NDCG@20 by bytes, one line a recipe."""
        with figures.drawn(path, (8, 4.5)) as figure:
            self.plot(figure.subplots())

    def plot(self, axes: Any) -> None:
        """The curve on axes of matplotlib."""
        level = float(self.dense.tests.mean())
        axes.axhline(level, **figures.line("dense"))
        axes.axhline(0.98 * level, color=figures.INK, linewidth=0.8, linestyle=":")
        for name in dict.fromkeys(name for name, _ in self.points):
            sizes = sorted(s for n, s in self.points if n == name)
            tests = [self.points[name, size].tests.tolist() for size in sizes]
            style = figures.line(name)
            figures.interval_band(axes, [s / 1e3 for s in sizes], tests, **style)
        axes.set(xscale="log", xlabel="kB of the tables", ylabel="NDCG@20, test")
        axes.legend(fontsize="small", ncols=2)


def _value(tests: np.ndarray) -> str:
    found = mean_interval(tests)
    return f"{found.value:.4f}" if len(tests) == 1 else shown(found, 4)
