"""The compiled loops: numba and numpy only, so that they run without torch."""
