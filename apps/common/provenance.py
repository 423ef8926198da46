"""Where a number comes from: commit, command, versions, device, profile, date."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("sparsekit", "torch", "numpy", "scipy")


def provenance(profile: str) -> dict[str, Any]:
    """What a result needs to be traced and repeated.

    Keys: commit (None outside a checkout), dirty (files differ from the commit, None
    if unknown), command, versions, device, profile, date.
    """
    commit, dirty = code_version()
    return {
        "commit": commit,
        "dirty": dirty,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": versions(),
        "device": device(),
        "profile": profile,
        "date": datetime.now(UTC).date().isoformat(),
    }


def stored_provenance(profile: str, commit: str | None = None) -> dict[str, Any]:
    """Without the command, whose paths have no place in results that are kept.

    commit: of the code, where there is no checkout to ask.
    """
    found = provenance(profile)
    del found["command"]
    return found if commit is None else found | {"commit": commit, "dirty": False}


# The code of a process is what it was when the process began, so once is enough.
@lru_cache(maxsize=1)
def code_version(root: Path = ROOT) -> tuple[str | None, bool | None]:
    """Commit of the checkout at `root`, and whether files differ from it.

    (None, None) if `root` is not the top of a checkout: an installed copy may lie in
    the `.venv` of somebody's own repository, whose commit says nothing about us.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    commit = _git(root, "rev-parse", "HEAD")
    if not top or not commit or Path(top).resolve() != root.resolve():
        return None, None
    status = _git(root, "status", "--porcelain")
    return commit, None if status is None else bool(status)


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command; None without git, or if it fails."""
    command = ["git", "-C", str(root), *arguments]
    # Within a hook of another repository these would name that one.
    names = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    env = {name: value for name, value in os.environ.items() if name not in names}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, env=env
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Python and the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # a source tree on the path is not an installed package
    return found


def device() -> str:
    """The processor, its threads, and the GPUs that this process uses."""
    torch = sys.modules.get("torch")  # seconds to import: only if it is in use
    threads = os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count() or 1)
    if torch is not None:
        threads = str(torch.get_num_threads())
    text = f"{processor()}, {threads} {'thread' if threads == '1' else 'threads'}"
    if torch is not None and torch.cuda.is_initialized():
        names = (
            torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
        )
        text = ", ".join([text, *names])
    return text


@lru_cache(maxsize=1)
def processor() -> str:
    """Model name of the CPU, or its architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown processor"
