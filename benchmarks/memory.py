"""The most memory that a process has taken, from some moment on."""

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path


def peak_rss() -> int:
    """Bytes. On Linux VmHWM: ru_maxrss begins with what the parent process had."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if "VmHWM" in x)
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> None:
    """Imports take more for a moment than the process has now. Linux can forget it.

    What was freed, such as the model that another was made of, is returned first: it
    would be taken again, and hide as much of the peak.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
