"""Reads results: the share of faults that were noticed, and those that were not."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.mutation.lines import digest
from tests.mutation.operators import mutants

NOTICED = ("killed", "timeout")
LEFT_OUT = (
    # The tester's own faults are those of tests/mutants, planted by hand.
    "sparsekit/testing/",
)
Results = dict[tuple[str, int], dict[str, Any]]


def read(path: Path, tree: Path) -> Results:
    """The last result of each fault, of files that have not changed since."""
    found: Results = {}
    for line in path.read_text("utf-8").splitlines():
        result = json.loads(line)
        file = result["file"]
        if result["source"] == digest(tree / file):
            found[file, result["number"]] = result
    return found


def unfinished(
    chosen: Sequence[dict[str, Any]], tree: Path, path: Path, known: Path | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those that survived, and those that have no result yet, nor a row in `known`."""
    results = read(path, tree)
    others = read(known, tree) if known else {}
    survived, new = [], []
    for mutant in chosen:
        key = mutant["file"], mutant["number"]
        if key in results:
            survived += [mutant] if results[key]["result"] == "survived" else []
        elif key not in others:
            new.append(mutant)
    return survived, new


PARTS = {
    "execution/kernels": "compiled kernels",
    "execution": "sparse layers",
    "data_pruning": "data pruning",
    "methods": "methods",
    "integrations": "integrations",
}
OFTEN = {"compiled kernels": 0.4, "integrations": 4}  # how often faults are drawn


def part(file: str) -> str:
    """Which part of the package a file belongs to."""
    for folder, name in PARTS.items():
        if file.startswith(f"sparsekit/{folder}/"):
            return name
    return "masks, sparsifier and what they need"


def table(path: Path, tree: Path) -> dict[str, Any]:
    """The table of the book's page of contracts, from all results of a file.

    Faults that survived are tried again when tests have been written. These tests were
    written for the very faults of the sample, so that another share is shown too: of
    the faults whose first try was with the tests of the last result.
    """
    last = read(path, tree)
    first: Results = {}
    suite = ""
    for line in path.read_text("utf-8").splitlines():
        result = json.loads(line)
        key = result["file"], result["number"]
        if key in last and result["source"] == last[key]["source"]:
            first.setdefault(key, result)
            suite = result.get("suite", "")
    total = _faults(tree)
    counts = {name: Counter[str]() for name in total}
    for key, result in first.items():
        count = counts[part(key[0])]
        for name, verdict, counted in (
            ("first", result, True),
            ("last", last[key], True),
            ("new", result, result.get("suite") == suite),
        ):
            count[name] += counted
            count[f"{name}, noticed"] += counted and verdict["result"] in NOTICED
    rows = {ALL: _row(total, counts)}
    for name in sorted(total, key=lambda name: -total[name]):
        rows[name] = _row({name: total[name]}, counts)
    columns, what = dict(COLUMNS), WHAT
    if all(row["new"] == NONE for row in rows.values()):  # nothing tried since
        del columns["new"]
        rows = {n: {c: row[c] for c in columns} for n, row in rows.items()}
    elif rows[ALL]["new"] != NONE:
        what = HEADLINE.format(rows[ALL]["new"]) + what
    return {"what": what, "columns": columns, "rows": rows}


NONE = "–"
ENOUGH = 0.99  # share of all faults whose parts were tried
ALL = "all, each part by its weight"
WHAT = (
    "Faults planted in `sparsekit/`, a random sample of each part, and what the tests "
    "said. Brackets are 95 % intervals. Survivors that were not tried again with newer "
    "tests count as not noticed."
)
HEADLINE = "Of faults drawn after the last test was written, {} are noticed. "
COLUMNS = {
    "faults": "how many there are",
    "new": "share noticed, of faults first tried after the last test was written: "
    "nobody had seen which of these survive",
    "tried": "how many were tried in all",
    "at first": "share noticed when first tried",
    "now": "share noticed after tests were written for survivors, which were tried "
    "again; it may be less of other faults",
}


def _faults(tree: Path) -> Counter[str]:
    """How many faults each part of the package has."""
    counts = Counter[str]()
    for path in sorted((tree / "sparsekit").rglob("*.py")):
        file = str(path.relative_to(tree))
        if not file.startswith(LEFT_OUT):
            counts[part(file)] += len(mutants(path.read_text("utf-8")))
    return counts


def _row(total: Mapping[str, int], counts: Mapping[str, Counter[str]]) -> dict:
    tried = sum(counts[name]["first"] for name in total)
    return {
        "faults": f"{sum(total.values()):,}",
        "tried": f"{tried:,}",
        "at first": _share(total, counts, "first"),
        "now": _share(total, counts, "last"),
        "new": _share(total, counts, "new"),
    }


def _share(
    total: Mapping[str, int], counts: Mapping[str, Counter[str]], what: str
) -> str:
    """Of a stratified sample: "86 % [84, 88] of 512"; a dash if a part was not tried.

    A part so small that it hardly counts may be missing: of integrations all faults
    were tried early. Intervals are as wide as if two faults more had been noticed and
    two more had not, which is Agresti and Coull's advice.
    """
    share = variance = 0.0
    n_all = sum(counts[name][what] for name in total)
    tried = {name: faults for name, faults in total.items() if counts[name][what]}
    if not tried or sum(tried.values()) < ENOUGH * sum(total.values()):
        return NONE
    for name, faults in tried.items():
        n, noticed = counts[name][what], counts[name][f"{what}, noticed"]
        weight = faults / sum(tried.values())
        p, left = (noticed + 2) / (n + 4), max(0.0, 1 - n / faults)
        share += weight * noticed / n
        variance += weight**2 * left * p * (1 - p) / (n + 4)
    reach = 1.96 * variance**0.5
    low, high = max(0.0, share - reach), min(1.0, share + reach)
    return f"{share:.0%} [{low:.0%}, {high:.0%}] of {n_all:,}".replace("%", " %")


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
