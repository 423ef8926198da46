"""Ranges of settings, checked before any work.

    at_least(1, config, "width", "epochs")
    in_unit_interval(config, "dropout")
    positive(config, "lr")

A setting that is None was not given, and passes. NaN and infinity do not. The
ValueError names the setting, its range and what it is. prefix: as in "llmrec.".
"""

import math
from collections.abc import Iterator
from typing import Any


def at_least(low: float, config: Any, *names: str, prefix: str = "") -> None:
    for name, value in _given(config, names):
        if not (value >= low and math.isfinite(value)):
            raise ValueError(f"{prefix}{name} must be at least {low}, got {value}")


def positive(config: Any, *names: str, prefix: str = "") -> None:
    for name, value in _given(config, names):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{prefix}{name} must be positive, got {value}")


def in_unit_interval(config: Any, *names: str, prefix: str = "") -> None:
    """From 0 to below 1."""
    for name, value in _given(config, names):
        if not 0 <= value < 1:
            raise ValueError(f"{prefix}{name} must be in [0, 1), got {value}")


def _given(config: Any, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    values = ((name, getattr(config, name)) for name in names)
    return ((name, value) for name, value in values if value is not None)
