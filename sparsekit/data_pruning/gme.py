"""Greedy maximum entropy: a sample in which the rare values are as common as possible.

Items carry lists of entities in several variables (the genres of a film and its cast,
say). One by one, the item is taken that makes the distribution of entities most even.

    H = log S - Q / S,   S = sum of counts, Q = sum of c log c

so that an item changes only the terms of its own entities.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Entities = Sequence[Hashable]


@dataclass(frozen=True)
class Sample:
    """order: [n], as they were taken; entropies: [n, V] after each, in nats."""

    order: Tensor
    entropies: Tensor


def entropy_with(counts: Sequence[int], item: Sequence[int]) -> float:
    """Entropy of the counts after the entities in `item` (numbers from 0) are added.

    >>> round(entropy_with([0, 0, 1, 2, 0], [1, 2, 3, 4]), 5)
    1.27703
    """
    variable = _Variable([list(item)], len(counts), np.array(counts, float))
    return float(variable.entropies()[0])


def maximum_entropy(
    items: Sequence[Sequence[Entities]],
    n: int,
    *,
    objective: str = "utopia",
    binarised: bool = False,
    candidates: int | None = None,
    generator: torch.Generator | None = None,
) -> Sample:
    """Takes n of N items.

    Args:
        items: [N][V] lists of entities, any hashable values; empty is fine.
        objective: "utopia", nearest to (log |V_1|, ..., log |V_V|), the entropies if
            all entities were equally common; or "sum", the largest sum of entropies.
        binarised: count an entity once an item.
        candidates: at each step look at that many random items only; needs `generator`.

    Entropies are compared at 5 decimals; of equal items the first is taken. A fall of
    the entropies is a natural place to stop.

    >>> films = [[["drama"]], [["drama"]], [["comedy"]], [["drama", "comedy"]]]
    >>> maximum_entropy(films, 2).order  # both genres at once; then no order is worse
    tensor([3, 0])

    Source: Delmas, Wysocka, Freitas 2023 (GME), arXiv 2311.06364.
    """
    if not 0 <= n <= len(items):
        raise ValueError(f"n is in 0 ... {len(items)} (items), got {n}")
    if objective not in ("utopia", "sum"):
        raise ValueError(f"objective is 'utopia' or 'sum', got {objective!r}")
    if candidates is not None and (candidates < 1 or generator is None):
        raise ValueError("candidates is at least 1, and needs a generator")
    variables = [_variable(column, binarised) for column in zip(*items, strict=True)]
    utopia = np.array([np.log(max(1, len(v.counts))) for v in variables])
    left = np.ones(len(items), bool)
    order, entropies = [], []
    for _ in range(n):
        after = np.stack([v.entropies() for v in variables], 1).round(5)
        if objective == "utopia":
            cost = np.linalg.norm(after - utopia, axis=1)
        else:
            cost = -after.sum(1)
        pool = np.flatnonzero(left)
        if candidates is not None and candidates < len(pool):
            drawn = torch.randperm(len(pool), generator=generator)[:candidates]
            pool = pool[np.sort(drawn.numpy())]
        best = int(pool[cost[pool].argmin()])
        left[best] = False
        for variable in variables:
            variable.add(best)
        order.append(best)
        entropies.append([v.entropy() for v in variables])
    values = torch.tensor(entropies, dtype=torch.float64).view(n, len(variables))
    return Sample(torch.tensor(order, dtype=torch.int64), values)


class _Variable:
    """Counts of one variable's entities, and its entropy with each item added."""

    def __init__(self, items: list[list[int]], n_entities: int, counts: np.ndarray):
        pairs = [Counter(item) for item in items]
        self.n_items, self.counts = len(items), counts
        self.item = np.repeat(np.arange(len(items)), [len(p) for p in pairs])
        self.entity = np.array([e for p in pairs for e in p], int)
        self.times = np.array([k for p in pairs for k in p.values()], float)
        self.added = np.bincount(self.item, self.times, minlength=len(items))

    def entropies(self) -> np.ndarray:
        """[N]: O(entities of the items)."""
        old = self.counts[self.entity]
        gain = _log_times(old + self.times) - _log_times(old)
        q = _log_times(self.counts).sum()
        q = q + np.bincount(self.item, gain, minlength=self.n_items)
        return _entropy(self.counts.sum() + self.added, q)

    def entropy(self) -> float:
        s, q = self.counts.sum(), _log_times(self.counts).sum()
        return float(_entropy(np.array([s]), np.array([q]))[0])

    def add(self, item: int) -> None:
        own = self.item == item
        self.counts[self.entity[own]] += self.times[own]


def _variable(column: Sequence[Entities], binarised: bool) -> _Variable:
    number: dict[Hashable, int] = {}
    for entities in column:
        for entity in entities:
            number.setdefault(entity, len(number))
    items = [[number[e] for e in entities] for entities in column]
    if binarised:
        items = [sorted(set(item)) for item in items]
    return _Variable(items, len(number), np.zeros(len(number)))


def _log_times(c: np.ndarray) -> np.ndarray:
    return c * np.log(np.maximum(c, 1))


def _entropy(s: np.ndarray, q: np.ndarray) -> np.ndarray:
    """log S - Q / S, and 0 for no counts."""
    s = np.maximum(s, 1)  # without counts Q is 0
    return np.log(s) - q / s
