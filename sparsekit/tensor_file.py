"""Safetensors files that nobody vouches for, read with numpy alone.

    arrays, metadata = read(path.read_bytes())      # or of a mapped file: no copy
    about = json_object(metadata["about"], "the description")

Nothing in a file is believed: sizes, offsets, types and names are checked before memory
is touched by them. Tensors must fill the file in the order of their offsets, without
gaps, as every writer of the format has them.
"""

import json
import math
from collections.abc import Collection
from mmap import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it
KINDS = {
    "F64": "<f8", "I64": "<i8", "U64": "<u8", "F32": "<f4", "I32": "<i4", "U32": "<u4",
    "F16": "<f2", "I16": "<i2", "U16": "<u2", "I8": "|i1", "U8": "|u1",
}  # fmt: skip
BFLOAT16 = "BF16"  # numpy has no such numbers: they are widened to float32
Arrays = dict[str, NDArray[Any]]


class DamagedFile(ValueError):
    """The file is not what it should be, is cut off, or was altered."""


def read(
    content: bytes | mmap, kinds: Collection[str] = tuple(KINDS)
) -> tuple[Arrays, dict[str, str]]:
    """{name: array}, and the metadata.

    Arrays are read-only views of the content, except of bfloat16.

    Args:
        content: the whole file.
        kinds: types that are taken, as the format calls them: names of `KINDS`, "BF16".

    Raises:
        DamagedFile: (a ValueError) naming what is wrong.

    >>> from safetensors.numpy import save
    >>> arrays, metadata = read(save({"a": np.arange(3)}, {"for": "an example"}))
    >>> arrays["a"].tolist(), metadata
    ([0, 1, 2], {'for': 'an example'})
    """
    size, length = len(content), int.from_bytes(content[:8], "little")
    if size < 10 or length > min(size - 8, LARGEST_HEADER):
        raise DamagedFile(
            f"no safetensors file, or cut off: {size:,} bytes, a header of {length:,}"
        )
    header = json_object(content[8 : 8 + length], "the header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise DamagedFile("the header's metadata is not text")
    first, end = 8 + length, 0
    arrays: Arrays = {}
    for name, entry in sorted(header.items(), key=_offsets):
        begin, end = _place(name, entry, kinds, end, size - first)
        arrays[name] = _array(content, first + begin, entry["dtype"], entry["shape"])
    if first + end != size:
        raise DamagedFile(f"{size - first - end} bytes at the end belong to no tensor")
    return arrays, metadata


def json_object(text: bytes | str, what: str) -> dict[str, Any]:
    """An object in JSON: names occur once, numbers are finite; `what` is for errors.

    Raises:
        DamagedFile: naming what is wrong.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            raise DamagedFile(f"{what} has a name twice")
        return result

    def constant(name: str) -> None:
        raise DamagedFile(f"{what} holds {name}, which is no JSON")

    try:
        text = text if isinstance(text, str) else text.decode()
        value = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except DamagedFile:
        raise
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, endless digits
        raise DamagedFile(f"{what} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise DamagedFile(f"{what} is a {type(value).__name__}, not an object")
    return value


def _offsets(item: tuple[str, Any]) -> tuple[int, int]:
    offsets = item[1].get("data_offsets") if isinstance(item[1], dict) else None
    if not isinstance(offsets, list) or [type(o) for o in offsets] != [int, int]:
        raise DamagedFile(f"tensor {item[0]!r} has no data_offsets")
    return offsets[0], offsets[1]


def _place(
    name: str, entry: dict[str, Any], kinds: Collection[str], after: int, length: int
) -> tuple[int, int]:
    """Where a tensor lies: right after the one before, and as long as it should be."""
    kind, shape = entry.get("dtype"), entry.get("shape")
    begin, end = entry["data_offsets"]
    if kind not in list(kinds):
        raise DamagedFile(f"tensor {name!r} has dtype {kind!r}, not {list(kinds)}")
    if (
        not isinstance(shape, list)
        or len(shape) > 8
        or not all(type(n) is int and 0 <= n < 2**48 for n in shape)
        or math.prod(max(1, n) for n in shape) >= 2**48
    ):
        raise DamagedFile(f"tensor {name!r} has no valid shape: {str(shape)[:80]}")
    if begin != after or not begin <= end <= length:
        raise DamagedFile(
            f"tensor {name!r} lies at {begin} .. {end}, expected to begin at {after} "
            f"within {length} bytes"
        )
    if end - begin != math.prod(shape) * _stored(kind).itemsize:
        raise DamagedFile(f"tensor {name!r}: {end - begin} bytes are no {kind} {shape}")
    return begin, end


def _stored(kind: str) -> np.dtype[Any]:
    return np.dtype("<u2" if kind == BFLOAT16 else KINDS[kind])


def _array(
    content: bytes | mmap, start: int, kind: str, shape: list[int]
) -> NDArray[Any]:
    dtype, count = _stored(kind), math.prod(shape)
    array: NDArray[Any] = np.empty(0, dtype)
    if count:  # numpy has no view of nothing at the end of a buffer
        array = np.frombuffer(content, dtype, count, start)
    if kind == BFLOAT16:  # the upper half of a float32
        array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.reshape(shape)
