"""Arrays and a description in one memory-mapped file; numpy is all it needs.

    write(path, {"a": np.arange(3)}, {"version": 1})
    arrays, about = read(path)              # arrays are views of the file, read-only

The file is a safetensors file. Its metadata hold the description as JSON ("about") and
the SHA-256 of that text ("sha256"); the description holds the SHA-256 of every array,
so that one hash names the whole content.

Nothing in a file is believed, see `sparsekit.tensor_file`. The hashes tell damage, not
malice: who writes a file can hash it.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sparsekit import atomic, tensor_file
from sparsekit.tensor_file import (
    KINDS,
    LARGEST_HEADER,
    Arrays,
    DamagedFile,
    json_object,
)

_NAMES = {np.dtype(kind): name for name, kind in KINDS.items()}


def write(path: str | Path, arrays: Mapping[str, np.ndarray], about: dict) -> str:
    """Create or replace a file in one step; the hash that names its content.

    arrays: {name: array of integers or floats}. about: what JSON can hold, without the
    key "arrays". A reader that has the old file open keeps the old content.

    Raises ValueError for what such a file cannot hold, OSError if it cannot be written.
    """
    stored = {name: _stored(name, array) for name, array in arrays.items()}
    # Wide types first: every array is aligned to its own size.
    names = sorted(stored, key=lambda name: (-stored[name].itemsize, name))
    hashes = {name: _hash(stored[name]) for name in names}
    text = json.dumps(about | {"arrays": hashes}, allow_nan=False, ensure_ascii=False)
    name_of_all = hashlib.sha256(text.encode()).hexdigest()
    header: dict[str, Any] = {"__metadata__": {"about": text, "sha256": name_of_all}}
    end = 0
    for name in names:
        array = stored[name]
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    head = json.dumps(header, ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    if len(head) > LARGEST_HEADER:
        raise ValueError(f"the description takes {len(head):,} bytes: too many")

    def fill(file: BinaryIO) -> None:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in names:
            file.write(stored[name].data)

    atomic.write(Path(path), fill)
    return name_of_all


def read(path: str | Path) -> tuple[Arrays, dict[str, Any], str]:
    """{name: array}, the description, and the hash that names the content.

    Arrays are read-only views of the mapped file: pages are read when they are used,
    and processes share them. Replace the file as `write` does; a file that is cut while
    it is mapped takes the process down with it.

    Raises DamagedFile (a ValueError) naming what is wrong; OSError without a file.
    """
    with open(path, "rb") as file:
        empty = os.fstat(file.fileno()).st_size == 0  # which cannot be mapped
        content = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays, metadata = tensor_file.read(content)
    text, named = _described(metadata)
    about = json_object(text, "the description")
    _verify(arrays, about.pop("arrays", None))
    return arrays, about, named


def _stored(name: str, array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array)
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if array.dtype not in _NAMES:
        raise ValueError(
            f"array {name!r} has dtype {array.dtype}: not integer or float"
        )
    return array


def _hash(array: np.ndarray) -> str:
    """Of type, shape and numbers."""
    found = hashlib.sha256(f"{_NAMES[array.dtype]} {array.shape} ".encode())
    found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _verify(arrays: Arrays, hashes: Any) -> None:
    if not isinstance(hashes, dict) or set(hashes) != set(arrays):
        raise DamagedFile("the description does not list the arrays of the file")
    for name, array in arrays.items():
        if hashes[name] != _hash(array):
            raise DamagedFile(f"array {name!r} was damaged: its hash is another")


def _described(metadata: Mapping[str, str]) -> tuple[bytes, str]:
    """The description as text, and its hash."""
    if not {"about", "sha256"} <= set(metadata):
        raise DamagedFile(
            "no file of a recommender: its metadata have no 'about' and 'sha256'; "
            "write it with `sparsekit recsys export`"
        )
    try:
        text = metadata["about"].encode()
    except UnicodeEncodeError:
        raise DamagedFile("the description is no text") from None
    if hashlib.sha256(text).hexdigest() != metadata["sha256"]:
        raise DamagedFile("the description was damaged: its hash is another")
    return text, metadata["sha256"]
