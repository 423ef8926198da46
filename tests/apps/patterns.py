"""Classes that are quick to learn: noisy copies of one pattern each."""

import numpy as np


def noisy_patterns(
    n: int, classes: int, channels: int = 1, size: int = 8, spread: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """x: [n, channels, size, size] float64; y: [n], the classes in turn."""
    generator = np.random.default_rng(7)
    shape = (channels, size, size)
    patterns = generator.normal(size=(classes, *shape))
    y = np.arange(n) % classes
    return patterns[y] + spread * generator.normal(size=(n, *shape)), y


def stored(factory, x: np.ndarray, y: np.ndarray, **more: np.ndarray) -> str:
    """The path of a new file with these arrays. factory: pytest's tmp_path_factory."""
    path = factory.mktemp("data") / "small.npz"
    np.savez(path, x=x, y=y, **more)
    return str(path)
