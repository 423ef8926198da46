"""Run a benchmark and keep what it found, for the README and the book's first page.

    python -m benchmarks.front.keep inference
    python -m benchmarks.front.keep mlp_training --width 4096 --rounds 5
    python -m benchmarks.front.keep density --as-it-is     # do not run it again
    python -m benchmarks.front.page                        # then make the pages anew

`benchmarks/results/NAME.json` holds what NAME wrote to build/benchmarks (`report`) and
how: arguments, seconds, the machine's load before and after, commit, versions, device
and date. Speed wants a quiet machine; the load says how quiet it was. On a busy one
put `chrt -f 10` before the command: the benchmark then waits for nobody. It runs as
`make bench` runs it: on one thread, unless OMP_NUM_THREADS says otherwise.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from apps.common.provenance import provenance
from benchmarks.reports import ROOT
from sparsekit import atomic

BUILT, KEPT = ROOT / "build" / "benchmarks", ROOT / "benchmarks" / "results"
THREADS = {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000"}  # as in the Makefile


def keep(name: str, arguments: list[str], as_it_is: bool = False) -> Path:
    """Run `benchmarks.NAME` unless `as_it_is`; the path of what is kept.

    Raises ValueError for an unknown name and if there is no report,
    subprocess.CalledProcessError if the benchmark fails.
    """
    script = ROOT / "benchmarks" / f"{name}.py"
    if not script.is_file() or "__main__" not in script.read_text("utf-8"):
        raise ValueError(f"no benchmark {name!r}; see `ls benchmarks`")
    began, loads, seconds = time.time(), [], None
    if not as_it_is:
        loads.append(os.getloadavg()[0])
        command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
        subprocess.run(command, cwd=ROOT, check=True, env={**THREADS, **os.environ})
        loads.append(os.getloadavg()[0])
        seconds = round(time.time() - began, 1)
    built = BUILT / f"{name}.json"
    if not built.is_file():
        raise ValueError(f"no report at {built.relative_to(ROOT)}: run it first")
    written = built.stat().st_mtime
    if not as_it_is and written < began:
        raise ValueError(f"{built.relative_to(ROOT)} is older than this run")
    report = json.loads(built.read_text("utf-8"))
    kept = KEPT / f"{name}.json"
    content = {
        "benchmark": name,
        "arguments": arguments,
        "seconds": seconds,
        "load": [round(load, 2) for load in loads],
        "priority": "unknown" if as_it_is else priority(),
        "provenance": origin(report, written),
        "report": report,
    }
    atomic.write_text(kept, json.dumps(content, indent=1) + "\n")
    return kept


def priority() -> str:
    """Whether this process and those it starts wait for others, as far as is known."""
    if not hasattr(os, "sched_getscheduler"):
        return "unknown"
    real_time = os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)
    return "real-time" if real_time else "normal"


def origin(report: Any, written: float) -> dict[str, Any]:
    """The report's own provenance, or this machine's with the date of the file."""
    own = report.pop("provenance", None) if isinstance(report, dict) else None
    if own is None:
        own = provenance("full")
        if written < time.time() - 3600:  # of an earlier checkout, perhaps
            own["commit"], own["dirty"] = None, None
        own["date"] = datetime.fromtimestamp(written, UTC).date().isoformat()
    return {key: value for key, value in own.items() if key != "command"}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.front.keep", description=__doc__.split("\n")[0]
    )
    parser.add_argument("name", help="a file of benchmarks/, without .py")
    parser.add_argument("--as-it-is", action="store_true", help="keep, do not run")
    args, rest = parser.parse_known_args()
    try:
        print(keep(args.name, rest, args.as_it_is).relative_to(ROOT))
    except (ValueError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
