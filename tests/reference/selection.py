"""Slow, obvious selection on Python lists; a stable sort decides ties."""


def highest(scores: list, n: int, among: list[bool] | None = None) -> list[bool]:
    candidates = [i for i in range(len(scores)) if among is None or among[i]]
    best = sorted(candidates, key=lambda i: -scores[i])[:n]
    return [i in best for i in range(len(scores))]


def moved(
    mask: list[bool], drop: list, grow: list, n: int, exclude_dropped: bool
) -> list[bool]:
    active = [i for i, alive in enumerate(mask) if alive]
    kept = sorted(active, key=lambda i: -drop[i])[: len(active) - n]
    absent = [
        i
        for i in range(len(mask))
        if i not in kept and not (exclude_dropped and mask[i])
    ]
    grown = sorted(absent, key=lambda i: -grow[i])[:n]
    return [i in kept or i in grown for i in range(len(mask))]


def by_one_threshold(scores: dict[str, list], budget: int, floor: int) -> dict:
    """Drop one entry at a time, lowest first, the latest first among ties."""
    entries = [
        (value, -order, -i, name)
        for order, (name, values) in enumerate(scores.items())
        for i, value in enumerate(values)
    ]
    counts = {name: len(values) for name, values in scores.items()}
    for _, _, _, name in sorted(entries):
        if sum(counts.values()) == budget:
            break
        if counts[name] > floor:
            counts[name] -= 1
    return counts
