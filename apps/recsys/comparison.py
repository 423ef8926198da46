"""What a comparison measured: intervals, paired differences, a table, files.

An interval over seeds says how far other trainings would move a mean, one over users,
of their means over seeds, how far other users of the same kind would.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from apps.common import comparison as common
from apps.common.runs import RunFolder
from apps.common.statistics import Interval
from apps.common.tables import plain, shown
from apps.recsys import metrics
from apps.recsys.result import CHOSEN_BY


@dataclass(frozen=True, kw_only=True)
class Comparison(common.Comparison):
    """Measured values of every label, see `apps.common.comparison`.

    users: {label: {metric: [U] float64, means over seeds}}, NaN for users without test
    items. configs: the settings that won, of a baseline those of the model. trials:
    {label: [{"settings", "value"}, ...]} on validation. notes: what was left out, and
    why.
    """

    METRIC: ClassVar[str] = CHOSEN_BY

    users: dict[str, dict[str, np.ndarray]]
    trials: dict[str, list[dict[str, Any]]]
    notes: tuple[str, ...] = ()

    def difference_over_users(
        self, label: str, metric: str = CHOSEN_BY, baseline: str | None = None
    ) -> Interval:
        """The same difference, paired by user."""
        ours, theirs = (
            {metric: common.measured_of(self.users, name, metric)}
            for name in (label, baseline or self.baseline)
        )
        return metrics.compare(ours, theirs)[metric]

    def rows(self) -> list[dict[str, str]]:
        """The table's cells, one row a label, best first."""
        ordered = sorted(self.values, key=lambda name: -self.interval(name).value)
        return [self._row(label) for label in ordered]

    def _row(self, label: str) -> dict[str, str]:
        row = {"run": label + (" *" if label in self.added else "")}
        row["ndcg@20"] = _cell(self.interval(label))
        for over, difference in (
            ("seeds", self.difference), ("users", self.difference_over_users),
        ):  # fmt: skip
            cell = "-" if label == self.baseline else _cell(difference(label), True)
            row[f"- {self.baseline}, {over}"] = cell
        for metric in ("recall@20", "ndcg@10", "coverage@20"):
            row[metric] = f"{self.interval(label, metric).value:.4f}"
        row["kB"] = f"{self.interval(label, 'bytes_on_disk').value / 1e3:,.0f}"
        row["train s"] = f"{self.interval(label, 'train_seconds').value:.1f}"
        row["trials"] = str(len(self.trials[label]))
        return row

    def table(self) -> str:
        """Plain text: means over seeds, 95 % intervals in brackets."""
        n = len(self.seeds)
        notes = [
            f"\n{n} seeds, one split; means over seeds with 95 % intervals. "
            f"'- {self.baseline}' is the difference in NDCG@20, paired by seed or by "
            "user. Settings were chosen by NDCG@20 on validation, in as many trials as "
            "the last column says (0: taken as they are)."
        ]
        if any(len(set(found[CHOSEN_BY])) == 1 for found in self.values.values()):
            notes.append("Without brackets: what does not depend on the seed.")
        if self.added:
            notes.append("* baseline, always included.")
        return plain(self.rows(), *notes, *self.notes)

    def content(self) -> dict[str, Any]:
        return {
            f.name: getattr(self, f.name) for f in fields(self) if f.name != "users"
        }

    def save(self, folder: Path) -> None:
        """Writes users.safetensors, compare.json and compare.txt."""
        tensors = {
            f"{label}:{metric}": torch.from_numpy(value)
            for label, of_label in self.users.items()
            for metric, value in of_label.items()
        }
        RunFolder(folder).write_tensors("users.safetensors", tensors)
        super().save(folder)


def _cell(interval: Interval, sign: bool = False) -> str:
    """An interval; the value alone if all seeds gave the same."""
    if math.isclose(interval.low, interval.high, abs_tol=1e-12):
        return f"{interval.value + 0.0:{'+' if sign else ''}.4f}"
    return shown(interval, 4, sign)


def load_comparison(folder: Path) -> Comparison:
    """The comparison that `save` wrote."""
    common.read_json(Path(folder) / "compare.json")
    tensors, _ = RunFolder(folder).read_tensors("users.safetensors")
    users: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        label, _, metric = name.rpartition(":")
        users.setdefault(label, {})[metric] = tensor.numpy()
    return Comparison.load(folder, users=users)
