"""`sparsekit COMMAND ...`: finds commands through entry points.

A package adds one with an entry point of the group "sparsekit.commands": a function
that takes the remaining arguments and returns an exit status. The first line of its
docstring is what `sparsekit --help` says about it. `methods` is built in.
"""

import argparse
import ast
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from importlib.metadata import (
    EntryPoint,
    PackageNotFoundError,
    entry_points,
    metadata,
    version,
)
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, cast

from sparsekit.spelling import choice, meant

GROUP = "sparsekit.commands"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of the command; 2 for a usage error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return ended(lambda: _run(arguments))


def ended(command: Callable[[], int]) -> int:
    """The command's exit status; 130 for Ctrl-C, 0 if nobody reads on."""
    try:
        status = command()
        if sys.stdout is not None:  # None: it was closed from the start, as by >&-
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        # What is still in the buffer must go somewhere when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(arguments: list[str]) -> int:
    found = commands()
    if arguments[:1] == ["help"]:  # as in `sparsekit help classify`
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(found))
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        print(f"sparsekit {version('sparsekit')}")
        return 0
    if name == "methods":
        try:
            return methods(rest)
        except ValueError as error:
            _complain("sparsekit methods", str(error))
            return 2
    if name not in found:
        near = meant(name, [*found, "methods", "--help", "--version"])
        hint = f"; did you mean {near!r}?" if near else ""
        _complain("sparsekit", f"no command {name!r}{hint}\n\n{usage(found)}")
        return 2
    try:
        command: Callable[[list[str]], int | None] = found[name].load()
    except ImportError as error:
        _complain(
            f"sparsekit {name}",
            f"more packages are needed ({error}): "
            f"pip install 'sparsekit[{extra_of(name)}]'",
        )
        return 2
    return command(rest) or 0


class Parser(argparse.ArgumentParser):
    """argparse's, with the errors of the other commands: a ValueError, one line, that
    names the flag that was meant. Flags are written in full."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **({"allow_abbrev": False} | kwargs))

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, others = self.parse_known_args(args, namespace)
        if others:
            word = others[0].partition("=")[0]
            flags = sorted(self._option_string_actions)
            self.error(choice(f"unknown argument {word!r}", word, flags, "valid:"))
        return found

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _complain(program: str, message: str) -> None:
    """What every command says of an error: the program, the thing, the fix."""
    print(f"{program}: error: {message}", file=sys.stderr)


def extra_of(name: str) -> str:
    """The extra that installs what a command needs: one of its name, or apps."""
    try:
        extras = metadata("sparsekit").get_all("Provides-Extra") or []
    except PackageNotFoundError:  # a source tree that is not installed
        extras = []
    return name if name in extras else "apps"


def commands() -> dict[str, EntryPoint]:
    """The commands that installed packages add, by name."""
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return {point.name: point for point in points}


def usage(found: dict[str, EntryPoint]) -> str:
    """What is printed for --help."""
    about = {name: described(point) for name, point in found.items()}
    about["methods"] = _first_line(methods.__doc__)
    width = max(map(len, about))
    lines = [f"  {n:{width}} {about[n]}".rstrip() for n in sorted(about)]
    return fitted(
        "usage: sparsekit COMMAND [--help] ...",
        "",
        *lines,
        "",
        "sparsekit COMMAND --help lists its verbs, sparsekit --version the version.",
    )


def fitted(*lines: str) -> str:
    """Lines of usage at the terminal's width; what is too long goes on below itself."""
    width = min(max(shutil.get_terminal_size((80, 24)).columns, 40), 88)
    shown: list[str] = []
    for line in lines:
        column = re.match(r"  [\w-]+ +|[\w-]+: ", line)
        indent = " " * (len(column[0]) if column else 2)
        shown += textwrap.wrap(line, width, subsequent_indent=indent) or [""]
    return "\n".join(shown)


def described(point: EntryPoint) -> str:
    """First line of the docstring behind an entry point, from its source.

    It is not imported: that takes seconds, and may lack packages. "" if there is none.
    """
    try:
        spec = find_spec(point.module)
        source = Path(spec.origin).read_text("utf-8") if spec and spec.origin else ""
        nodes = ast.parse(source).body
    except (ImportError, OSError, ValueError, SyntaxError):
        return ""
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and node.name == point.attr:
            return _first_line(ast.get_docstring(node))
    return ""


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def methods(argv: Sequence[str]) -> int:
    """Lists every sparsity method: name, what it does, options with defaults."""
    parser = Parser(
        prog="sparsekit methods",
        description=methods.__doc__,
        epilog="examples:\n  sparsekit methods --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="a list of objects")
    as_json = parser.parse_args(argv).json
    from sparsekit.method import discover  # imports torch

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "what": _first_line(cls.__doc__),
            "options": {
                field.name: _shown(field.default)
                for field in fields(cast(Any, cls))  # a dataclass, `discover` saw to it
                if field.name != "sparsity"
            },
        }
        for name, cls in discover().items()
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        print(f"{row['name']:14} {row['what']}")
        if row["options"]:
            options = (f"{name}={value}" for name, value in row["options"].items())
            print(f"{'':14} {' '.join(options)}")
    return 0


def _shown(value: Any) -> str:
    return "required" if value is MISSING else getattr(value, "__name__", repr(value))
