"""Slow, obvious selection of examples, on Python lists."""

from itertools import pairwise


def strata_budgets(sizes: list[int], n: int) -> list[int]:
    """CCS: visit strata from the smallest; min(size, floor(left / strata left))."""
    budgets = [0] * len(sizes)
    waiting = [i for i, size in enumerate(sizes) if size > 0]
    while waiting:
        smallest = min(waiting, key=lambda i: (sizes[i], i))
        budgets[smallest] = min(sizes[smallest], n // len(waiting))
        n -= budgets[smallest]
        waiting.remove(smallest)
    return budgets


def stratum(value: float, low: float, high: float, n_strata: int) -> int:
    """Number of the equal part of low ... high that a value is in; high in the last."""
    for i in range(n_strata):
        if value < low + (high - low) * (i + 1) / n_strata:
            return i
    return n_strata - 1


def graph_selection(
    scores: list[float], links: dict[int, dict[int, float]], gamma: float, n: int
) -> list[int]:
    """D2 with all values looked at in every step; links: {i: {j: distance}}."""
    from math import exp

    now = {
        i: s + sum(exp(-d) * scores[j] for j, d in links[i].items())
        for i, s in enumerate(scores)
    }
    chosen: list[int] = []
    while len(chosen) < n:
        best = max((i for i in now if i not in chosen), key=lambda i: (now[i], -i))
        chosen.append(best)
        for j, distance in links[best].items():
            if j not in chosen:
                now[j] -= exp(-gamma * distance) * now[best]
    return chosen


def entropy(entities: list) -> float:
    """Of a list of values, in nats."""
    from collections import Counter
    from math import log

    counts = Counter(entities).values()
    return -sum(c / len(entities) * log(c / len(entities)) for c in counts)


def removal(
    history: list[dict[int, tuple[bool, float]]], n_leaving: int, by: str
) -> set[int]:
    """Who leaves at a stage's end, by SparCL's rule or its release's, on dicts.

    history: of each epoch, {example: (right, margin)} of those that it showed; every
    example that has not left before is in one of them.
    """
    ranked = []
    for example in sorted(set().union(*history)):
        seen = [epoch.get(example) for epoch in history]
        first = next(s for s in seen if s is not None)
        told = []
        for s in seen:
            told.append(s if s is not None else told[-1] if told else first)
        right = [correct for correct, _ in told]
        if by == "misclassified":
            hard = right.count(False)
        else:
            forgotten = sum(a and not b for a, b in pairwise(right))
            hard = forgotten if any(right) else 10**9
        ranked.append((hard, -sum(margin for _, margin in told), example))
    return {example for _, _, example in sorted(ranked)[:n_leaving]}
