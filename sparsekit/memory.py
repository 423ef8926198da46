"""The memory of this process: what is resident now, and the most that was. No torch."""

import ctypes
import gc
import sys
from contextlib import suppress
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def rss() -> int:
    """Bytes that are resident now; where the system does not tell, the most so far."""
    return _status("VmRSS")


def peak_rss() -> int:
    """Bytes: the most that was resident, since the start or since `restart_peak`.

    Of the process, not of one training: train in a fresh process to compare. On Linux
    VmHWM, since ru_maxrss begins with what the parent process had.
    """
    return _status("VmHWM")


def restart_peak() -> bool:
    """Counts the peak from now on; False where the system does not allow it.

    Imports take more for a moment than the process has now. What was freed, such as the
    model that another was made of, is returned first: it would be taken again, and hide
    as much of the peak.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _status(field: str) -> int:
    if STATUS.exists():
        lines = STATUS.read_text().splitlines()
        line = next(line for line in lines if line.startswith(f"{field}:"))
        return int(line.split()[1]) * 1024
    import resource  # here: Windows has none, and asks for no peak

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
