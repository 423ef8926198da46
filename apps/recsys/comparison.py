"""What a comparison measured: intervals, paired differences, a table, files.

An interval over seeds says how far other trainings would move a mean, one over users,
of their means over seeds, how far other users of the same kind would.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apps.common.runs import RunFolder
from apps.common.statistics import Interval, mean_interval, paired_interval
from apps.common.tables import aligned, shown
from apps.recsys import metrics
from apps.recsys.result import CHOSEN_BY


@dataclass(frozen=True)
class Comparison:
    """Measured values of every label.

    values: {label: {metric or cost: one value a seed}}. users: {label: {metric: [U]
    float64, means over seeds}}, NaN for users without test items. chosen: {label: the
    settings that won}. trials: {label: [{"settings", "value"}, ...]} on validation.
    baseline: label that differences refer to; added: labels that were not asked for.
    notes: what was left out, and why.
    """

    seeds: tuple[int, ...]
    values: dict[str, dict[str, list[float]]]
    users: dict[str, dict[str, np.ndarray]]
    chosen: dict[str, dict[str, Any]]
    trials: dict[str, list[dict[str, Any]]]
    baseline: str
    added: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def interval(self, label: str, metric: str = CHOSEN_BY) -> Interval:
        """Mean over seeds with its 95 % interval (Student t)."""
        return mean_interval(self._of(self.values, label, metric))

    def difference(
        self, label: str, metric: str = CHOSEN_BY, baseline: str | None = None
    ) -> Interval:
        """Mean of label - baseline over seeds, paired, with its 95 % interval."""
        other = self._of(self.values, baseline or self.baseline, metric)
        return paired_interval(self._of(self.values, label, metric), other)

    def difference_over_users(
        self, label: str, metric: str = CHOSEN_BY, baseline: str | None = None
    ) -> Interval:
        """The same difference, paired by user."""
        name = baseline or self.baseline
        ours, theirs = (
            {metric: self._of(self.users, one, metric)} for one in (label, name)
        )
        return metrics.compare(ours, theirs)[metric]

    def _of(self, table: Mapping[str, Mapping[str, Any]], label: str, name: str) -> Any:
        if label not in table:
            raise ValueError(f"no run is labelled {label!r}; {list(table)} are")
        if name not in table[label]:
            raise ValueError(f"no metric {name!r}; {list(table[label])} exist")
        return table[label][name]

    def rows(self) -> list[dict[str, str]]:
        """The table's cells, one row a label, best first."""
        ordered = sorted(self.values, key=lambda name: -self.interval(name).value)
        return [self._row(label) for label in ordered]

    def _row(self, label: str) -> dict[str, str]:
        row = {"run": label + (" *" if label in self.added else "")}
        row["ndcg@20"] = shown(self.interval(label), 4)
        for over, difference in (
            ("seeds", self.difference), ("users", self.difference_over_users),
        ):  # fmt: skip
            cell = "-" if label == self.baseline else shown(difference(label), 4, True)
            row[f"- {self.baseline}, {over}"] = cell
        for metric in ("recall@20", "ndcg@10", "coverage@20"):
            row[metric] = f"{self.interval(label, metric).value:.4f}"
        row["kB"] = f"{self.interval(label, 'bytes_on_disk').value / 1e3:,.0f}"
        row["train s"] = f"{self.interval(label, 'train_seconds').value:.1f}"
        row["trials"] = str(len(self.trials[label]))
        return row

    def table(self) -> str:
        """Plain text: means over seeds, 95 % intervals in brackets."""
        lines = aligned(self.rows())
        n = len(self.seeds)
        lines.append(
            f"\n{n} seeds, one split; means over seeds with 95 % intervals. "
            f"'- {self.baseline}' is the difference in NDCG@20, paired by seed or by "
            "user. Settings were chosen by NDCG@20 on validation, in as many trials as "
            "the last column says (0: taken as they are)."
        )
        if self.added:
            lines.append("* baseline, always included.")
        lines += self.notes
        return "\n".join(line.rstrip() for line in lines) + "\n"

    def save(self, folder: Path) -> None:
        """Writes users.safetensors, compare.json and compare.txt."""
        run_folder = RunFolder(folder)
        tensors = {
            f"{label}:{metric}": torch.from_numpy(value)
            for label, of_label in self.users.items()
            for metric, value in of_label.items()
        }
        run_folder.write_tensors("users.safetensors", tensors)
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        del content["users"]
        run_folder.write_text("compare.json", json.dumps(content, indent=1) + "\n")
        run_folder.write_text("compare.txt", self.table())


def load_comparison(folder: Path) -> Comparison:
    """The comparison that `save` wrote."""
    path = Path(folder) / "compare.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no comparison in {folder}: run `compare --out {folder}` first"
        )
    tensors, _ = RunFolder(folder).read_tensors("users.safetensors")
    users: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        label, _, metric = name.rpartition(":")
        users.setdefault(label, {})[metric] = tensor.numpy()
    try:
        content = json.loads(path.read_text("utf-8"))
        for name in ("seeds", "added", "notes"):
            content[name] = tuple(content[name])
        return Comparison(users=users, **content)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}; run `compare` again") from error
