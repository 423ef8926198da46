"""The map of personal data: subject -> records -> models -> files derived from these.

    with DataMap(folder / "ledger.sqlite") as data:
        data.add_subjects([("a1f3", 17), ("a1f3", 18)])
        data.artefacts_with([17, 18])        # models, and all that derives from them

Every method that writes is one transaction, on the disk when it returns.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from apps.unlearning.ledger_schema import connect
from sparsekit.spelling import choice

# What may be made from a model. An unlearned model is not among these: it is listed
# with the records that it was left with, and its line of descent ends there.
DERIVED = ("pruned", "export", "checkpoint", "optimizer", "scores", "copy", "other")
KINDS = ("model", "unlearned", *DERIVED)
_FILE = "id, path, sha256, bytes, kind, state"


@dataclass(frozen=True)
class Artefact:
    """A file of the folder. state: live, retired (to be wiped), wiped."""

    id: int
    path: str
    sha256: str
    bytes: int
    kind: str
    state: str


class DataMap:
    """One SQLite file; several processes may read and write it.

    Raises FileNotFoundError if it is missing (unless `create`), ValueError for a file
    that is no ledger of this version.
    """

    def __init__(self, path: Path, create: bool = False) -> None:
        self.path = path
        self._db = connect(path, create)

    # facts

    def fact(self, name: str) -> str:
        row = self._one("SELECT value FROM facts WHERE name = ?", name)
        if row is None:
            raise ValueError(f"{self.path} lacks {name!r}: run `setup` to its end")
        return str(row[0])

    def is_installed(self) -> bool:
        """Whether `setup` came to its end."""
        return self._one("SELECT 1 FROM facts WHERE name = 'current'") is not None

    def _set(self, facts: dict[str, str]) -> None:
        self._many("INSERT OR REPLACE INTO facts VALUES (?, ?)", facts.items())

    # subjects and their records

    def add_subjects(self, pairs: Iterable[tuple[str, int]]) -> int:
        """Adds (subject, record) pairs, all or none; how many were new."""
        with self.transaction():
            before = self._count("records")
            self._add_subjects(pairs)
            return self._count("records") - before

    def _add_subjects(self, pairs: Iterable[tuple[str, int]]) -> None:
        for name, record in pairs:
            self._db.execute(
                "INSERT OR IGNORE INTO subjects (name) VALUES (?)", (name,)
            )
            self._db.execute(
                "INSERT OR IGNORE INTO records SELECT ?, id FROM subjects "
                "WHERE name = ?",
                (record, name),
            )

    def records_of(self, subject: str) -> list[int]:
        """Record indices of a subject, ascending; ValueError for an unknown one."""
        rows = self._all(
            "SELECT record FROM records JOIN subjects ON subjects.id = subject "
            "WHERE name = ? ORDER BY record", subject,
        )  # fmt: skip
        if not rows:
            raise ValueError(
                "this subject is not in the ledger: import the mapping that names it, "
                "or check the spelling"
            )
        return [row[0] for row in rows]

    def knows(self, subject: str) -> bool:
        """Whether a subject is in the map."""
        return self._one("SELECT 1 FROM subjects WHERE name = ?", subject) is not None

    def counts(self) -> dict[str, int]:
        """Rows of the main tables."""
        names = ("subjects", "records", "requests", "artefacts", "receipts")
        return {name: self._count(name) for name in names}

    def install(
        self, file: tuple[str, str, int], trained_on: Iterable[int],
        facts: dict[str, str], pairs: Iterable[tuple[str, int]], at: str,
    ) -> None:  # fmt: skip
        """The first model, file = (path, SHA-256, bytes), what is known of it, and the
        (subject, record) pairs: with this the ledger is set up."""
        with self.transaction():
            number = self._add(*file, "model", at, (), trained_on)
            self._set(facts | {"current": str(number)})
            self._add_subjects(pairs)

    # files

    def add_artefact(
        self, path: str, sha256: str, n_bytes: int, kind: str, at: str,
        *, parents: Sequence[int] = (), trained_on: Iterable[int] = (),
    ) -> int:  # fmt: skip
        """Lists a file; its number. A path that is listed keeps its number.

        What derives from a retired or wiped file is retired from the start. Raises
        ValueError for a path that is listed with another content.
        """
        if kind not in KINDS:
            raise ValueError(choice(f"kind {kind!r} is unknown", kind, KINDS))
        with self.transaction():
            number = self._add(path, sha256, n_bytes, kind, at, parents, trained_on)
            above = [self.artefact(parent) for parent in parents]
            if any(parent is not None and parent.state != "live" for parent in above):
                self._retire([number])
            return number

    def _add(
        self, path: str, sha256: str, n_bytes: int, kind: str, at: str,
        parents: Sequence[int], trained_on: Iterable[int],
    ) -> int:  # fmt: skip
        old = self.artefact(path)
        if old is not None:
            if (old.sha256, old.state) != (sha256, "live"):
                raise ValueError(
                    f"{path} is listed already ({old.state}, SHA-256 "
                    f"{old.sha256[:12]}...): give the new file another name"
                )
            number = old.id
        else:
            row = self._db.execute(
                "INSERT INTO artefacts (path, sha256, bytes, kind, state, created) "
                "VALUES (?, ?, ?, ?, 'live', ?)",
                (path, sha256, n_bytes, kind, at),
            )
            number = int(row.lastrowid or 0)
        self._many(
            "INSERT OR IGNORE INTO derived VALUES (?, ?)",
            ((number, parent) for parent in parents),
        )
        self._many(
            "INSERT OR IGNORE INTO trained_on VALUES (?, ?)",
            ((number, int(record)) for record in trained_on),
        )
        return number

    def artefact(self, name: str | int) -> Artefact | None:
        """By path or number."""
        column = "path" if isinstance(name, str) else "id"
        row = self._one(f"SELECT {_FILE} FROM artefacts WHERE {column} = ?", name)
        return None if row is None else Artefact(*row)

    def artefacts(self, state: str | None = None) -> list[Artefact]:
        """All files, or those in a state, in the order in which they came."""
        rows = self._all(
            f"SELECT {_FILE} FROM artefacts WHERE ?1 IS NULL OR state = ?1 ORDER BY id",
            state,
        )
        return [Artefact(*row) for row in rows]

    def trained_on(self, artefact: int) -> list[int]:
        """Record indices that a model was trained on, ascending."""
        rows = self._all(
            "SELECT record FROM trained_on WHERE artefact = ? ORDER BY record", artefact
        )
        return [row[0] for row in rows]

    def artefacts_with(self, records: Iterable[int]) -> list[Artefact]:
        """Files that were trained on one of the records, or derive from such a file.

        An unlearned model is not taken for a derivative of the model before it: it is
        listed by the records that it was left with.
        """
        wanted = json.dumps([int(record) for record in records])
        rows = self._all(
            f"""WITH RECURSIVE held (id) AS (
                  SELECT DISTINCT artefact FROM trained_on
                  WHERE record IN (SELECT value FROM json_each(?))
                  UNION
                  SELECT child FROM derived JOIN held ON parent = held.id
                  JOIN artefacts ON artefacts.id = child WHERE kind <> 'unlearned')
                SELECT {_FILE} FROM artefacts WHERE id IN held ORDER BY id""",
            wanted,
        )
        return [Artefact(*row) for row in rows]

    def _retire(self, artefacts: Iterable[int]) -> None:
        """Files, and all that derives from them but unlearned models."""
        self._db.execute(
            """WITH RECURSIVE held (id) AS (
                 SELECT value FROM json_each(?)
                 UNION
                 SELECT child FROM derived JOIN held ON parent = held.id
                 JOIN artefacts ON artefacts.id = child WHERE kind <> 'unlearned')
               UPDATE artefacts SET state = 'retired'
               WHERE id IN held AND state = 'live'""",
            (json.dumps(list(artefacts)),),
        )

    def mark_wiped(self, artefact: int, at: str) -> None:
        """A retired file is gone."""
        with self.transaction():
            self._db.execute(
                "UPDATE artefacts SET state = 'wiped', wiped = ? "
                "WHERE id = ? AND state = 'retired'", (at, artefact),
            )  # fmt: skip

    # SQLite

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written within it, or nothing.

        Raises ValueError if the file cannot be written: locked, full disk, read-only.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as error:
            raise ValueError(
                f"{self.path} cannot be written ({error}): nothing was changed; is the "
                "disk full, or the folder read-only?"
            ) from error

    def _one(self, sql: str, *values: Any) -> tuple | None:
        return self._db.execute(sql, values).fetchone()

    def _all(self, sql: str, *values: Any) -> list[tuple]:
        return self._db.execute(sql, values).fetchall()

    def _many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        self._db.executemany(sql, rows)

    def _count(self, table: str) -> int:
        return int(self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
