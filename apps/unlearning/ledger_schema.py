"""Tables of the ledger, and how its file is opened.

subject -> records -> models trained on them -> files derived from these. Of a subject
there is an opaque id alone, as given or hashed; of a record its index.
"""

import os
import sqlite3
from pathlib import Path

VERSION = 1
APPLICATION = 0x756E6C72  # "unlr": tells our files from other programs'

TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE subjects (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE records (
  record INTEGER NOT NULL CHECK (record >= 0),
  subject INTEGER NOT NULL REFERENCES subjects,
  PRIMARY KEY (record, subject)
) WITHOUT ROWID;
CREATE INDEX records_of_subject ON records (subject);

CREATE TABLE batches (
  id INTEGER PRIMARY KEY,
  state TEXT NOT NULL CHECK (state IN ('running', 'done', 'verified', 'failed')),
  settings TEXT NOT NULL,
  base INTEGER NOT NULL REFERENCES artefacts,
  result INTEGER REFERENCES artefacts,
  facts TEXT,
  audit TEXT,
  started TEXT NOT NULL,
  finished TEXT
);
CREATE UNIQUE INDEX one_open_batch ON batches ((1)) WHERE state IN ('running', 'done');

CREATE TABLE artefacts (
  id INTEGER PRIMARY KEY,
  path TEXT NOT NULL UNIQUE,
  sha256 TEXT NOT NULL CHECK (length(sha256) = 64),
  bytes INTEGER NOT NULL CHECK (bytes >= 0),
  kind TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('live', 'retired', 'wiped')),
  created TEXT NOT NULL,
  wiped TEXT
);
CREATE TABLE derived (
  child INTEGER NOT NULL REFERENCES artefacts,
  parent INTEGER NOT NULL REFERENCES artefacts CHECK (parent <> child),
  PRIMARY KEY (child, parent)
) WITHOUT ROWID;
CREATE TABLE trained_on (
  artefact INTEGER NOT NULL REFERENCES artefacts,
  record INTEGER NOT NULL,
  PRIMARY KEY (artefact, record)
) WITHOUT ROWID;

CREATE TABLE requests (
  id TEXT PRIMARY KEY,
  subject INTEGER NOT NULL REFERENCES subjects
) WITHOUT ROWID;
CREATE TABLE request_records (
  request TEXT NOT NULL REFERENCES requests,
  record INTEGER NOT NULL,
  PRIMARY KEY (request, record)
) WITHOUT ROWID;
CREATE TABLE batch_requests (
  batch INTEGER NOT NULL REFERENCES batches,
  request TEXT NOT NULL REFERENCES requests,
  PRIMARY KEY (batch, request)
) WITHOUT ROWID;

CREATE TABLE states (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  request TEXT NOT NULL REFERENCES requests,
  state TEXT NOT NULL
    CHECK (state IN ('received', 'running', 'done', 'verified', 'failed')),
  at TEXT NOT NULL,
  note TEXT NOT NULL
);
CREATE INDEX states_of_request ON states (request, id);
CREATE TRIGGER states_stay BEFORE UPDATE ON states
  BEGIN SELECT RAISE(ABORT, 'the log of states is append-only'); END;
CREATE TRIGGER states_remain BEFORE DELETE ON states
  BEGIN SELECT RAISE(ABORT, 'the log of states is append-only'); END;

CREATE TABLE receipts (
  number INTEGER PRIMARY KEY,
  batch INTEGER NOT NULL UNIQUE REFERENCES batches,
  content TEXT NOT NULL
);
CREATE TRIGGER receipts_stay BEFORE UPDATE ON receipts
  BEGIN SELECT RAISE(ABORT, 'receipts are append-only'); END;
CREATE TRIGGER receipts_remain BEFORE DELETE ON receipts
  BEGIN SELECT RAISE(ABORT, 'receipts are append-only'); END;
"""


def connect(path: Path, create: bool) -> sqlite3.Connection:
    """An open ledger, in write-ahead mode, with foreign keys enforced.

    create: makes the file, readable by its owner alone, if it is missing. Raises
    FileNotFoundError, and ValueError for a file that is no ledger of this version.
    """
    if not path.is_file():
        if not create:
            raise FileNotFoundError(f"no ledger at {path}: make one with `setup`")
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    try:
        _open(connection, path, create)
    except sqlite3.OperationalError as error:
        connection.close()
        raise ValueError(
            f"{path} cannot be read or written ({error}): nothing was changed; is the "
            "disk full, or the folder read-only?"
        ) from None
    except sqlite3.DatabaseError as error:
        connection.close()
        raise ValueError(
            f"{path} is no ledger, or a damaged one ({error}): restore your backup"
        ) from None
    except BaseException:
        connection.close()
        raise
    return connection


def _open(connection: sqlite3.Connection, path: Path, create: bool) -> None:
    # A commit reaches the disk before it returns: a request must not be lost.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        empty = connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None
        if empty and create:
            for statement in _statements():
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
        elif application != APPLICATION:
            raise ValueError(f"{path} is a file of another program: name the ledger")
        elif version > VERSION:
            raise ValueError(
                f"{path} has version {version}, this program reads {VERSION}: a newer "
                "sparsekit wrote it, use that one"
            )
        elif version < VERSION:
            raise ValueError(
                f"{path} has version {version}, this program reads {VERSION} and does "
                "not convert: use the sparsekit that wrote it"
            )
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _statements() -> list[str]:
    """The statements one by one: `executescript` would commit before each."""
    found, lines = [], ""
    for line in TABLES.splitlines(keepends=True):
        lines += line
        if sqlite3.complete_statement(lines):
            found.append(lines)
            lines = ""
    return found
