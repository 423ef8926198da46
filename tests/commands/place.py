"""Folders in which the verbs run, and the small runs that the cells share."""

import csv
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from tests.commands.child import Done, Trouble, run
from tests.commands.rows import ROWS


def words(name: str, text: str) -> list[str]:
    return [*name.split(), *text.split()]


class Place:
    """Folders with the inputs, and with what verbs need that come first."""

    def __init__(self, root: Path):
        self.root, self.made, self.n = root, {}, 0
        inputs = root / "inputs"
        inputs.mkdir(parents=True)
        digits = load_digits()
        np.savez(
            inputs / "digits.npz", y=digits.target[:600],
            x=digits.images[:600].astype(np.float32),
        )  # fmt: skip
        (inputs / "bad.toml").write_text("epocs = 3\n")
        rows = [(f"s-{i % 12}", i) for i in range(600)]
        _table(inputs / "subjects.csv", ("subject", "record"), rows)
        _table(inputs / "more.csv", ("subject", "record"), [("s-99", 1)])
        rng = np.random.default_rng(0)
        users, items = np.nonzero(rng.random((40, 60)) < 0.25)
        log = [(f"u{u}", f"i{i}", t) for t, (u, i) in enumerate(zip(users, items))]  # noqa: B905
        header = ("user_id", "item_id", "timestamp")
        _table(inputs / "log.csv", header, log)
        _table(inputs / "today.csv", header, [("u0", "i1", 9999), ("new", "i2", 9999)])
        self.made[()] = inputs

    def after(self, steps: tuple[str, ...]) -> Path:
        """A folder in which these verbs have run."""
        if steps not in self.made:
            *before, last = steps
            chain = (*ROWS[last].after, last) if not before else steps
            if chain != steps:
                self.made[steps] = self.after(chain)
                return self.made[steps]
            folder = self.copy(self.after(tuple(before)))
            done = ran(last, folder)
            assert done.status == 0, (last, done.err)
            self.made[steps] = folder
        return self.made[steps]

    def copy(self, template: Path) -> Path:
        self.n += 1
        folder = self.root / f"{self.n}"
        shutil.copytree(template, folder)
        return folder

    def cell(self, name: str) -> Path:
        """A fresh folder in which the verb can run."""
        row = ROWS[name]
        folder = self.copy(self.after(row.after))
        if row.prepare is not None:
            row.prepare(folder)
        return folder

    @cache  # noqa: B019
    def small(self, name: str) -> tuple[Done, Path, set[Path]]:
        """The small run: how it ended, where, and which files it made or changed."""
        folder = self.cell(name)
        before = files(folder)
        done = ran(name, folder)
        after = files(folder)
        changed = {path for path in after if after[path] != before.get(path)}
        return done, folder, changed


def ran(
    name: str, folder: Path, text: str | None = None, trouble: Trouble | None = None
) -> Done:
    """A verb with the words of its small run, or others, in a folder."""
    row = ROWS[name]
    known = dict((trouble or Trouble()).environ)
    environ = tuple((dict(row.environ) | known).items())
    hindered = replace(trouble or Trouble(), environ=environ)
    return run(words(name, row.words if text is None else text), folder, hindered)


def _table(path: Path, header: tuple, rows: list) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def files(folder: Path) -> dict[Path, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}
