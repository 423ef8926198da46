"""The images that this app trains on: see `apps.common.images`."""

from apps.common.images import Split, Splits, load

__all__ = ["Split", "Splits", "load"]
