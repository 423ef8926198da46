"""Arrays and a description in one memory-mapped file; numpy is all it needs.

    write(path, {"a": np.arange(3)}, {"version": 1})
    arrays, about = read(path)              # arrays are views of the file, read-only

The file is a safetensors file. Its metadata hold the description as JSON ("about") and
the SHA-256 of that text ("sha256"); the description holds the SHA-256 of every array,
so that one hash names the whole content.

Nothing in a file is believed: sizes, offsets and names are checked before memory is
touched by them. The hashes tell damage, not malice: who writes a file can hash it.
"""

import hashlib
import json
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sparsekit import atomic

LARGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it
_DTYPES = {
    "F64": "<f8", "I64": "<i8", "U64": "<u8", "F32": "<f4", "I32": "<i4", "U32": "<u4",
    "F16": "<f2", "I16": "<i2", "U16": "<u2", "I8": "|i1", "U8": "|u1",
}  # fmt: skip
_NAMES = {np.dtype(kind): name for name, kind in _DTYPES.items()}
Arrays = dict[str, np.ndarray]


class DamagedFile(ValueError):
    """The file is none of ours, is cut off, or was altered."""


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
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or length > min(size - 8, LARGEST_HEADER):
            raise DamagedFile(
                f"no safetensors file, or cut off: {size:,} bytes, a header of "
                f"{length:,}"
            )
        header = _json(file.read(length), "the header")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    text, named = _metadata(header.pop("__metadata__", None))
    about = _json(text, "the description")
    arrays, end = {}, 0
    for name, entry in sorted(header.items(), key=_offset):
        dtype, shape, end = _place(name, entry, end, len(mapped) - 8 - length)
        count = math.prod(shape)
        start = 8 + length + end - count * dtype.itemsize
        array = np.frombuffer(mapped, dtype, count, start) if count else np.empty(0)
        arrays[name] = array.astype(dtype, copy=False).reshape(shape)
    if end != len(mapped) - 8 - length:
        raise DamagedFile(
            f"{len(mapped) - 8 - length - end} bytes at the end belong to no array"
        )
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


def _metadata(metadata: Any) -> tuple[bytes, str]:
    """The description as text, and its hash."""
    if not isinstance(metadata, dict) or not all(
        isinstance(metadata.get(key), str) for key in ("about", "sha256")
    ):
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


def _offset(item: tuple[str, Any]) -> tuple[int, int]:
    offsets = item[1].get("data_offsets") if isinstance(item[1], dict) else None
    if not isinstance(offsets, list) or [type(o) for o in offsets] != [int, int]:
        raise DamagedFile(f"array {item[0]!r} has no data_offsets")
    return offsets[0], offsets[1]


def _place(
    name: str, entry: dict, after: int, length: int
) -> tuple[np.dtype, tuple[int, ...], int]:
    """Type, shape and end of an array that begins where the one before ends."""
    kind, shape = entry.get("dtype"), entry.get("shape")
    begin, end = entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise DamagedFile(f"array {name!r} has dtype {kind!r}, not {list(_DTYPES)}")
    if (
        not isinstance(shape, list)
        or len(shape) > 8
        or not all(type(n) is int and 0 <= n < 2**48 for n in shape)
    ):
        raise DamagedFile(f"array {name!r} has no valid shape: {str(shape)[:80]}")
    dtype = np.dtype(_DTYPES[kind])
    if begin != after or not begin <= end <= length:
        raise DamagedFile(
            f"array {name!r} lies at {begin} .. {end}, expected to begin at {after} "
            f"within {length} bytes"
        )
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise DamagedFile(f"array {name!r}: {end - begin} bytes are no {kind} {shape}")
    return dtype, tuple(shape), end


def _json(text: bytes, what: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            raise DamagedFile(f"{what} has a name twice")
        return result

    def constant(name: str) -> None:
        raise DamagedFile(f"{what} holds {name}, which is no JSON")

    try:
        value = json.loads(
            text.decode(), object_pairs_hook=unique, parse_constant=constant
        )
    except DamagedFile:
        raise
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, endless digits
        raise DamagedFile(f"{what} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise DamagedFile(f"{what} is a {type(value).__name__}, not an object")
    return value
