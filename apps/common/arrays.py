"""Arrays from files of others: nothing in them runs, nothing fills the memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np


@contextmanager
def open_arrays(path: Path, *required: str) -> Iterator[Any]:
    """An .npz file, checked: `with open_arrays(path, "x", "y") as arrays: arrays["x"]`.

    Pickled objects are refused, and so is a file whose arrays are larger than this
    machine's memory, before one is read: a compressed file of 10 MB can hold 10 GB.
    Raises FileNotFoundError; and ValueError that begins with the path, also for what
    the body finds wrong.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        if not is_zipfile(path):  # numpy would take it for a pickle
            raise ValueError("not an .npz file, or a damaged one")
        with np.load(path, allow_pickle=False) as arrays:
            _check(arrays, required)
            yield arrays
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # a damaged zip file raises nearly anything
        raise ValueError(f"{path}: not an .npz file, or a damaged one") from error


def _check(arrays: Any, required: tuple[str, ...]) -> None:
    missing = sorted(set(required) - set(arrays.files))
    if missing:
        usage = ", ".join(f"{name}=..." for name in required)
        raise ValueError(
            f"lacks {' and '.join(missing)}; it has {arrays.files}; "
            f"save it with np.savez(path, {usage})"
        )
    # A member is cut where its entry says that it ends: the entries bound what is read.
    claimed = sum(entry.file_size for entry in arrays.zip.infolist())
    if claimed > memory():
        raise ValueError(
            f"holds {claimed / 1e9:.1f} GB of arrays, more than this machine's memory"
        )


def memory() -> int:
    """Bytes of memory in this machine."""
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2**63  # Windows does not say: the allocation fails instead
