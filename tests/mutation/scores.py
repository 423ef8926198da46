"""Reads results: the share of faults that were noticed, and those that were not."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.mutation.lines import digest

NOTICED = ("killed", "timeout")
Results = dict[tuple[str, int], dict[str, Any]]


def read(path: Path, tree: Path) -> Results:
    """The last result of each fault, of files that have not changed since."""
    found: Results = {}
    if not path.exists():
        return found
    for line in path.read_text("utf-8").splitlines():
        result = json.loads(line)
        file = result["file"]
        if result["source"] == digest(tree / file):
            found[file, result["number"]] = result
    return found


def unfinished(
    chosen: Sequence[dict[str, Any]], path: Path, again: bool
) -> list[dict[str, Any]]:
    """What has no result yet; with `again` first those that survived."""
    results = read(path, Path.cwd())
    state = [results.get((m["file"], m["number"]), {}).get("result") for m in chosen]
    pairs = list(zip(chosen, state, strict=True))
    survived = [m for m, result in pairs if again and result == "survived"]
    return survived + [m for m, result in pairs if result is None]


def text(results: Results) -> str:
    """A line a file, the sum, and a line a survivor."""
    counts: dict[str, Counter[str]] = {}
    for (file, _), result in results.items():
        counts.setdefault(file, Counter())[result["result"]] += 1
    counts["all"] = sum(counts.values(), Counter())
    lines = ["noticed  killed  timeout  survived  file"]
    for file, count in sorted(counts.items()):
        noticed = sum(count[name] for name in NOTICED)
        share = noticed / max(1, count.total())
        lines.append(
            f"{share:7.1%}  {count['killed']:6d}  {count['timeout']:7d}  "
            f"{count['survived']:8d}  {file}"
        )
    for (file, _), r in sorted(results.items()):
        if r["result"] == "survived":
            lines.append(
                f"{file}:{r['line']}: {r['operator']}: {r['before']} -> {r['after']}"
                f"  ({r['tests']} tests)"
            )
    return "\n".join(lines)
