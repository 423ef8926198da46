"""Files that are either the old or the new one, never half of one."""

import errno
import os
import secrets
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


def write(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Create or replace a file by what `fill` writes.

    The content goes to a temporary file beside it, reaches the disk (fsync) and takes
    the name in one step. A crash at any time leaves the old file, or the new one.

    Raises OSError that names the file and the fix (disk full, read-only folder); the
    old file is kept.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unique = f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        with open(path.parent / unique, "xb") as file:
            temporary = path.parent / unique
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        if temporary is not None:
            _remove(temporary)


def write_bytes(path: Path, content: bytes) -> None:
    """`write` for content in memory."""
    write(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """`write` for UTF-8 text; line ends are kept as they are."""
    write_bytes(path, text.encode("utf-8"))


def require_writable(path: Path) -> None:
    """OSError that names the fix if neither `path` nor a file in it could be written.

    Nothing is made: the nearest folder that is there is tried. So a long work is
    refused before it begins.
    """
    path = Path(path)
    try:
        folder = next(p for p in (path, *path.parents) if p.exists())
        if folder.is_file() and folder == path:  # it would be replaced
            folder = path.parent
        handle, name = tempfile.mkstemp(prefix=".writable-", dir=folder)
        os.close(handle)
        os.unlink(name)
    except OSError as error:
        raise explained(error, path) from error


def explained(error: OSError, path: Path) -> OSError:
    """The error of a file that could not be written, with its name and the fix."""
    fixes = {
        errno.ENOSPC: "the disk is full: free some space",
        errno.EDQUOT: "your quota is used up: free some space",
        errno.EFBIG: "the file would exceed the size limit (ulimit -f): raise it",
        errno.EROFS: "the folder is read-only: choose another",
        errno.EACCES: "no permission to write there: choose another folder",
        errno.EPERM: "no permission to write there: choose another folder",
        errno.ENOTDIR: "a part of the path is a file, not a folder: choose another",
        errno.EEXIST: "a part of the path is a file, not a folder: choose another",
        errno.EISDIR: "it is a folder: remove it, or choose another name",
        errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    }
    fix = fixes.get(error.errno or 0) or error.strerror or str(error)
    return OSError(error.errno, f"cannot write {path}: {fix}")


def _sync_folder(folder: Path) -> None:
    """Makes the new name durable, where the system has folders that can be synced."""
    if os.name != "posix":
        return
    with suppress(OSError):  # an unreadable folder, some network file systems
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    with suppress(OSError):  # the first error is the one to report
        path.unlink()
