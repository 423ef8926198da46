"""The folder of a service: made, kept for one process at a time, its files measured."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apps.common import inside
from apps.common.config import parse, refuse_other_settings, settings, to_toml
from apps.unlearning.config import Config
from sparsekit import atomic

KEPT = ("ledger.sqlite", "lock.sqlite", "key.pem", "public.pem", "salt", "config.toml")
FOLDERS = ("models", "shards", "work", "receipts")


def make(folder: Path) -> None:
    """Ours alone; one that holds anything else is refused."""
    if folder.is_file():
        raise ValueError(f"{folder} is a file: give a folder for the service")
    if folder.is_dir():
        others = [
            path.name
            for path in folder.iterdir()
            if not path.name.startswith((*KEPT, *FOLDERS, "."))
        ]
        if others:
            raise ValueError(f"{folder} holds {others[0]!r}: give an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o700)


def keep_config(folder: Path, config: Config) -> None:
    """Writes config.toml, or refuses other settings than those in it."""
    path = folder / "config.toml"
    if path.is_file():
        before = parse(Config, ["--config", str(path)])
        refuse_other_settings(config, settings(before), folder)
    else:
        atomic.write_text(path, to_toml(config))


def require_foreign(path: str) -> None:
    """ValueError for a file that is the service's own: it lists these itself."""
    if path in KEPT or path.split("/")[0] in FOLDERS:
        raise ValueError(f"{path} is the service's own: it cannot be registered")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time; the system gives a lock back when its holder is killed."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no service in {folder}: make one with `setup`")
    connection = sqlite3.connect(folder / "lock.sqlite", timeout=0)
    try:
        connection.isolation_level = None
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise ValueError(
                f"{folder} is in use by another process ({error}): wait for it"
            ) from None
        yield
    finally:
        connection.close()


def hash_and_size(folder: Path, path: str) -> tuple[str, int]:
    """SHA-256 and bytes of a file in the folder. Raises FileNotFoundError."""
    content = inside.digest(folder, path)
    found = inside.size_and_links(folder, path)
    if content is None or found is None:
        raise FileNotFoundError(f"no file {path} in {folder}")
    return content, found[0]
