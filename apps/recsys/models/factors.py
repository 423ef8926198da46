"""Users and items as vectors: a score is an inner product."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp


@dataclass(frozen=True)
class Factors:
    """A fitted model. users: [U, d] float32, items: [I, d] float32.

    Raises ValueError for shapes that do not fit, NaN and infinity.

    >>> model = Factors(np.eye(2, dtype=np.float32), np.ones((3, 2), np.float32))
    >>> model.scores(np.array([1])).tolist()
    [[1.0, 1.0, 1.0]]
    """

    users: np.ndarray
    items: np.ndarray

    def __post_init__(self) -> None:
        for name in ("users", "items"):
            array = np.ascontiguousarray(getattr(self, name), dtype=np.float32)
            if array.ndim != 2 or not np.isfinite(array).all():
                raise ValueError(
                    f"{name} must be finite vectors, [{name}, d], got shape "
                    f"{array.shape}"
                )
            object.__setattr__(self, name, array)
        if self.users.shape[1] != self.items.shape[1]:
            raise ValueError(
                f"users have {self.users.shape[1]} dimensions, items have "
                f"{self.items.shape[1]}"
            )

    def scores(self, users: np.ndarray) -> np.ndarray:
        """users: [B] int64; returns [B, I] float32, larger = recommend."""
        return self.users[users] @ self.items.T

    def best(self, users: np.ndarray, k: int, known: sp.csr_array) -> np.ndarray:
        """[B, k] int32: each user's best items that are not known; see `topk`."""
        from apps.recsys.topk import top_k_factors  # numba, which compiles on import

        return top_k_factors(self.users[users], self.items, k, known[users]).items
