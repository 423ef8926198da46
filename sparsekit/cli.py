"""`sparsekit COMMAND ...`: finds commands through entry points.

A package adds one with an entry point of the group "sparsekit.commands": a function
that takes the remaining arguments and returns an exit status. `methods` is built in.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any, cast

GROUP = "sparsekit.commands"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of the command; 2 for a usage error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    found = commands()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(found))
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        print(f"sparsekit {version('sparsekit')}")
        return 0
    if name == "methods":
        return methods(rest)
    if name not in found:
        print(f"error: no command {name!r}\n\n{usage(found)}", file=sys.stderr)
        return 2
    try:
        command: Callable[[list[str]], int | None] = found[name].load()
    except ImportError as error:
        print(
            f"error: {name} needs more packages ({error}): "
            "pip install 'sparsekit[apps]'",
            file=sys.stderr,
        )
        return 2
    try:
        return command(rest) or 0
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
        return 0


def commands() -> dict[str, EntryPoint]:
    """The commands that installed packages add, by name."""
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return {point.name: point for point in points}


def usage(found: dict[str, EntryPoint]) -> str:
    """What is printed for --help."""
    lines = ["usage: sparsekit COMMAND [--help] ...", ""]
    names = sorted([*found, "methods"])
    lines += [f"  {name}" for name in names]
    return "\n".join([*lines, "", "sparsekit --version prints the version."])


def methods(argv: Sequence[str]) -> int:
    """Prints every sparsity method: name, options with defaults, what it does."""
    if argv and argv[0] not in ("-h", "--help"):
        print(f"error: methods takes no arguments, got {argv[0]!r}", file=sys.stderr)
        return 2
    if argv:
        print("usage: sparsekit methods\n\nLists every sparsity method.")
        return 0
    from sparsekit.method import discover  # imports torch

    for name, cls in discover().items():
        options = [
            f"{field.name}={_shown(field.default)}"
            for field in fields(cast(Any, cls))  # a dataclass, `discover` saw to it
            if field.name != "sparsity"
        ]
        print(f"{name:14} {(cls.__doc__ or '').strip().splitlines()[0]}")
        if options:
            print(f"{'':14} {' '.join(options)}")
    return 0


def _shown(value: Any) -> str:
    return "required" if value is MISSING else getattr(value, "__name__", repr(value))
