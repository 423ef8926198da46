"""What a layer costs on this machine, measured once and remembered."""

import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit import atomic

CALLS = 20  # at most, and at least 5
BUDGET = 0.5  # seconds a measurement, unless 5 calls take longer
QUANTILE = 0.2  # others share the machine: the fast calls are the undisturbed ones


def seconds(key: str, make: Callable[[], Callable[[], Any]]) -> float:
    """Time of one call of `make()`, remembered for this machine under `key`.

    The 20th percentile of up to 20 calls after two that warm up. `make` is not called
    if the time is known.
    """
    cache = _Cache()
    full = f"{machine()} | {key}"
    if full not in cache.times:
        cache.add(full, measure(make()))
    return cache.times[full]


def measure(call: Callable[[], Any]) -> float:
    """The 20th percentile of the times of a call, in seconds."""
    for _ in range(2):
        call()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 5 or (
        len(times) < CALLS and time.perf_counter() - began < BUDGET
    ):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[int(QUANTILE * len(times))]


def layer_call(module: nn.Module, x: Tensor, training: bool) -> Callable[[], Any]:
    """One use of a layer: forward, and backward to input and weights if training."""
    module = module.train(training)
    if not training:

        def inference() -> None:
            with torch.no_grad():
                module(x)

        return inference
    x = x.detach().requires_grad_()
    gradient = torch.randn_like(module(x))

    def step() -> None:
        module(x).backward(gradient)
        x.grad = None
        module.zero_grad()

    return step


@lru_cache
def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str:
    """Of a library; "source" if it runs from a folder and was not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "source"


def machine() -> str:
    """What a time depends on beside the layer: processor, threads and versions."""
    names = "torch", "numba", "sparsekit"
    libraries = " ".join(f"{name} {_version(name)}" for name in names)
    return f"{_processor()} | {torch.get_num_threads()} threads | {libraries}"


def cache_path() -> Path:
    """$SPARSEKIT_CACHE/calibration.json, or in the user's cache folder."""
    chosen = os.environ.get("SPARSEKIT_CACHE")
    if chosen:
        return Path(chosen) / "calibration.json"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "sparsekit" / "calibration.json"


class _Cache:
    """{key: seconds} in a file. Unreadable: measured anew. Unwritable: not kept."""

    def __init__(self) -> None:
        self.path = cache_path()
        self.times: dict[str, float] = {}
        with suppress(OSError, ValueError):
            read = json.loads(self.path.read_text("utf-8"))
            if isinstance(read, dict):
                self.times = {
                    key: float(value)
                    for key, value in read.items()
                    if isinstance(value, (int, float)) and 0 < value < 1e6
                }

    def add(self, key: str, value: float) -> None:
        self.times[key] = value
        with suppress(OSError):
            text = json.dumps(self.times, indent=1, sort_keys=True)
            atomic.write_text(self.path, text + "\n")
