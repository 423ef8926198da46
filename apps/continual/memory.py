"""The memory of a device: what a training takes, and that it takes no more. On Linux.

    with memory.held(300, config):  # refused here if the training takes more
        result = train(config)

A trial in a process of its own finds what the training takes. A limit of the system
then holds: what needs more is refused, before the device runs out of memory.
"""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from apps.common.config import parse, to_toml
from apps.continual import streams, training
from apps.continual.config import Config
from apps.continual.result import logits_of
from apps.continual.train import step
from sparsekit.memory import peak_rss

ADDRESSES, RESIDENT, DATA = 0, 1, 5  # of /proc/self/statm
STEPS = 2  # of a task, in a trial
REFUSALS = ("not enough memory", "can't allocate memory", "could not create")  # torch's


@contextmanager
def held(megabytes: float | None, config: Config) -> Iterator[None]:
    """Within it this process is at most so many MB (10^6 bytes) large; None: no limit.

    Raises ValueError if the training takes more: before it by a trial, or in the middle
    of it, when its last checkpoint is as good as after any other interruption.
    """
    if megabytes is None:
        yield
        return
    if sys.platform != "linux" or config.device != "cpu":
        raise ValueError("memory_mb is held on Linux, for device cpu: leave it out")
    takes = needed(config)
    if takes > megabytes:
        raise ValueError(
            f"memory_mb is {megabytes:g}, but this training takes {takes:.0f} MB, as a "
            f"trial of {STEPS} steps a task shows: give it more, or take a smaller "
            "batch, buffer or model, or a sparse method with backend values"
        )
    _start_threads()
    # Of data, not of addresses: a library that is mapped late takes few pages of them.
    before = resource.getrlimit(resource.RLIMIT_DATA)
    room = max(0, round(megabytes * 1e6) - _pages(RESIDENT))
    resource.setrlimit(resource.RLIMIT_DATA, (_pages(DATA) + room, before[1]))
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        refused = isinstance(error, MemoryError) or any(
            r in str(error) for r in REFUSALS
        )
        if not refused:
            raise
        raise ValueError(
            f"the training wants more than memory_mb = {megabytes:g} MB: give it more "
            "and go on with --resume, if it has a folder"
        ) from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def limit(megabytes: float) -> None:
    """From now on this process may take so many MB (10^6 bytes) more; on Linux.

    What needs more raises MemoryError or torch's RuntimeError "not enough memory", so
    that a device learns it before its system ends the process. It cannot be undone.
    """
    most = _pages(ADDRESSES) + round(megabytes * 1e6)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def needed(config: Config) -> float:
    """MB that a process takes for this training, by a trial.

    Steps of the first two tasks, so that replay is among them. Moves of masks in a
    later step may take more.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text(to_toml(replace(config, out=None, resume=False)), "utf-8")
        command = [sys.executable, "-m", "apps.continual.memory", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise ValueError(f"the trial for memory_mb failed: {lines[-1]}")
    return float(done.stdout.split()[-1])


def trial(config: Config) -> float:
    """MB of this process after a few steps and one test."""
    stream = streams.load(config)
    state = training.build(config, stream)
    strategy = state.strategy
    for task in range(min(2, len(stream.tasks))):
        n = sum(len(stream.tasks[t].train) for t in strategy.sources(task))
        strategy.task = task
        strategy.begin_task(task)
        strategy.begin_epoch(0)
        batches = training.epoch_batches(config, strategy.chosen(0, n), task, 0)
        state.model.train()
        for index in batches[:STEPS]:
            step(state, state.batch(index, task))
    logits_of(state, getattr(stream.tasks[0], config.part), 0)
    return peak_rss() / 1e6


def _start_threads() -> None:
    """Of torch: their stacks count as memory, and most of it is never touched."""
    torch.ones(1 << 20).add_(1).sum()


def _pages(which: int) -> int:
    """Bytes of this process, of one kind that /proc/self/statm counts."""
    pages = Path("/proc/self/statm").read_text().split()[which]
    return int(pages) * resource.getpagesize()


if __name__ == "__main__":
    print(trial(parse(Config, ["--config", sys.argv[1]])))
