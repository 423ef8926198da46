"""Boolean masks: True = the weight exists. Counting, selecting, moving, packing."""

from collections.abc import Mapping, Sequence
from math import prod
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor


def count_active(numel: int, sparsity: float) -> int:
    """Number of weights that stay: the only place where a fraction becomes a count.

    n = max(1, numel - round(sparsity * numel))

    Args:
        numel: number of entries, at least 1.
        sparsity: fraction of zeros, in [0, 1).

    Raises:
        TypeError: for an argument that is not a number.
        ValueError: for a sparsity outside [0, 1), NaN included, or numel < 1.

    >>> count_active(10, 0.9)  # int(10 * (1 - 0.9)) would be 0
    1
    >>> count_active(100, 0.29)
    71
    """
    if not isinstance(numel, Integral):
        raise TypeError(f"numel is an integer, got {numel!r}")
    if not isinstance(sparsity, Real):
        raise TypeError(f"sparsity is a number in [0, 1), got {sparsity!r}")
    if numel < 1:
        raise ValueError(f"numel is at least 1, got {numel}")
    if not 0 <= sparsity < 1:  # False for NaN too
        raise ValueError(f"sparsity is the share of zeros, in [0, 1), got {sparsity}")
    return max(1, int(numel) - round(float(sparsity) * int(numel)))


def density(masks: Mapping[str, Tensor]) -> float:
    """Fraction of weights that are alive, over all masks together; 1 without any.

    >>> density({"weight": torch.tensor([True, False, False, False])})
    0.25
    """
    total = sum(mask.numel() for mask in masks.values())
    alive = sum(int(mask.sum()) for mask in masks.values())
    return alive / total if total else 1.0


@torch.no_grad()
def topk_mask(scores: Tensor, n_active: int, among: Tensor | None = None) -> Tensor:
    """Mask of exactly `n_active` entries with the highest scores.

    Of equal scores the lower flat index wins, as in a stable sort, so the result is the
    same on every device and process.

    Args:
        scores: any shape, float or integer, larger = stays. Infinities are legal.
        n_active: how many, 0 ... number of candidates.
        among: bool, shape of `scores`; only entries that are True there are candidates.
            (A score of -inf would not exclude an entry: it ties with other -inf.)

    Returns:
        bool, shape and device of `scores`.

    Raises:
        TypeError: for complex scores, a mask that is not bool, a count that is no int.
        ValueError: for NaN, a count out of range, or shapes that differ.

    >>> topk_mask(torch.tensor([[1.0, 3.0], [3.0, 3.0]]), 2)
    tensor([[False,  True],
            [ True, False]])
    """
    if scores.is_complex():
        raise TypeError("scores are real numbers, got a complex tensor")
    if not isinstance(n_active, Integral):
        raise TypeError(f"n_active is an integer, got {n_active!r}")
    if scores.is_floating_point() and bool(torch.isnan(scores).any()):
        count = int(torch.isnan(scores).sum())
        raise ValueError(
            f"scores hold {count} NaN in {scores.numel()} entries: their order is "
            "undefined; find where the weights or gradients became NaN"
        )
    flat = scores.detach().reshape(-1)
    if among is None:
        return _highest(flat, int(n_active)).view(scores.shape)
    _require_mask("among", among, scores.shape)
    chosen = among.reshape(-1)
    mask = torch.zeros_like(chosen)
    if mask.is_cpu:  # numpy selects without an index of 8 bytes an entry
        flat = _for_numpy(flat)
        candidates = torch.from_numpy(flat.numpy()[chosen.numpy()])
        mask.numpy()[chosen.numpy()] = _highest(candidates, int(n_active)).numpy()
    else:
        mask[chosen] = _highest(flat[chosen], int(n_active))
    return mask.view(scores.shape)


def _highest(flat: Tensor, n_active: int) -> Tensor:
    """Top-k of a vector without NaN; selecting is ten times faster than sorting."""
    if not 0 <= n_active <= flat.numel():
        raise ValueError(
            f"n_active is in 0 ... {flat.numel()} (the number of candidates), "
            f"got {n_active}"
        )
    if n_active == 0 or n_active == flat.numel():
        return torch.full_like(flat, n_active > 0, dtype=torch.bool)
    if flat.dtype == torch.bool:
        flat = flat.to(torch.uint8)
    place = flat.numel() - n_active  # of the threshold, in ascending order
    if flat.is_cpu:  # kthvalue would hold an index beside the copy
        flat = _for_numpy(flat)
        threshold = np.partition(flat.numpy(), place)[place].item()
    else:
        threshold = flat.kthvalue(place + 1).values
    mask = flat > threshold
    ties = (flat == threshold).nonzero().squeeze(1)
    mask[ties[: n_active - int(mask.sum())]] = True
    return mask


def _for_numpy(flat: Tensor) -> Tensor:
    """Itself, or in float32 if numpy does not know its type."""
    return flat.float() if flat.dtype == torch.bfloat16 else flat


@torch.no_grad()
def topk_rows(scores: Tensor, counts: Tensor, among: Tensor | None = None) -> Tensor:
    """Mask of the `counts[r]` highest entries of each row r.

    Of equal scores in a row the lower index wins.

    Args:
        scores: (rows, ...) without NaN, larger = stays; a row is all that follows.
        counts: (rows,) integers, 0 ... number of candidates of the row.
        among: bool, shape of `scores`; only entries that are True are candidates.

    Raises:
        ValueError: for a count out of range, NaN, or shapes that differ.

    >>> scores = torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]])
    >>> topk_rows(scores, torch.tensor([1, 2]))
    tensor([[False,  True, False],
            [ True, False,  True]])
    """
    rows = scores.flatten(1)
    if rows.isnan().any():
        raise ValueError("scores hold NaN: their order is undefined")
    if counts.shape != (len(rows),):
        raise ValueError(
            f"counts has shape {tuple(counts.shape)}, there are {len(rows)} rows"
        )
    candidates = torch.ones_like(rows, dtype=torch.bool)
    if among is not None:
        _require_mask("among", among, scores.shape)
        candidates = among.flatten(1)
    if (counts < 0).any() or (counts > candidates.sum(1)).any():
        raise ValueError("a count is in 0 ... the number of candidates of its row")
    order = rows.argsort(dim=1, descending=True, stable=True)
    # Candidates first, whatever their score; both sorts keep the order of equals.
    absent = (~candidates).gather(1, order).to(torch.uint8)
    order = order.gather(1, absent.argsort(dim=1, stable=True))
    first = torch.arange(rows.shape[1], device=rows.device) < counts[:, None]
    return torch.zeros_like(candidates).scatter_(1, order, first).view(scores.shape)


@torch.no_grad()
def drop_and_grow(
    mask: Tensor,
    drop: Tensor,
    grow: Tensor,
    n_moved: int,
    exclude_dropped: bool = False,
) -> Tensor:
    """Move `n_moved` connections; the number of connections never changes.

    kept  = the active entries but the n_moved with the lowest `drop`
    grown = the n_moved highest `grow` among all entries that are not kept

    An entry that was just dropped may thus return at once, unless `exclude_dropped`.

    Args:
        mask: bool, which entries are active.
        drop: same shape; importance of an active entry, larger = stays. Ignored
            elsewhere, but NaN is refused anywhere.
        grow: same shape; importance of an absent entry, larger = grows.
        n_moved: 0 ... number of active entries.

    Returns:
        A new mask with the same count.

    Raises:
        ValueError: if n_moved exceeds the active entries or the candidates for growth.

    >>> mask = torch.tensor([True, True, False, False])
    >>> drop = torch.tensor([0.5, 0.1, 0.0, 0.0])
    >>> grow = torch.tensor([0.0, 0.3, 0.2, 0.9])
    >>> drop_and_grow(mask, drop, grow, 1)
    tensor([ True, False, False,  True])

    Source: Evci et al. 2020, arXiv 1911.11134, algorithm 1; Mocanu et al. 2018.
    """
    _require_mask("mask", mask, drop.shape)
    n_active = int(mask.sum())
    if not isinstance(n_moved, Integral):
        raise TypeError(f"n_moved is an integer, got {n_moved!r}")
    if not 0 <= n_moved <= n_active:
        raise ValueError(
            f"n_moved is in 0 ... {n_active} (the active entries), got {n_moved}"
        )
    kept = topk_mask(drop, n_active - n_moved, among=mask)
    candidates = ~(mask if exclude_dropped else kept)
    if n_moved > int(candidates.sum()):
        raise ValueError(
            f"n_moved={n_moved} connections cannot grow in {int(candidates.sum())} "
            f"absent entries of {mask.numel()} ({n_active} active); move fewer or "
            "allow dropped ones to return with exclude_dropped=False"
        )
    return kept | topk_mask(grow, n_moved, among=candidates)


def pack(mask: Tensor) -> Tensor:
    """A mask as bits, eight times smaller: uint8, 1-D, lowest bit first.

    >>> pack(torch.tensor([True, False, True]))
    tensor([5], dtype=torch.uint8)
    """
    _require_mask("mask", mask, mask.shape)
    padding = -mask.numel() % 8
    bits = torch.nn.functional.pad(mask.reshape(-1).to(torch.uint8), (0, padding))
    return (bits.view(-1, 8) << _BITS.to(mask.device)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The mask of `shape` that `pack` packed, on the device of `packed`.

    Raises:
        ValueError: if `packed` cannot come from a mask of this shape.

    >>> unpack(torch.tensor([5], dtype=torch.uint8), (3, 1)).squeeze()
    tensor([ True, False,  True])
    """
    numel = prod(shape)
    if packed.dtype != torch.uint8 or packed.shape != ((numel + 7) // 8,):
        raise ValueError(
            f"a packed mask of shape {tuple(shape)} is uint8 of length "
            f"{(numel + 7) // 8}, got {packed.dtype} of shape {tuple(packed.shape)}"
        )
    bits = (packed.unsqueeze(1) >> _BITS.to(packed.device)) & 1
    flat = bits.view(-1).bool()
    if bool(flat[numel:].any()):
        raise ValueError(
            f"the bits after entry {numel} of a packed mask of shape {tuple(shape)} "
            "are not zero: it belongs to another shape, or is damaged"
        )
    return flat[:numel].view(tuple(shape))


_BITS = torch.arange(8, dtype=torch.uint8)


def _require_mask(name: str, mask: Tensor, shape: Sequence[int]) -> None:
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} is a bool tensor, got {mask.dtype}")
    if mask.shape != tuple(shape):
        raise ValueError(
            f"{name} has shape {tuple(mask.shape)}, the scores have {tuple(shape)}"
        )
