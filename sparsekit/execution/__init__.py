"""Sparse layers that are faster than dense ones on the wall clock."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsekit.execution.comparison import benchmark
    from sparsekit.execution.conv import SparseConv2d
    from sparsekit.execution.conversion import convert, dense_state_dict
    from sparsekit.execution.embedding import SparseEmbedding
    from sparsekit.execution.linear import SparseLinear

__all__ = [
    "SparseConv2d",
    "SparseEmbedding",
    "SparseLinear",
    "benchmark",
    "convert",
    "dense_state_dict",
]

_HOMES = {
    "SparseConv2d": "conv",
    "SparseEmbedding": "embedding",
    "SparseLinear": "linear",
    "benchmark": "comparison",
    "convert": "conversion",
    "dense_state_dict": "conversion",
}


def __getattr__(name: str) -> Any:
    # Late (PEP 562): the reader of exported models, in this package, needs no torch.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
