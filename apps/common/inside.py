"""Files of a service's folder, and never others.

A ledger or a receipt may be forged: a path in it may be absolute, climb with "..", or
lead through a link. Each step is opened without following links, from the folder down,
so nothing outside is read or removed, even if a folder is exchanged meanwhile.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import file_digest
from pathlib import Path, PurePosixPath


class Unsafe(ValueError):
    """A path that leads, or may lead, out of the folder."""


def require_inside(path: str) -> tuple[str, ...]:
    """The steps of a relative path with forward slashes. Raises Unsafe for any other.

    >>> require_inside("models/0001.safetensors")
    ('models', '0001.safetensors')
    """
    parts = tuple(path.split("/"))
    odd = "\\" in path or "\0" in path or PurePosixPath(path).is_absolute()
    if odd or any(part in ("", ".", "..") for part in parts) or ":" in parts[0]:
        raise Unsafe(f"{path!r:.100} is no path within the folder")
    return parts


def digest(root: Path, path: str) -> str | None:
    """SHA-256, in hex, of a file's content; None if there is none."""
    with _opened(root, path) as (folder, name):
        if folder is None:
            return None
        try:
            # Without waiting: a pipe would hold us for ever.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            handle = os.open(name, flags, dir_fd=folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _refused(path, error) from None
        try:
            _require_regular(os.fstat(handle), path)
        except Unsafe:  # a folder cannot be opened as a file
            os.close(handle)
            raise
        with open(handle, "rb") as file:
            return file_digest(file, "sha256").hexdigest()


def size_and_links(root: Path, path: str) -> tuple[int, int] | None:
    """Bytes of a file and how many names it has; None if there is none."""
    with _opened(root, path) as (folder, name):
        if folder is None:
            return None
        found = _stat(folder, name, path)
        return None if found is None else (found.st_size, found.st_nlink)


def remove(root: Path, path: str) -> bool:
    """Removes a regular file, for good when it returns; False if there was none."""
    with _opened(root, path) as (folder, name):
        if folder is None:
            return False
        if _stat(folder, name, path) is None:
            return False
        os.unlink(name, dir_fd=folder)
        with suppress(OSError):  # some network file systems
            os.fsync(folder)
        return True


def files(root: Path) -> Iterator[str]:
    """Relative paths of all regular files in the folder; links are not followed."""
    for folder, _, names in os.walk(root, followlinks=False):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink() and path.is_file():
                yield path.relative_to(root).as_posix()


@contextmanager
def _opened(root: Path, path: str) -> Iterator[tuple[int | None, str]]:
    """The folder of a path, opened step by step, and the file's name in it."""
    *above, name = require_inside(path)
    if os.open not in os.supports_dir_fd:
        raise OSError("this system cannot open a file relative to a folder (Windows)")
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for step in above:
            try:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                below = os.open(step, flags, dir_fd=handle)
            except FileNotFoundError:
                yield None, name
                return
            except OSError as error:
                raise _refused(path, error) from None
            os.close(handle)
            handle = below
        yield handle, name
    finally:
        os.close(handle)


def _stat(folder: int, name: str, path: str) -> os.stat_result | None:
    """Of a regular file; None if there is none."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    _require_regular(found, path)
    return found


def _require_regular(found: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Unsafe(f"{path!r} is no regular file")


def _refused(path: str, error: OSError) -> Exception:
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return Unsafe(f"{path!r} leads through a link, or a file in place of a folder")
    return error
