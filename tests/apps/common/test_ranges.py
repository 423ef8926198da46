"""Ranges of settings, on both sides of every end."""

import math
from types import SimpleNamespace

import pytest

from apps.common.ranges import at_least, in_unit_interval, positive


def config(value: object) -> SimpleNamespace:
    return SimpleNamespace(fine=0.5, x=value)


@pytest.mark.parametrize("value", [2, 2.5, 10**9, None])
def test_at_least(value: object) -> None:
    at_least(2, config(value), "x")


@pytest.mark.parametrize("value", [1, 1.999, -1, math.nan, math.inf])
def test_below(value: float) -> None:
    with pytest.raises(ValueError, match=f"^x must be at least 2, got {value}$"):
        at_least(2, config(value), "x")


def test_positive() -> None:
    positive(config(1e-300), "fine", "x")
    positive(config(None), "x")
    for value in (0, -0.0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"^x must be positive, got {value}$"):
            positive(config(value), "fine", "x")


def test_in_unit_interval() -> None:
    for value in (0, 0.0, 0.999, None):
        in_unit_interval(config(value), "fine", "x")
    for value in (1, 1.0, -1e-9, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"^a\.x must be in \[0, 1\), got"):
            in_unit_interval(config(value), "fine", "x", prefix="a.")
