"""Times of calls, compared in interleaved rounds."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch


def milliseconds(call: Callable[[], Any], calls: int, device: str) -> float:
    """Of one call, mean of as many in a row."""
    if device == "cpu":
        began = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - began) * 1e3 / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / calls


def race(
    calls: dict[str, Callable[[], Any]], rounds: int, device: str
) -> dict[str, dict[str, float]]:
    """{name: {ms, speedup}} against the call named dense, in interleaved rounds."""
    counts = {}
    for name, call in calls.items():
        call()  # warms up
        once = milliseconds(call, 1, device)
        counts[name] = max(1, min(30, int(3 / once)))  # about 3 ms a round
    times = [
        {name: milliseconds(call, counts[name], device) for name, call in calls.items()}
        for _ in range(rounds)
    ]
    return {
        name: {
            "ms": median(t[name] for t in times),
            "speedup": median(t["dense"] / t[name] for t in times),
        }
        for name in calls
    }
