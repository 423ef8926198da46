"""Sparsity that is measured: masks, dynamic sparse training, honest accounting."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsekit.sparsifier import Sparsifier

__all__ = ["Sparsifier"]


def __getattr__(name: str) -> Any:
    # Late (PEP 562): importing torch takes a second, and edge boxes have none.
    if name == "Sparsifier":
        from sparsekit.sparsifier import Sparsifier

        return Sparsifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
