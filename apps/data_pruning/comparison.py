"""What a comparison measured: one row a training, intervals over seeds, a table."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from apps.common.comparison import damaged, read_json
from apps.common.runs import MALFORMED, RunFolder
from apps.common.statistics import Interval, mean_interval
from apps.common.tables import percent, plain
from apps.data_pruning.cost import break_even

FULL, RANDOM = "full", "random"


@dataclass(frozen=True)
class Row:
    """One training.

    n: examples; steps: of the training. accuracy, worst_class, ece, nll: on test data.
    flipped_kept: share of the wrong labels that the subset holds, copies_kept of the
    near copies; None if none were planted. score_*: of the scores, trainings for them
    included; train_*: of this training alone.
    """

    seed: int
    label: str
    keep: float
    budget: str
    n: int
    steps: int
    accuracy: float
    worst_class: float
    ece: float
    nll: float
    flipped_kept: float | None
    copies_kept: float | None
    train_seconds: float
    train_flops: float
    score_seconds: float
    score_flops: float

    @property
    def key(self) -> tuple[int, str, float, str]:
        return self.seed, self.label, self.keep, self.budget

    @property
    def seconds(self) -> float:
        """Scoring included."""
        return self.train_seconds + self.score_seconds

    @property
    def flops(self) -> float:
        """Scoring included."""
        return self.train_flops + self.score_flops


@dataclass(frozen=True)
class Comparison:
    """settings: of every training; rows: in the order in which they were measured."""

    settings: dict[str, Any]
    rows: list[Row]
    provenance: dict[str, Any]

    def measurements(self) -> list[dict[str, Any]]:
        """The rows, as compare.csv has them."""
        return [asdict(row) for row in self.rows]

    @property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(row.label for row in self.rows))

    @property
    def seeds(self) -> list[int]:
        return sorted({row.seed for row in self.rows})

    def values(
        self, label: str, keep: float, budget: str, metric: str = "accuracy"
    ) -> dict[int, float]:
        """{seed: value} of a cell; all data ("full") serve every share and budget.

        Raises ValueError for a cell that was not measured, or an unknown metric.
        """
        found = {
            row.seed: getattr(row, metric, None)
            for row in self.rows
            if row.label == label
            and (label == FULL or (row.keep == keep and row.budget == budget))
        }
        if not found:
            raise ValueError(
                f"no run of {label!r} that keeps {keep} at equal {budget}; there are "
                f"{', '.join(self.labels) or 'none'}"
            )
        if any(value is None for value in found.values()):
            raise ValueError(f"{metric!r} was not measured for {label!r}")
        return dict(sorted(found.items()))

    def interval(
        self, label: str, keep: float, budget: str, metric: str = "accuracy"
    ) -> Interval:
        """Mean over seeds with its 95 % interval (Student t)."""
        return mean_interval(list(self.values(label, keep, budget, metric).values()))

    def differences(
        self, label: str, keep: float, budget: str, metric: str = "accuracy",
        baseline: str = RANDOM,
    ) -> dict[int, float]:  # fmt: skip
        """{seed: label - baseline} over the seeds of both."""
        ours = self.values(label, keep, budget, metric)
        theirs = self.values(baseline, keep, budget, metric)
        return {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}

    def difference(
        self, label: str, keep: float, budget: str, metric: str = "accuracy",
        baseline: str = RANDOM,
    ) -> Interval:  # fmt: skip
        """Mean of label - baseline, paired by seed, with its 95 % interval."""
        pairs = self.differences(label, keep, budget, metric, baseline)
        return mean_interval(list(pairs.values()))

    def break_even(self, label: str, keep: float, budget: str = "epochs") -> float:
        """Trainings after which the scores paid off, in FLOPs; infinity for never."""
        if label == FULL:
            return 0.0
        score = self.interval(label, keep, budget, "score_flops").value
        train = self.interval(FULL, 1.0, budget, "train_flops").value
        return break_even(score, train, keep, budget)

    def cells(self) -> list[tuple[str, float, str]]:
        """(label, keep, budget), in the order of the table."""
        labels = self.labels
        cells = {(row.label, row.keep, row.budget) for row in self.rows}
        return sorted(
            cells, key=lambda c: (c[0] != FULL, c[2], -c[1], labels.index(c[0]))
        )

    def table(self) -> str:
        """Plain text: means over seeds, 95 % intervals in brackets."""
        if not self.rows:
            return "nothing measured\n"
        n = len(self.seeds)
        return plain(
            [self._cells_of(*cell) for cell in self.cells()],
            f"\n{n} seed{'s' if n > 1 else ''}; means over seeds, 95 % intervals in "
            "brackets. '- random': paired difference in points of accuracy. GFLOP and "
            "s hold the scores and the trainings for them.",
            "'pays after': trainings on the subset until the scores have paid off.",
        )

    def _cells_of(self, label: str, keep: float, budget: str) -> dict[str, str]:
        where = (label, keep, budget)
        shown = {"budget": budget, "keep": f"{keep:g}", "run": label}
        if label == FULL:
            shown["budget"] = "-"
        shown["accuracy %"] = percent(self.interval(*where))
        shown["- random"] = "-"
        has_random = any(
            (r.label, r.keep, r.budget) == (RANDOM, keep, budget) for r in self.rows
        )
        if label not in (RANDOM, FULL) and has_random:
            shown["- random"] = percent(self.difference(*where), sign=True)
        for metric, name in (("worst_class", "worst %"), ("ece", "ece %")):
            shown[name] = f"{100 * self.interval(*where, metric).value:.1f}"
        for metric, name in (("flipped_kept", "noise %"), ("copies_kept", "copies %")):
            if getattr(self.rows[0], metric) is not None:
                shown[name] = f"{100 * self.interval(*where, metric).value:.0f}"
        shown["GFLOP"] = _short(self.interval(*where, "flops").value / 1e9)
        shown["s"] = _short(self.interval(*where, "seconds").value)
        pays = self.break_even(*where)
        shown["pays after"] = _short(pays)
        if math.isinf(pays):
            shown["pays after"] = "never"
        elif not pays > 0:  # no scores, nothing to pay
            shown["pays after"] = "-"
        return shown

    def refuse_other_settings(self, settings: dict[str, Any], where: str) -> None:
        """ValueError if the rows were measured with other settings."""
        plain = json.loads(json.dumps(settings))
        changed = sorted(k for k in plain if plain[k] != self.settings.get(k))
        if changed:
            name = changed[0]
            raise ValueError(
                f"{where} was measured with {name} = {self.settings.get(name)!r}, not "
                f"{plain[name]!r}: give another --out"
            )

    def to_json(self) -> str:
        """What `load_comparison` reads back."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    def save(self, folder: Path) -> None:
        """Writes compare.json."""
        RunFolder(folder).write_text("compare.json", self.to_json())


def load_comparison(folder: Path) -> Comparison:
    """The comparison that `save` wrote; `folder` may also be the file itself.

    Raises FileNotFoundError, and ValueError for a damaged file.
    """
    path = Path(folder)
    path = path if path.suffix == ".json" else path / "compare.json"
    content = read_json(path)
    try:
        rows = [_row(row) for row in content["rows"]]
        tables = content["settings"], content["provenance"]
        if not all(isinstance(table, dict) for table in tables):
            raise TypeError("settings and provenance are tables")
        return Comparison(tables[0], rows, tables[1])
    except MALFORMED as error:
        raise damaged(path, error) from error


def merge(parts: Sequence[Comparison]) -> Comparison:
    """All rows of comparisons with equal settings; ValueError for a row twice."""
    if not parts:
        raise ValueError("nothing to merge: give at least one comparison")
    first, seen, rows = parts[0], set(), []
    for part in parts:
        part.refuse_other_settings(first.settings, "a part")
        for row in part.rows:
            if row.key in seen:
                raise ValueError(f"two parts hold the run {row.key}")
            seen.add(row.key)
            rows.append(row)
    return Comparison(first.settings, rows, first.provenance)


def _row(table: dict[str, Any]) -> Row:
    """A row whose values have the types that they should."""
    values = {f.name: table[f.name] for f in fields(Row)}
    kinds = {"seed": int, "n": int, "steps": int, "label": str, "budget": str}
    optional = ("flipped_kept", "copies_kept")
    for name, value in values.items():
        kind = kinds.get(name, (int, float))
        if value is None and name in optional:
            continue
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}")
    return Row(**values)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"
