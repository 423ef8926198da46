"""Kernels in pieces: every task once, from any thread, also in a forked process."""

import multiprocessing
import threading

import numpy as np
import pytest
import torch
from numba import njit

from sparsekit.execution import threads


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
