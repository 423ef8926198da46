"""The verbs of an app's command: `sparsekit APP VERB [--flags]`.

VERBS = {"train": train_command, "report": report_command}

def main(argv=None) -> int:
    return run(argv, VERBS, usage)
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Verbs = Mapping[str, Callable[[list[str]], int | None]]


def run(argv: Sequence[str] | None, verbs: Verbs, usage: Callable[[], str]) -> int:
    """Calls the function of the first word with the others; the exit status.

    argv: default the command line. A usage error (no verb, an unknown one, or a
    ValueError or OSError that names the fix: a file is missing, a folder read-only) is
    printed and gives 2. A verb may return a status of its own.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    if words[0] not in verbs:
        print(f"error: no verb {words[0]!r}\n\n{usage()}", file=sys.stderr)
        return 2
    try:
        return verbs[words[0]](words[1:]) or 0
    except BrokenPipeError:  # an OSError, but no error: the reader has seen enough
        raise
    except (ValueError, OSError) as error:
        number = getattr(error, "errno", None)
        message = str(error).removeprefix(f"[Errno {number}] ")
        print(f"error: {message}", file=sys.stderr)
        return 2


def listed(app: str, verbs: Verbs) -> list[str]:
    """Lines of usage: how to call the app, and each verb with what it does."""
    lines = [f"usage: sparsekit {app} VERB [--help] ...", ""]
    for name, verb in verbs.items():
        lines.append(f"  {name:10}{(verb.__doc__ or '').strip().splitlines()[0]}")
    return [*lines, ""]


def presets(folder: Path) -> str:
    """A line that names the presets of an app."""
    return "presets: " + ", ".join(sorted(path.stem for path in folder.glob("*.toml")))


def required(path: Path | None, flag: str) -> Path:
    """A path that a flag must give; ValueError that names the flag."""
    if path is None:
        raise ValueError(f"--{flag} is required")
    return path
