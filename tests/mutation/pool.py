"""Runs jobs in forked processes, as many at a time as there are cores."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.mutation.child import fork

GRACE = 30.0  # seconds; without them faults that survive would be cut off more often


@dataclass
class Job:
    """Work for one process, and the seconds after which it is taken for endless."""

    what: Any
    work: Callable[[], dict[str, Any]]
    limit: float
    started: float = field(default=0.0, init=False)
    log: Path = field(default=Path(), init=False)


def run(
    jobs: Iterable[Job], workers: int, folder: Path, deadline: float
) -> Iterator[tuple[Job, dict[str, Any] | None, float]]:
    """Yields (job, result, seconds) as jobs end; the result is None after the limit.

    No job begins in the last GRACE seconds before the deadline (of time.monotonic);
    past it what still runs is ended without a result.
    """
    waiting, running = iter(jobs), dict[int, Job]()
    begin_until = deadline - min(GRACE, (deadline - time.monotonic()) / 4)
    n, more = 0, True
    try:
        while more or running:
            while more and len(running) < workers and time.monotonic() < begin_until:
                job = next(waiting, None)
                if job is None:
                    more = False
                    break
                job.log, n = folder / f"{n % (2 * workers)}-{n}.log", n + 1
                job.started = time.monotonic()
                running[fork(job.work, job.log)] = job
            if time.monotonic() >= (deadline if running else begin_until):
                return
            time.sleep(0.02)
            for pid, job in list(running.items()):
                seconds = time.monotonic() - job.started
                done, _ = os.waitpid(pid, os.WNOHANG)
                if done or seconds > job.limit:
                    end(pid, reap=not done)
                    del running[pid]
                    yield job, result_of(job, bool(done)), seconds
    finally:
        for pid in running:
            end(pid)


def result_of(job: Job, ended: bool) -> dict[str, Any] | None:
    """What the process wrote; a process that dies without a result has failed."""
    path = job.log.with_suffix(".json")
    found: dict[str, Any] | None = None
    if ended:
        found = {"failed": ["the process died"], "seconds": {}}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(path.read_text("utf-8"))
    for file in (path, job.log):
        file.unlink(missing_ok=True)
    return found


def end(pid: int, reap: bool = True) -> None:
    """Ends a process and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if reap:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
