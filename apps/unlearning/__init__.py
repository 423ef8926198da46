"""Prune first, then unlearn, and prove it.

unlearn(model, retain, forget, "l1_sparse")      any nn.Module, two datasets
"""

from apps.unlearning.unlearning import Result, unlearn

__all__ = ["Result", "unlearn"]
