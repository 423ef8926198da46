"""Packing: a masked weight as fewer bytes, and back, exactly.

The structure comes from the mask, never from `weight != 0`: a freshly grown weight is
alive with value 0, and its place must survive.

    format    parts                                      bytes a non-zero (float32)
    dense     values (shape)                             4 / density
    csr       values, columns int32, rows int32          8 + row pointers
    bitmask   values, bits uint8 (1 bit an entry)        4 + 1 / (8 density)
    delta     values, gaps uint8                         5 + escapes

csr sees (out, in * kernel...); a vector is one row. In delta a gap is the number of
absent entries before a non-zero, in flat order; the code 255 skips 255 entries and has
no value, so a gap g takes g // 255 escapes and one code g % 255.
"""

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from sparsekit.masks import pack, unpack

FORMATS = ("dense", "csr", "bitmask", "delta")

_ESCAPE = 255
_PARTS = {
    "dense": {"values"},
    "csr": {"values", "columns", "rows"},
    "bitmask": {"values", "bits"},
    "delta": {"values", "gaps"},
}


@torch.no_grad()
def encode(weight: Tensor, mask: Tensor, format: str) -> dict[str, Tensor]:
    """The parts that store `weight` where `mask` is True.

    Args:
        weight: any shape and dtype.
        mask: bool, the same shape.
        format: one of FORMATS.

    >>> weight = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 2.0]])
    >>> parts = encode(weight, weight != 0, "csr")
    >>> {name: part.tolist() for name, part in parts.items()}
    {'values': [0.5, 2.0], 'columns': [0, 2], 'rows': [0, 1, 2]}

    Differs from Deep Compression (Han et al. 2016, arXiv 1510.00149): their delta
    format pads long gaps with a zero weight, which cannot be told from an alive weight
    of value 0; the escape here stores no value, and is smaller.
    """
    _require_format(format)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask is a bool tensor, got {mask.dtype}")
    if weight.shape != mask.shape:
        raise ValueError(
            f"weight {tuple(weight.shape)} and mask {tuple(mask.shape)} differ in shape"
        )
    if format == "dense":
        return {"values": weight.masked_fill(~mask, 0)}
    values = weight[mask]
    if format == "csr":
        rows, columns = _matrix(mask.shape)
        index = _index_dtype(len(values), columns)
        matrix = mask.reshape(rows, columns)
        pointers = matrix.sum(1).cumsum(0)
        return {
            "values": values,
            "columns": matrix.nonzero()[:, 1].to(index),
            "rows": torch.nn.functional.pad(pointers, (1, 0)).to(index),
        }
    if format == "bitmask":
        return {"values": values, "bits": pack(mask)}
    return {"values": values, "gaps": _gap_codes(mask)}


@torch.no_grad()
def decode(parts: Mapping[str, Tensor], shape: Sequence[int], format: str) -> Tensor:
    """The weight of `shape`, exactly: its values where alive, 0 elsewhere.

    Safe on untrusted parts: whatever `encode` could not have made is refused.

    Raises:
        ValueError: naming the part that is missing, too long, of the wrong dtype or
            out of range.

    >>> parts = {"values": torch.tensor([7.0]), "gaps": torch.tensor([2]).byte()}
    >>> decode(parts, (2, 2), "delta")
    tensor([[0., 0.],
            [7., 0.]])
    """
    if format == "dense":
        _require_parts(parts, format)
        values = parts["values"]
        if values.shape != tuple(shape):
            raise ValueError(
                f"dense part 'values' has shape {tuple(values.shape)}, expected "
                f"{tuple(shape)}"
            )
        return values.clone()
    positions = _positions(parts, shape, format)
    values = parts["values"]
    flat = torch.zeros(prod(shape), dtype=values.dtype, device=values.device)
    flat[positions] = values
    return flat.view(tuple(shape))


def decode_mask(
    parts: Mapping[str, Tensor], shape: Sequence[int], format: str
) -> Tensor:
    """The mask that `encode` was given, alive zeros included.

    Raises:
        ValueError: as `decode`; and for "dense", which does not store it.

    >>> weight = torch.tensor([0.0, 3.0, 0.0])
    >>> alive = torch.tensor([True, True, False])
    >>> decode_mask(encode(weight, alive, "bitmask"), (3,), "bitmask")
    tensor([ True,  True, False])
    """
    if format == "dense":
        raise ValueError(
            "the dense format stores no mask: a zero may be an alive weight; use "
            f"one of {FORMATS[1:]}"
        )
    positions = _positions(parts, shape, format)
    flat = torch.zeros(prod(shape), dtype=torch.bool, device=positions.device)
    flat[positions] = True
    return flat.view(tuple(shape))


def nbytes(parts: Mapping[str, Tensor]) -> int:
    """Bytes that the parts take, in memory and (but for a header) on disk.

    >>> nbytes(encode(torch.ones(100), torch.arange(100) < 10, "bitmask"))
    53
    """
    return sum(part.numel() * part.element_size() for part in parts.values())


def predicted_nbytes(mask: Tensor, format: str, itemsize: int = 4) -> int:
    """`nbytes` of the encoding, without making it.

    With N entries, n of them alive, b = itemsize:

        dense    b N
        csr      (b + 4) n + 4 (rows + 1)     8 instead of 4 if an index needs int64
        bitmask  b n + ceil(N / 8)
        delta    (b + 1) n + sum over gaps of floor(gap / 255)

    >>> predicted_nbytes(torch.arange(100) < 10, "bitmask")
    53
    """
    _require_format(format)
    numel, n_active = mask.numel(), int(mask.sum())
    if format == "dense":
        return itemsize * numel
    if format == "csr":
        rows, columns = _matrix(mask.shape)
        index = _index_dtype(n_active, columns).itemsize
        return (itemsize + index) * n_active + index * (rows + 1)
    if format == "bitmask":
        return itemsize * n_active + (numel + 7) // 8
    escapes = int(torch.div(_gaps(mask), _ESCAPE, rounding_mode="floor").sum())
    return (itemsize + 1) * n_active + escapes


def break_even(format: str, itemsize: int = 4) -> float:
    """The density below which a format is smaller than dense, for a large weight.

    With b = itemsize, n = d N bytes are saved where

        csr      (b + 4) d < b            d < b / (b + 4)     row pointers ignored
        bitmask  b d + 1/8 < b            d < 1 - 1 / (8 b)
        delta    (b + 1) d < b            d < b / (b + 1)     escapes ignored

    Dense is never smaller than itself: 0.

    >>> [round(break_even(format), 3) for format in FORMATS]
    [0.0, 0.5, 0.969, 0.8]
    >>> break_even("csr", itemsize=2)
    0.3333333333333333
    """
    _require_format(format)
    return {
        "dense": 0.0,
        "csr": itemsize / (itemsize + 4),
        "bitmask": 1 - 1 / (8 * itemsize),
        "delta": itemsize / (itemsize + 1),
    }[format]


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    return (1, prod(shape)) if len(shape) < 2 else (shape[0], prod(shape[1:]))


def _index_dtype(n_active: int, columns: int) -> torch.dtype:
    """int32 while the last pointer (n_active) and the last column fit."""
    largest = torch.iinfo(torch.int32).max
    return torch.int32 if max(n_active, columns - 1) <= largest else torch.int64


def _gaps(mask: Tensor) -> Tensor:
    """Absent entries between each alive entry and the one before, int64."""
    positions = mask.reshape(-1).nonzero().squeeze(1)
    return torch.nn.functional.pad(positions, (1, 0), value=-1).diff() - 1


def _gap_codes(mask: Tensor) -> Tensor:
    gaps = _gaps(mask)
    # Each non-zero's code comes after its own escapes and all that is before.
    lengths = torch.div(gaps, _ESCAPE, rounding_mode="floor") + 1
    total = int(lengths.sum())
    codes = torch.full((total,), _ESCAPE, dtype=torch.uint8, device=mask.device)
    codes[lengths.cumsum(0) - 1] = (gaps % _ESCAPE).to(torch.uint8)
    return codes


def _positions(
    parts: Mapping[str, Tensor], shape: Sequence[int], format: str
) -> Tensor:
    """Flat positions of the alive entries, int64 and increasing, checked."""
    _require_parts(parts, format)
    if parts["values"].dim() != 1:
        raise ValueError(
            f"{format} part 'values' is a vector, got shape "
            f"{tuple(parts['values'].shape)}"
        )
    if format == "csr":
        return _csr_positions(parts, shape)
    if format == "bitmask":
        try:
            mask = unpack(parts["bits"], shape)
        except ValueError as error:
            raise ValueError(f"bitmask part 'bits': {error}") from None
        positions = mask.reshape(-1).nonzero().squeeze(1)
    else:
        positions = _delta_positions(parts["gaps"], prod(shape))
    if len(positions) != len(parts["values"]):
        raise ValueError(
            f"{format} part 'values' holds {len(parts['values'])} entries, the "
            f"structure says {len(positions)}"
        )
    return positions


def _csr_positions(parts: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
    rows, columns = _matrix(shape)
    n_active = len(parts["values"])
    for name, length in (("rows", rows + 1), ("columns", n_active)):
        part = parts[name]
        if part.dtype not in (torch.int32, torch.int64) or part.shape != (length,):
            raise ValueError(
                f"csr part {name!r} is int32 or int64 of length {length}, got "
                f"{part.dtype} of shape {tuple(part.shape)}"
            )
    pointers, column = parts["rows"].long(), parts["columns"].long()
    lengths = pointers.diff()
    if int(pointers[0]) != 0 or int(pointers[-1]) != n_active or (lengths < 0).any():
        raise ValueError(
            f"csr part 'rows' must rise from 0 to {n_active} (the number of values)"
        )
    if ((column < 0) | (column >= columns)).any():
        raise ValueError(f"csr part 'columns' has entries outside 0 ... {columns - 1}")
    row = torch.arange(rows, device=column.device).repeat_interleave(lengths)
    positions = row * columns + column
    if (positions.diff() <= 0).any():
        raise ValueError("csr part 'columns' must rise within each row")
    return positions


def _delta_positions(codes: Tensor, numel: int) -> Tensor:
    if codes.dtype != torch.uint8 or codes.dim() != 1:
        raise ValueError(
            f"delta part 'gaps' is a uint8 vector, got {codes.dtype} of shape "
            f"{tuple(codes.shape)}"
        )
    stored = codes != _ESCAPE
    if len(codes) and not stored[-1]:
        raise ValueError("delta part 'gaps' ends in an escape: it is cut off")
    positions = (codes.long() + stored.long()).cumsum(0)[stored] - 1
    if len(positions) and int(positions[-1]) >= numel:
        raise ValueError(
            f"delta part 'gaps' leads to entry {int(positions[-1])} of {numel}"
        )
    return positions


def _require_format(format: str) -> None:
    if format not in FORMATS:
        raise ValueError(f"format is one of {FORMATS}, got {format!r}")


def _require_parts(parts: Mapping[str, Tensor], format: str) -> None:
    _require_format(format)
    if set(parts) != _PARTS[format]:
        raise ValueError(
            f"{format} has the parts {sorted(_PARTS[format])}, got {sorted(parts)}"
        )
