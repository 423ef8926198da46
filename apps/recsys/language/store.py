"""Replies kept by the hash of the question, in one SQLite file.

    with Store(path) as store:
        store.sending(key)           # before the question leaves
        store.put(key, reply)        # when its answer is here; durable when it returns
        store.get(key)               # the same text, in any later run

A run that is killed at any point finds every reply that had been put. Keys are hashes
of questions; the questions themselves, which hold histories, are not kept. The file is
readable by its owner alone. Several processes may share it.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION = 1
TABLES = """
CREATE TABLE replies (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sent (key TEXT PRIMARY KEY) WITHOUT ROWID;
"""


class Store:
    """One file of replies. path: created if it is missing, with its folder.

    Raises ValueError if the file is no store of this version, OSError if it cannot be
    opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.found = 0  # answers to `get` so far
        self.path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        self._connection = sqlite3.connect(
            self.path, timeout=60, isolation_level=None, check_same_thread=False
        )
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self.close()
            raise ValueError(
                f"{self.path} is no store of replies, or a damaged one ({error}): move "
                "it away, or name another file"
            ) from None
        except ValueError:
            self.close()
            raise

    def _open(self) -> None:
        # A commit reaches the disk before `put` returns: replies cost money.
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        with self._transaction():
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            tables = self._connection.execute("SELECT 1 FROM sqlite_master").fetchone()
            if version == 0 and tables is None:
                for statement in TABLES.split(";"):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise ValueError(
                    f"{self.path} has version {version}, not {VERSION}: it is another "
                    "program's, or an older one's; name another file"
                )

    def get(self, key: str) -> str | None:
        """The value that was put under this key."""
        row = self._connection.execute(
            "SELECT value FROM replies WHERE key = ?", (key,)
        ).fetchone()
        self.found += row is not None
        return None if row is None else str(row[0])

    def sending(self, key: str) -> None:
        """Notes that a question leaves: if no reply is put, it counts as `lost`."""
        self._connection.execute("INSERT OR IGNORE INTO sent VALUES (?)", (key,))

    def put(self, key: str, value: str) -> None:
        """Keeps a value; the first one of a key stays."""
        with self._transaction():
            self._connection.execute(
                "INSERT OR IGNORE INTO replies VALUES (?, ?)", (key, value)
            )
            self._connection.execute("DELETE FROM sent WHERE key = ?", (key,))

    def failed(self, key: str) -> None:
        """Notes that a question that was sent has no reply: it may be asked again."""
        self._connection.execute("DELETE FROM sent WHERE key = ?", (key,))

    def lost(self) -> set[str]:
        """Questions that left, and of which nobody knows whether they were answered.

        A process that is killed leaves at most as many as it asks at a time. They are
        asked again, and may be paid for twice.
        """
        rows = self._connection.execute("SELECT key FROM sent")
        return {str(row[0]) for row in rows}

    def __len__(self) -> int:
        """Number of replies."""
        row = self._connection.execute("SELECT count(*) FROM replies").fetchone()
        return int(row[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
