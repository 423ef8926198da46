"""What benchmarks share: flags, tables, and what they write: JSON, a page beside it."""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from apps.common.provenance import stored_provenance
from sparsekit import atomic

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "build" / "benchmarks"
THREADS = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def parser(
    doc: str | None, out: str = "", quick: str = "", **counts: int
) -> argparse.ArgumentParser:
    """Flags of a benchmark with this docstring.

    out: the JSON file that --out names; without it, --out is a folder. quick: what
    --quick does. counts: defaults of whole numbers, as rounds=9.
    """
    made = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    for name, default in counts.items():
        made.add_argument(f"--{name}", type=int, default=default)
    if quick:
        made.add_argument("--quick", action="store_true", help=quick)
    where = "JSON, with a table in Markdown beside it" if out else "a folder"
    where += " (default: %(default)s)"
    made.add_argument("--out", type=Path, default=BUILT / out, help=where)
    return made


def setting(args: argparse.Namespace) -> dict[str, Any]:
    """The whole numbers that were asked for, the machine, torch, and provenance."""
    numbers = {name: value for name, value in vars(args).items() if type(value) is int}
    return numbers | {
        "machine": platform.machine(),
        "torch": version("torch"),
        "provenance": stored_provenance("full"),
    }


def fresh(name: str, *arguments: object, **environment: str) -> Any:
    """What `python -m benchmarks.NAME ARGUMENTS` prints last, JSON; a new process."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]
    env = {**os.environ, **environment}
    done = subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.PIPE, env=env
    )
    return json.loads(done.stdout.splitlines()[-1])


def milliseconds(times: dict[str, float], digits: int) -> str:
    """Times in seconds as text.

    >>> milliseconds({"eager": 0.0123, "compiled": 0.01}, 1)
    'eager 12.3 ms, compiled 10.0 ms'
    """
    return ", ".join(f"{name} {1e3 * t:.{digits}f} ms" for name, t in times.items())


def table(titles: str, rows: Iterable[str]) -> list[str]:
    """Lines of a Markdown table; cells have bars between them.

    >>> table("form | ms", ["dense | 3", "sparse | 2"])
    ['| form | ms |', '|---|---|', '| dense | 3 |', '| sparse | 2 |']
    """
    rule = "---|" * (titles.count("|") + 1)
    return [f"| {titles} |", f"|{rule}", *(f"| {row} |" for row in rows)]


def write(path: Path, report: Any, page: Iterable[str], title: str = "") -> str:
    """Writes PATH, and the lines of the page to the same with .md; the page."""
    text = "\n".join([*([f"# {title}", ""] if title else []), *page]) + "\n"
    atomic.write_text(path, json.dumps(report, indent=1) + "\n")
    atomic.write_text(path.with_suffix(".md"), text)
    return text


def save(path: Path, report: Any, page: Iterable[str], title: str = "") -> None:
    """Writes both, and prints the page."""
    print(write(path, report, page, title))
