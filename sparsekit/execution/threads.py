"""Spreads a compiled loop over threads, beside torch's own.

A kernel is a function (begin, end, *args), compiled with `nogil=True`, that does the
tasks begin .. end-1. It is not compiled with numba's `parallel=True`: entering such a
function takes 45 us even on one thread, against 1 us for a plain one and 15-20 us for
handing a part to another thread here; it compiles four to eight times as long; and
numba's portable pool ends the process when two Python threads enter it at once.

The threads wait in the kernel of the operating system, so that they take nothing from
torch's. Those spin for milliseconds after each operation on two or more threads, and
take a core from what follows: on two cores, right after a dense convolution, a sparse
one of 1.00 ms took 1.87 ms. With GOMP_SPINCOUNT=1000 in the environment before torch is
imported it takes 1.00 ms, and the dense one is no slower (4.0 ms both).
"""

import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

PIECES = 4  # a thread: whoever is slowed down by something else takes fewer
SMALL = 30_000  # nanoseconds that are not worth the hand-over


def number() -> int:
    """As many threads as torch uses, or as there are processors without torch."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    return int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count() or 1


def run(
    kernel: Callable[..., None],
    tasks: int,
    *args: Any,
    nanoseconds: float | None = None,
    pieces: int = PIECES,
) -> None:
    """kernel(0, tasks, *args), in pieces on several threads.

    Tasks must be independent: none writes what another reads or writes. Any number of
    threads may call this at the same time.

    Args:
        nanoseconds: a guess of what all tasks take on one thread, if known; a short
            one stays on this thread.
        pieces: how many a thread. Fewer if each begins with work that all repeat.
    """
    threads = min(number(), tasks)
    if threads <= 1 or (nanoseconds is not None and nanoseconds < SMALL):
        if tasks:
            kernel(0, tasks, *args)
        return
    _start(threads - 1)
    job = _Job(kernel, tasks, -(-tasks // (pieces * threads)), args)
    for _ in range(threads - 1):
        _queue.put(job)
    job.work()
    job.finished.acquire()
    if job.error is not None:
        raise job.error


class _Job:
    """Tasks that threads take in pieces until none is left.

    A thread that wakes up late finds nothing to do, and nobody waits for it.
    """

    def __init__(
        self, kernel: Callable[..., None], tasks: int, step: int, args: tuple[Any, ...]
    ):
        self.kernel, self.tasks, self.step, self.args = kernel, tasks, step, args
        self.lock = threading.Lock()
        self.next = 0
        self.done = 0
        self.error: BaseException | None = None
        self.finished = threading.Lock()
        self.finished.acquire()

    def work(self) -> None:
        while True:
            with self.lock:
                begin = self.next
                self.next = end = min(begin + self.step, self.tasks)
            if begin == end:
                return
            try:
                self.kernel(begin, end, *self.args)
            except BaseException as error:
                self.error = error
            with self.lock:
                self.done += end - begin
                last = self.done == self.tasks
            if last:
                self.finished.release()


_queue: SimpleQueue[_Job] = SimpleQueue()
_workers: list[threading.Thread] = []
_starting = threading.Lock()


def _start(workers: int) -> None:
    """At least so many threads wait for jobs."""
    if len(_workers) >= workers:
        return
    with _starting:
        while len(_workers) < workers:
            name = f"sparsekit-{len(_workers)}"
            thread = threading.Thread(target=_serve, name=name, daemon=True)
            thread.start()
            _workers.append(thread)


def _serve() -> None:
    while True:
        _queue.get().work()


def _forget() -> None:
    """In a forked process, which has none of the threads."""
    global _queue, _starting
    _queue, _starting = SimpleQueue(), threading.Lock()
    _workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
