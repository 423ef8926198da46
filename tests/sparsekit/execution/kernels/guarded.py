"""Arrays between guards of NaN: who reads or writes beyond an end is noticed."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sparsekit.execution import threads
from sparsekit.execution.kernels.memory import zeros

GUARD = 512  # floats on either side


class Room:
    """Hands out arrays that begin at 64 bytes, and checks what lies around them."""

    def __init__(self) -> None:
        self.taken: list[NDArray[np.float32]] = []

    def array(self, *shape: int, fill: float = 7e7) -> NDArray[np.float32]:
        size = int(np.prod(shape))
        memory = zeros((size + 2 * GUARD,))
        memory[:] = np.nan
        inside = memory[GUARD : GUARD + size]
        inside[:] = fill
        self.taken.append(memory)
        return inside.reshape(shape)

    def copy(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        array = self.array(*np.shape(values))
        array[...] = values
        return array

    def check(self) -> None:
        for memory in self.taken:
            assert np.isnan(memory[:GUARD]).all()
            assert np.isnan(memory[-GUARD:]).all()


@contextmanager
def runs() -> Iterator[list[tuple[str, int, dict]]]:
    """(kernel, tasks, options) of every call of `threads.run` meanwhile."""
    found: list[tuple[str, int, dict]] = []
    run = threads.run

    def noted(kernel, tasks, *args, **options) -> None:
        found.append((kernel.__name__, tasks, options))
        run(kernel, tasks, *args, **options)

    threads.run = noted
    try:
        yield found
    finally:
        threads.run = run


def in_parts(kernel, tasks: int, *args) -> None:
    """All tasks, in uneven parts and not in order, as threads take them."""
    edges = [0, tasks // 3, tasks // 2, tasks]
    for begin, end in reversed(list(pairwise(edges))):
        kernel(begin, end, *args)
