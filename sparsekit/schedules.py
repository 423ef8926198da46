"""Schedules: step -> float. `Schedule = Callable[[int], float]`, pure functions.

All of them are constant before the first and after the last step, reach their end value
exactly, and are monotone in between. With begin == finish they are a step function.
"""

from collections.abc import Callable
from math import cos, exp, isfinite, log, pi

Schedule = Callable[[float], float]


def constant(value: float) -> Schedule:
    """`value`, always.

    >>> constant(0.9)(1000)
    0.9
    """
    _require_finite(value=value)
    return lambda step: value


def linear(start: float, end: float, begin: float, finish: float) -> Schedule:
    """start + (end - start) p with p = (step - begin) / (finish - begin), clipped.

    >>> linear(0.0, 1.0, begin=100, finish=200)(125)
    0.25
    """
    return _interpolation(start, end, begin, finish, lambda p: p)


def cubic(start: float, end: float, begin: float, finish: float) -> Schedule:
    """end + (start - end)(1 - p)^3 with p = (step - begin) / (finish - begin), clipped.

    Prunes fast at first, when much can go, and slowly at the end.

    >>> round(cubic(0.0, 0.8, begin=0, finish=100)(50), 6)
    0.7

    Source: Zhu & Gupta 2017, arXiv 1710.01878, equation 1.
    """
    return _interpolation(start, end, begin, finish, lambda p: 1 - (1 - p) ** 3)


def cosine(start: float, finish: float, floor: float = 0.0) -> Schedule:
    """floor + (start - floor) (1 + cos(pi step / finish)) / 2, from step 0 to `finish`.

    >>> round(cosine(0.3, finish=100)(50), 6)
    0.15

    Source: Evci et al. 2020 (RigL), arXiv 1911.11134, section 3 (floor = 0).
    """
    return _interpolation(start, floor, 0, finish, lambda p: (1 - cos(pi * p)) / 2)


def exponential(start: float, end: float, begin: float, finish: float) -> Schedule:
    """start (end / start)^p with p = (step - begin) / (finish - begin), clipped.

    The same factor every step, so both ends need the same sign. For densities: SynFlow
    keeps exponential(1, density, 0, rounds)(i) of the weights in round i.

    >>> round(exponential(1.0, 0.01, begin=0, finish=100)(50), 6)
    0.1

    Source: Tanaka et al. 2020, arXiv 2006.05467, algorithm 1.
    """
    _require_finite(start=start, end=end)
    if start * end <= 0:
        raise ValueError(
            f"exponential needs start and end of one sign and not 0, got {start} and "
            f"{end}; schedule the density instead of the sparsity"
        )
    exponent = linear(0.0, log(end / start), begin, finish)

    def value(step: float) -> float:
        if step >= finish:
            return end
        return _clip(start * exp(exponent(step)), start, end)

    return value


def _interpolation(
    start: float,
    end: float,
    begin: float,
    finish: float,
    curve: Callable[[float], float],
) -> Schedule:
    """From start to end along a monotone curve of [0, 1], both ends exact."""
    _require_finite(start=start, end=end, begin=begin, finish=finish)
    if not begin <= finish:
        raise ValueError(f"begin <= finish is needed, got {begin} > {finish}")

    def value(step: float) -> float:
        if step >= finish:
            return end
        if step <= begin:
            return start
        share = curve((step - begin) / (finish - begin))
        # Rounding must not carry the value past an end: a sparsity of 1 + 1e-16 is an
        # error elsewhere.
        return _clip(start + (end - start) * share, start, end)

    return value


def _clip(value: float, start: float, end: float) -> float:
    return min(max(value, min(start, end)), max(start, end))


def _require_finite(**values: float) -> None:
    for name, value in values.items():
        if not isfinite(value):
            raise ValueError(f"{name} is a finite number, got {value!r}")
