"""The memory of a process is what Linux, and what was allocated, say it is."""

import resource
import subprocess
import sys

import numpy as np
import pytest

from sparsekit import memory
from sparsekit.memory import peak_rss, restart_peak, rss

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="others forget no peak")
PAGE = resource.getpagesize()


RESIDENT = """
import resource
import numpy as np
from sparsekit.memory import peak_rss, restart_peak, rss
assert restart_peak()
before = rss()
with open("/proc/self/statm") as file:  # the same count, in pages
    assert abs(int(file.read().split()[1]) * resource.getpagesize() - before) < 2e6
block = np.ones(10_000_000)
assert 79e6 < rss() - before < 85e6
del block
assert abs(rss() - before) < 5e6
assert 79e6 < peak_rss() - before < 85e6
assert restart_peak()
assert peak_rss() - before < 5e6
"""


@LINUX
def test_what_is_resident_and_what_was():
    """80 MB more while they are there; afterwards the peak alone remembers them.

    In a fresh process: one that has loaded many libraries may keep what it freed.
    """
    subprocess.run([sys.executable, "-c", RESIDENT], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="others cannot forget a peak")
def test_what_was_freed_hides_no_peak():
    """50 MB after 50 were freed are 50 MB more, not the same ones again."""
    parts = [np.ones(5_000) for _ in range(1250)]  # 40 kB: from the heap
    last = np.ones(5_000)  # on top of them, so that the heap cannot shrink
    del parts
    restart_peak()
    before = peak_rss()
    parts = [np.ones(5_000) for _ in range(1250)]
    grown = peak_rss() - before
    assert 0.9 * 50e6 < grown < 1.2 * 50e6, (grown, len(parts), len(last))


@LINUX
def test_the_peak_is_not_that_of_the_process_that_started_it():
    """ru_maxrss of a small child begins with the 200 MB of its parent."""
    block = np.ones(25_000_000)
    code = "from sparsekit.memory import peak_rss; print(peak_rss())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert 2e6 < int(done.stdout) < 60e6 < block.nbytes


def test_a_system_that_forgets_no_peak(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "none" / "clear_refs")
    assert restart_peak() is False


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_a_system_without_status(platform, unit, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    monkeypatch.setattr(memory.sys, "platform", platform)
    expected = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    assert peak_rss() == rss() == expected


def test_no_torch():
    code = "import sys, sparsekit.memory; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
