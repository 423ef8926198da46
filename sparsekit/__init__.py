"""Sparsity that is measured: masks, dynamic sparse training, honest accounting."""

from sparsekit.sparsifier import Sparsifier

__all__ = ["Sparsifier"]
