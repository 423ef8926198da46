"""Allocation: a global budget -> active weights of each tensor, as exact integers.

Every function returns {name: n_active} in the order of its input. The counts sum to
`count_active(total, sparsity)` exactly and each lies in 1 ... numel. Tensors named in
`dense` stay full and count towards the budget: the others make up for them.
"""

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from math import floor as round_down
from math import isfinite, prod

import torch
from torch import Tensor

from sparsekit.masks import count_active, topk_mask
from sparsekit.spelling import choice

Shapes = Mapping[str, Sequence[int]]


def apportion(
    real: Mapping[str, float], total: int, caps: Mapping[str, int]
) -> dict[str, int]:
    """Integers close to `real` that sum to `total`, each in 1 ... cap.

    Largest remainder: round down, then give the missing units one by one to whoever is
    furthest below its real value (or take surplus units, which only the minimum of 1
    can cause, from whoever is furthest above). Of equals the earlier name comes first.

    Args:
        real: wished counts, >= 0; they should sum to about `total`.
        total: the sum to reach.
        caps: largest count of each name, at least 1.

    Raises:
        ValueError: if `total` is below the number of names or above all caps together.

    >>> apportion({"a": 2.5, "b": 2.5, "c": 5.0}, 10, {"a": 9, "b": 9, "c": 9})
    {'a': 3, 'b': 2, 'c': 5}

    Source: Hamilton's method of apportionment, 1792.
    """
    if not len(real) <= total <= sum(caps[name] for name in real):
        raise ValueError(
            f"cannot share {total} active weights among {len(real)} tensors of "
            f"{len(real)} ... {sum(caps[n] for n in real)} in all: change the sparsity"
        )
    for name, value in real.items():
        if not (isfinite(value) and value >= 0):
            raise ValueError(f"the share of {name!r} is a finite count, got {value}")
    counts = {n: min(max(round_down(v), 1), caps[n]) for n, v in real.items()}
    missing = total - sum(counts.values())
    unit = 1 if missing > 0 else -1
    # Heap of (distance to the real value, order of the name): the next to change first.
    queue = [
        (unit * (counts[n] - value), i, n) for i, (n, value) in enumerate(real.items())
    ]
    heapq.heapify(queue)
    while missing:
        distance, i, name = heapq.heappop(queue)
        if not 1 <= counts[name] + unit <= caps[name]:
            continue  # stays out of the queue: it can never change again
        counts[name] += unit
        missing -= unit
        heapq.heappush(queue, (distance + 1, i, name))
    return counts


def uniform(
    shapes: Shapes, sparsity: float, dense: Collection[str] = ()
) -> dict[str, int]:
    """The same sparsity in each tensor.

    Args:
        shapes: shape of each tensor, any number of dimensions.
        sparsity: fraction of zeros over all of `shapes`, in [0, 1).
        dense: names that stay full.

    Raises:
        ValueError: if `dense` alone exceeds the budget, or names an unknown tensor.

    >>> uniform({"a": (10, 10), "b": (5, 5)}, 0.8)
    {'a': 20, 'b': 5}

    Differs from the RigL paper: there a dense first layer is added to the budget; here
    the total is what was asked for.
    """
    return _proportional(shapes, sparsity, dense, {name: 1.0 for name in shapes})


def er(shapes: Shapes, sparsity: float, dense: Collection[str] = ()) -> dict[str, int]:
    """Erdős–Rényi: density proportional to (n_in + n_out) / (n_in n_out).

    Only the first two dimensions count, output and input channels; a convolution's
    kernel is ignored (`erk` includes it). Tensors that would exceed density 1 stay full
    and the others get the rest, as in `erk`.

    Args:
        shapes: (out, in, ...) of each tensor.
        sparsity: fraction of zeros over all of `shapes`, in [0, 1).
        dense: names that stay full.

    Raises:
        ValueError: for a shape with less than two dimensions, and as in `uniform`.

    >>> er({"a": (100, 20), "b": (10, 100)}, 0.8)
    {'a': 313, 'b': 287}

    Source: Mocanu et al. 2018 (SET), arXiv 1707.04780, with epsilon chosen
    to meet the budget.
    """
    _require_matrices(shapes)
    raw = {name: sum(s[:2]) / prod(s[:2]) for name, s in shapes.items()}
    return _proportional(shapes, sparsity, dense, raw)


def erk(
    shapes: Shapes, sparsity: float, power: float = 1.0, dense: Collection[str] = ()
) -> dict[str, int]:
    """Erdős–Rényi-kernel: density proportional to (sum / product of dimensions)^power.

    d_l = epsilon r_l,  r_l = ((out + in + kh + kw) / (out in kh kw))^power

    with epsilon such that the budget is met. Tensors with epsilon r_l > 1 stay full and
    epsilon is computed again for the others, until none exceeds 1.

    Args:
        shapes: (out, in, ...) of each tensor, kernel dimensions included.
        sparsity: fraction of zeros over all of `shapes`, in [0, 1).
        power: below 1 is closer to uniform; 0 is uniform.
        dense: names that stay full.

    Raises:
        ValueError: for a shape with less than two dimensions, and as in `uniform`.

    >>> erk({"conv": (8, 4, 3, 3), "fc": (10, 200)}, 0.8)
    {'conv': 36, 'fc': 422}

    Source: Evci et al. 2020 (RigL), arXiv 1911.11134, section 3.
    Differs from the paper: integers that meet the total exactly, instead of rounding
    each tensor on its own; at least one weight a tensor.
    """
    _require_matrices(shapes)
    if not (isfinite(power) and power >= 0):
        raise ValueError(f"power is a number >= 0, got {power!r}")
    raw = {name: (sum(s) / prod(s)) ** power for name, s in shapes.items()}
    return _proportional(shapes, sparsity, dense, raw)


def by_layer(
    sparsities: Mapping[str, float],
    rest: Callable[[Shapes, float], dict[str, int]] = erk,
) -> Callable[[Shapes, float], dict[str, int]]:
    """An allocation with a sparsity of its own for some tensors, by name.

    n_l = count_active(numel_l, s_l) for each tensor named; the others share what the
    budget leaves by `rest`.

    Raises:
        ValueError: by the allocation, for names that are not among the tensors, for a
            budget that leaves the others less than one weight each or more than they
            have, and, if all are named, for another total than the budget.

    >>> allocation = by_layer({"a": 0.5, "b": 0.0})
    >>> allocation({"a": (10, 10), "b": (5, 5), "c": (30, 25)}, 0.9)
    {'a': 50, 'b': 25, 'c': 12}
    """

    def allocation(shapes: Shapes, sparsity: float) -> dict[str, int]:
        numels = _numels(shapes)
        unknown = [name for name in sparsities if name not in numels]
        if unknown:
            refused = f"by_layer: no tensor {unknown[0]!r} is sparsified"
            raise ValueError(choice(refused, unknown[0], numels, "those are"))
        counts = {n: count_active(numels[n], s) for n, s in sparsities.items()}
        total = sum(numels.values())
        left = count_active(total, sparsity) - sum(counts.values())
        others = {name: shapes[name] for name in numels if name not in counts}
        most = sum(numels[name] for name in others)
        if not len(others) <= left <= most:
            taken = sum(counts.values())
            low, high = 1 - (taken + most) / total, 1 - (taken + len(others)) / total
            fits = f"{low:.6g}" if not others else f"{low:.6g} ... {high:.6g}"
            raise ValueError(
                f"by_layer: the {len(counts)} tensors named keep {taken:,} of "
                f"{total:,} weights, and sparsity {sparsity} leaves {left:,} for the "
                f"{len(others)} others with {most:,}: a sparsity of {fits} fits"
            )
        if others:
            counts |= rest(others, (most - left) / most)
        return {name: counts[name] for name in numels}

    return allocation


@torch.no_grad()
def global_budget(
    scores: Mapping[str, Tensor], sparsity: float, floor: int = 1
) -> dict[str, int]:
    """Counts by one threshold over the scores of all tensors.

    Each tensor keeps its `floor` best entries in any case (all, if it has fewer), so
    that no layer collapses; the rest of the budget goes to the highest scores anywhere.
    Of equal scores the earlier name and then the lower flat index wins, so
    `topk_mask(scores[name], counts[name])` is the mask that was counted.

    Args:
        scores: of one kind, comparable between tensors; larger = stays.
        sparsity: fraction of zeros over all of `scores`, in [0, 1).
        floor: active entries each tensor keeps; 0 lets a layer vanish.

    Raises:
        ValueError: for NaN (naming the tensor), or floors that exceed the budget.

    >>> scores = {"a": torch.tensor([9.0, 8.0, 7.0]), "b": torch.tensor([1.0, 2.0])}
    >>> global_budget(scores, 0.4)
    {'a': 2, 'b': 1}
    >>> global_budget(scores, 0.4, floor=0)
    {'a': 3, 'b': 0}
    """
    numels = _numels({name: tuple(score.shape) for name, score in scores.items()})
    budget = count_active(sum(numels.values()), sparsity)
    floors = {name: min(floor, numel) for name, numel in numels.items()}
    if floor < 0 or sum(floors.values()) > budget:
        raise ValueError(
            f"a floor of {floor} in {len(scores)} tensors needs "
            f"{sum(floors.values())} active weights, sparsity {sparsity} leaves "
            f"{budget}: lower the floor or the sparsity"
        )
    reserved = []
    for name, score in scores.items():
        try:
            reserved.append(topk_mask(score, floors[name]).reshape(-1))
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from None
    device = reserved[0].device
    taken = torch.cat([mask.to(device) for mask in reserved])
    everything = torch.cat([s.reshape(-1).to(device) for s in scores.values()])
    rest = topk_mask(everything, budget - sum(floors.values()), among=~taken)
    parts = (taken | rest).split(list(numels.values()))
    return {name: int(part.sum()) for name, part in zip(scores, parts, strict=True)}


def _proportional(
    shapes: Shapes, sparsity: float, dense: Collection[str], raw: Mapping[str, float]
) -> dict[str, int]:
    """Densities proportional to `raw`, at most 1, that meet the budget."""
    numels = _numels(shapes)
    if isinstance(dense, str):
        raise TypeError(f"dense is a collection of names, got the string {dense!r}")
    unknown = [name for name in dense if name not in numels]
    if unknown:
        raise ValueError(f"dense names {unknown} are not among {list(numels)}")
    total = sum(numels.values())
    free = {name: n for name, n in numels.items() if name not in dense}
    budget = count_active(total, sparsity)
    left = budget - (total - sum(free.values()))
    if left < len(free):
        raise ValueError(
            f"sparsity {sparsity} leaves {budget} of {total} weights; the dense "
            f"tensors {list(dense)} take {budget - left}, and the {len(free)} others "
            "need at least 1 each: lower the sparsity or keep fewer tensors dense"
        )
    real = _densities(free, left, raw)
    counts = apportion({n: real[n] * free[n] for n in free}, left, free)
    return {name: counts.get(name, numel) for name, numel in numels.items()}


def _densities(
    numels: Mapping[str, int], budget: int, raw: Mapping[str, float]
) -> dict[str, float]:
    full: set[str] = set()
    while len(full) < len(numels):
        rest = [name for name in numels if name not in full]
        scale = (budget - sum(numels[name] for name in full)) / sum(
            raw[name] * numels[name] for name in rest
        )
        # Adding all at once gives the same set as the largest one at a time, since the
        # scale of the others only grows.
        exceeding = {name for name in rest if scale * raw[name] > 1}
        if not exceeding:
            return {n: 1.0 if n in full else scale * raw[n] for n in numels}
        full |= exceeding
    return dict.fromkeys(numels, 1.0)


def _numels(shapes: Shapes) -> dict[str, int]:
    if not shapes:
        raise ValueError("no tensors to share a budget among")
    for name, shape in shapes.items():
        if prod(shape) < 1:
            raise ValueError(f"{name!r} of shape {tuple(shape)} has no entries")
    return {name: prod(shape) for name, shape in shapes.items()}


def _require_matrices(shapes: Shapes) -> None:
    for name, shape in shapes.items():
        if len(shape) < 2:
            raise ValueError(
                f"{name!r} of shape {tuple(shape)} has no inputs and outputs, which "
                "Erdős–Rényi densities need: use `uniform` or leave the tensor out"
            )
