"""Moves of dynamic sparse training on flat Python lists, as the papers tell them."""

from math import ceil, cos, pi

from tests.reference.selection import highest, moved


def set_move(mask: list[bool], weight: list, noise: list, fraction: float) -> list:
    n = round(fraction * sum(mask))
    return moved(mask, [abs(w) for w in weight], noise, n, exclude_dropped=False)


def rigl_move(
    mask: list[bool], weight: list, grad: list, fraction: float, step: int, end: int
) -> list:
    share = fraction / 2 * (1 + cos(pi * step / end))
    n = round(share * sum(mask))
    drop, grow = [abs(w) for w in weight], [abs(g) for g in grad]
    return moved(mask, drop, grow, n, exclude_dropped=False)


def dsl_move(
    mask: list[bool], weight: list, grad: list, fraction: float, step: int, end: int
) -> list:
    """As released, but for the tie: a threshold there drops all that equal it."""
    rho = 0.005 + 0.5 * (fraction - 0.005) * (1 + cos(pi * step / end))
    alive = [i for i, exists in enumerate(mask) if exists]
    n = max(ceil(rho * len(alive)), sum(weight[i] == 0 for i in alive))
    smallest_first = sorted(alive, key=lambda i: (abs(weight[i]), -i))
    kept = set(smallest_first[n:])
    absent = [i for i in range(len(mask)) if i not in kept]
    grown = sorted(absent, key=lambda i: (-abs(grad[i]), i))[:n]
    return [i in kept or i in grown for i in range(len(mask))]


def mest_move(
    mask: list[bool],
    weight: list,
    grad: list,
    noise: list,
    gradient_weight: float,
    n_kept: int,
    n_final: int,
) -> list:
    score = [
        abs(w) + gradient_weight * abs(g) for w, g in zip(weight, grad, strict=True)
    ]
    kept = highest(score, n_kept, among=mask)
    absent = [not k for k in kept]
    grown = highest(noise, n_final - n_kept, among=absent)
    return [k or g for k, g in zip(kept, grown, strict=True)]


def tdm_move(
    mask: list[bool],
    weight: list,
    terms: list[tuple[float, list]],
    noise: list,
    n_kept: int,
    n_final: int,
) -> list:
    """terms: (factor, gradient) of each loss that the importance counts."""
    score = [
        abs(w) + sum(factor * abs(grad[i]) for factor, grad in terms)
        for i, w in enumerate(weight)
    ]
    alive = [i for i, exists in enumerate(mask) if exists]
    kept = set(sorted(alive, key=lambda i: (-score[i], i))[:n_kept])
    if n_kept == n_final:
        return [i in kept for i in range(len(mask))]
    absent = [i for i in range(len(mask)) if i not in kept]
    grown = sorted(absent, key=lambda i: (-noise[i], i))[: n_final - n_kept]
    return [i in kept or i in grown for i in range(len(mask))]
