"""Sparse layers that are faster than dense ones on the wall clock."""
