"""Ranking metrics of one list, in the words of their definitions."""

import math


def list_metrics(ranked: list[int], relevant: set[int], k: int) -> dict[str, float]:
    """recall, ndcg, mrr, map, hit and precision of the first k; NaN without relevant.

    ranked: item indices, best first; negative ones are empty places.
    """
    names = ("recall", "ndcg", "mrr", "map", "hit", "precision")
    if not relevant:
        return dict.fromkeys(names, math.nan)
    gain, first, average, found = 0.0, 0.0, 0.0, 0
    for rank, item in enumerate(ranked[:k], start=1):
        if item in relevant:
            found += 1
            gain += 1 / math.log2(rank + 1)
            average += found / rank
            first = first or 1 / rank
    best = sum(1 / math.log2(r + 1) for r in range(1, min(k, len(relevant)) + 1))
    values = (
        found / len(relevant), gain / best, first, average / len(relevant),
        float(found > 0), found / k,
    )  # fmt: skip
    return dict(zip(names, values, strict=True))
