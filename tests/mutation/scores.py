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


PARTS = {
    "execution/kernels": "compiled kernels",
    "execution": "sparse layers",
    "data_pruning": "data pruning",
    "methods": "methods",
    "integrations": "integrations",
}


def part(file: str) -> str:
    """Which part of the package a file belongs to."""
    for folder, name in PARTS.items():
        if file.startswith(f"sparsekit/{folder}/"):
            return name
    return "masks, sparsifier and what they need"


def table(path: Path, tree: Path) -> dict[str, Any]:
    """The table of the book's page of contracts, from all results of a file.

    What survived may have been tried again, after a test was written or mended: the
    last column says of how many, and how many of these were noticed then.
    """
    last = read(path, tree)
    first: Results = {}
    for line in path.read_text("utf-8").splitlines():
        result = json.loads(line)
        key = result["file"], result["number"]
        if key in last and result["source"] == last[key]["source"]:
            first.setdefault(key, result)
    rows: dict[str, Counter[str]] = {}
    for key, result in first.items():
        for name in (part(key[0]), "all"):
            count = rows.setdefault(name, Counter())
            count["faults"] += 1
            if result["result"] in NOTICED:
                count["noticed"] += 1
            elif last[key] != result:
                count["again"] += 1
                count["mended"] += last[key]["result"] in NOTICED
    shown = {
        name: {
            "faults": f"{count['faults']:,}",
            "noticed": f"{count['noticed'] / count['faults']:.0%}",
            "tried again": f"{count['again']:,}",
            "noticed then": f"{count['mended']:,}",
            "together": f"{together(count):.0%}",
        }
        for name, count in sorted(rows.items(), key=lambda row: -row[1]["faults"])
    }
    return {"what": WHAT, "columns": COLUMNS, "rows": shown}


WHAT = (
    "Faults planted in `sparsekit/`, a fair sample of about 8,600, and what the tests "
    "said. The first share is a lower bound: for some faults, of constants set on "
    "import, no test was chosen, which was mended before survivors were tried again."
)
COLUMNS = {
    "faults": "how many were tried",
    "noticed": "share that a test noticed, as the tests were",
    "tried again": "of those that survived, after tests were written for them",
    "noticed then": "how many of these the tests notice now",
    "together": "share noticed now, if those not tried again are as those that were",
}


def together(count: Counter[str]) -> float:
    """Share noticed now: what was noticed, and as much of the rest as of its sample."""
    survived = count["faults"] - count["noticed"]
    mended = survived * count["mended"] / max(1, count["again"])
    return (count["noticed"] + mended) / count["faults"]


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
