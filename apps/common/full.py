"""What the full runs of the apps share: `python -m apps.APP.full VERB [--flags]`.

    script = Script("apps.continual.full")
    running = script.verb("run", run, "train, within the time")
    add_run_flags(running)
    merging = script.verb("merge", merge, "parts into the book's results")
    add_merge_flags(merging)
    sys.exit(script.run())

A full run is too long for a reader's machine. It writes what is finished to runs.json
as it goes, with where it comes from; `merge` makes one table for the book of the parts.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from apps.common.provenance import stored_provenance
from apps.common.verbs import complain
from sparsekit import atomic

Rows = list[dict[str, Any]]


class Script:
    """A command of verbs. A verb takes the parsed flags."""

    def __init__(self, module: str) -> None:
        self.parser = argparse.ArgumentParser(prog=f"python -m {module}")
        self.verbs = self.parser.add_subparsers(required=True, metavar="VERB")

    def verb(
        self, name: str, call: Callable[[argparse.Namespace], None], what: str
    ) -> argparse.ArgumentParser:
        """The parser of a new verb. what: it does, for the help."""
        parser = self.verbs.add_parser(name, help=what, description=what)
        parser.set_defaults(call=call)
        return parser

    def run(self, argv: Sequence[str] | None = None) -> int:
        """Calls the verb; 2 with a line on stderr for an error that names the fix."""
        arguments = self.parser.parse_args(argv)
        try:
            arguments.call(arguments)
        except (ValueError, OSError) as error:
            complain(self.parser.prog, error)
            return 2
        return 0


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """--out, --minutes and --commit."""
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--commit", help="of the code, where there is no checkout")


def add_merge_flags(parser: argparse.ArgumentParser) -> None:
    """The parts, and --results."""
    parser.add_argument("parts", type=Path, nargs="+")
    parser.add_argument("--results", type=Path, required=True)


def write_runs(out: Path, content: dict[str, Any], commit: str | None = None) -> None:
    """runs.json: the content, after where it comes from."""
    origin = stored_provenance("full", commit)
    write_json(out / "runs.json", {"provenance": origin} | content)


def read_runs(out: Path) -> dict[str, Any]:
    """The content of runs.json.

    Raises FileNotFoundError, and ValueError for a damaged file.
    """
    path = out / "runs.json"
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it") from error
    if not isinstance(content, dict) or not {"provenance", "rows"} <= content.keys():
        raise ValueError(f"{path} holds no runs: it has no provenance, or no rows")
    return content


def read_rows(out: Path) -> Rows:
    """The rows of runs.json, one a training."""
    return read_runs(out)["rows"]


def kept(results: Path, name: str) -> Path:
    """The file of a table beside the measurements that the book keeps."""
    return results / "full" / f"{name}.json"


def write_json(path: Path, content: dict[str, Any]) -> Path:
    atomic.write_text(path, json.dumps(content, indent=1) + "\n")
    return path
