"""Kernels in pieces: every task once, from any thread, also in a forked process."""

import multiprocessing
import os
import sys
import threading
from queue import SimpleQueue

import numpy as np
import pytest
import torch
from numba import njit

from sparsekit.execution import blocked, pool, threads
from sparsekit.execution.norm import BlockedBatchNorm2d


@njit(nogil=True)
def count(begin, end, counts):
    for task in range(begin, end):
        counts[task] += task + 1


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("tasks", [0, 1, 2, 7, 1009])
def test_every_task_runs_once(two_threads, tasks):
    counts = np.zeros(tasks + 1)
    threads.run(count, tasks, counts)
    np.testing.assert_array_equal(counts, [*range(1, tasks + 1), 0])


def test_two_python_threads_at_once(two_threads):
    """numba's own pool would end the process here."""
    results = [np.zeros(101) for _ in range(2)]

    def work(counts):
        for _ in range(300):
            threads.run(count, 101, counts)

    callers = [threading.Thread(target=work, args=(counts,)) for counts in results]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for counts in results:
        np.testing.assert_array_equal(counts, 300 * np.arange(1, 102))


def test_threads_really_take_part(two_threads):
    """Two tasks that wait for each other: one thread alone would never end."""
    meeting = threading.Barrier(2, timeout=60)
    threads.run(lambda begin, end: meeting.wait(), 2)


def test_an_error_comes_back(two_threads):
    def fail(begin, end):
        if begin <= 3 < end:
            raise ValueError("task 3")

    with pytest.raises(ValueError, match="task 3"):
        threads.run(fail, 8)
    threads.run(count, 8, np.zeros(8))  # and the threads live on


@pytest.mark.parametrize("nanoseconds", [0, threads.SMALL - 1])
def test_short_work_stays_here(two_threads, nanoseconds):
    names = set()
    threads.run(
        lambda begin, end: names.add((threading.current_thread().name, begin, end)),
        8,
        nanoseconds=nanoseconds,
    )
    assert names == {(threading.current_thread().name, 0, 8)}


def test_number_is_that_of_torch():
    assert threads.number() == torch.get_num_threads()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs fork"
)
def test_a_forked_process_starts_its_own_threads(two_threads):
    threads.run(count, 8, np.zeros(8))
    child = multiprocessing.get_context("fork").Process(
        target=test_threads_really_take_part, args=(None,)
    )
    child.start()
    child.join(60)
    assert child.exitcode == 0


@pytest.fixture
def own_threads(monkeypatch):
    """Says how many threads there are; none of them was started yet."""
    monkeypatch.setattr(threads, "_workers", [])
    monkeypatch.setattr(threads, "_queue", Noted())

    def say(n):
        monkeypatch.setattr(threads, "number", lambda: n)

    say(2)
    return say


class Noted(SimpleQueue):
    """Counts what was put in."""

    def put(self, item):
        self.puts = getattr(self, "puts", 0) + 1
        super().put(item)


@pytest.mark.parametrize(
    ("number", "tasks", "pieces", "step"),
    [(2, 16, 4, 2), (2, 17, 4, 3), (2, 17, 1, 9), (3, 12, 4, 1), (3, 13, 2, 3)],
)
def test_pieces(own_threads, number, tasks, pieces, step):
    own_threads(number)
    parts = []
    threads.run(lambda *part: parts.append(part), tasks, pieces=pieces)
    expected = [(i, min(i + step, tasks)) for i in range(0, tasks, step)]
    assert sorted(parts) == expected
    assert len(threads._workers) == threads._queue.puts == number - 1
    assert all(t.daemon and t.name.startswith("sparsekit-") for t in threads._workers)
    threads.run(lambda *part: None, tasks)
    assert len(threads._workers) == number - 1  # the same go on


def test_four_pieces_a_thread(own_threads):
    parts = []
    threads.run(lambda *part: parts.append(part), 80)
    assert len(parts) == 8


def test_fewer_tasks_than_threads(own_threads):
    own_threads(9)
    threads.run(lambda *part: None, 3)
    assert len(threads._workers) == 2


@pytest.mark.parametrize(
    ("number", "tasks", "nanoseconds"),
    [(1, 8, None), (2, 1, None), (2, 8, 29_999), (2, 8, 29_999.9), (0, 8, None)],
)
def test_what_stays_on_this_thread(own_threads, number, tasks, nanoseconds):
    own_threads(number)
    parts = []
    threads.run(
        lambda *part: parts.append(part), tasks, "given", nanoseconds=nanoseconds
    )
    assert parts == [(0, tasks, "given")]
    assert threads._workers == []


@pytest.mark.parametrize("nanoseconds", [None, 30_000, 1e9])
def test_what_is_spread(own_threads, nanoseconds):
    parts = []
    threads.run(lambda *part: parts.append(part), 2, nanoseconds=nanoseconds)
    assert sorted(parts) == [(0, 1), (1, 2)]
    assert len(threads._workers) == 1


def test_no_tasks_no_call(own_threads):
    threads.run(lambda *part: pytest.fail("called"), 0)


def test_how_many_threads_there_are_without_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads.number() == 3
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.setenv("OMP_NUM_THREADS", "0")
    assert threads.number() == 5
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads.number() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert threads.number() == 1


# ---- from which size on a layer is worth other threads -------------------------------


def images(channels, side=30):
    """Blocked, of 16 images: channels * 1024 * 16 floats with the border."""
    return blocked.to_blocked(torch.randn(16, channels, side, side))


def gradient_of(call, x):
    x = x.requires_grad_()
    y = call(x)
    grad = torch.ones_like(y)
    return lambda: y.backward(grad, retain_graph=True)


# A nanosecond is worth so many floats; below 30,000 nanoseconds nothing is handed over.
LAYERS = {
    "maximum": (lambda x: pool.max_pool(x, 2, 2), 2),
    "mean": (lambda x: pool.average_pool(x, 2, 2), 4),
    "norm": (lambda x: BlockedBatchNorm2d(x.shape[1])(x, 16), 5),
    "global mean": (lambda x: pool.global_mean(x, 16), 8),
}
BACKWARD = {"maximum": 2, "mean": 4, "norm": 3, "global mean": 8}


def spread(run, monkeypatch):
    """Whether the work of a call is spread, and how many nanoseconds were guessed."""
    guesses = []
    whole = threads.run

    def noted(kernel, tasks, *arguments, nanoseconds=None, **more):
        guesses.append(nanoseconds)
        return whole(kernel, tasks, *arguments, nanoseconds=nanoseconds, **more)

    monkeypatch.setattr(threads, "run", noted)
    run()
    monkeypatch.setattr(threads, "run", whole)
    return max(guesses) >= 30_000


@pytest.mark.parametrize("name", LAYERS)
def test_a_pass_over_memory_is_spread_from_a_size_on(monkeypatch, name):
    call, forward = LAYERS[name]
    for rate, make in (
        (forward, lambda x: lambda: call(x)),
        (BACKWARD[name], lambda x: gradient_of(call, x)),
    ):
        # With its border an image of 30 x 30 has 1024 pixels; 16 lie side by side.
        enough = -(-rate * 30_000 // (1024 * 16))
        assert spread(make(images(enough)), monkeypatch)
        assert not spread(make(images(enough - 1)), monkeypatch)
