"""Prune first, then unlearn, and prove it.

unlearn(model, retain, forget, "l1_sparse")      any nn.Module, two datasets
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.unlearning.unlearning import Result, unlearn

__all__ = ["Result", "unlearn"]


def __getattr__(name: str) -> Any:
    """On demand: who verifies a receipt does not need torch, or the wait for it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from apps.unlearning import unlearning

    return getattr(unlearning, name)
