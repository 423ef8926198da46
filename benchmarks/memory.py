"""The most memory that a process takes, from some moment on."""

import ctypes
import gc
from contextlib import suppress
from pathlib import Path


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
