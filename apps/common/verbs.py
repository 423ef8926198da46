"""The verbs of an app's command: `sparsekit APP VERB [--flags]`.

    VERBS = {"train": train_command, "report": report_command}

    def main(argv=None) -> int:
        return run(argv, "classify", VERBS, PRESETS, methods=names)

The docstring of a verb is what its help says: a line for the list of verbs, and then
examples, each a line that begins with `sparsekit APP VERB`. What it found it gives to
`tell`, as lines for people and as a table for `--json`. What all commands have in
common, options, errors and exit statuses, is the page book/commands.md.
"""

import contextlib
import inspect
import io
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from apps.common import processes, tables
from apps.common.config import RunConfig, VerbConfig, parse
from apps.common.flags import PROGRAM
from apps.common.output import JSON, tell
from apps.common.statistics import Interval
from sparsekit import atomic
from sparsekit.cli import fitted
from sparsekit.spelling import meant

Verb = Callable[[list[str]], int | None]
Verbs = Mapping[str, Verb]
C = TypeVar("C", bound=RunConfig)
# What `unused` says where runs are kept and found again.
GOES_ON = {"resume": "called again with the same --out, it goes on"}
SHARED = ("train", "evaluate")  # verbs that several processes may run together


def run(
    argv: Sequence[str] | None,
    app: str,
    verbs: Verbs,
    folder: Path | None = None,
    **names: Callable[[], Iterable[str]],
) -> int:
    """Calls the function of the first word with the others; the exit status.

    argv: default the command line. folder: of presets, if there are any. names: of
    what the usage lists beside verbs and presets, say methods. A usage error (no verb,
    an unknown one, or a ValueError or OSError that names the fix: a file is missing, a
    folder read-only) is printed and gives 2. A verb may return a status of its own.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or words[0] in ("-h", "--help"):
        print(fitted(*usage(app, verbs, folder, names)))
        return 0 if words else 2
    name, rest = words[0], words[1:]
    if name not in verbs:
        near = meant(name, [*verbs, "--help"])
        hint = f"; did you mean {near!r}?" if near else ""
        print(f"sparsekit {app}: error: no verb {name!r}{hint}\n", file=sys.stderr)
        print(fitted(*usage(app, verbs, folder, names)), file=sys.stderr)
        return 2
    return guarded(f"sparsekit {app} {name}", verbs[name], rest)


def guarded(program: str, verb: Verb, argv: list[str]) -> int:
    """Runs a verb: its help ends with its examples, its errors are one line, status 2.

    program: as in "sparsekit classify train". `--json` is taken here: it is no setting,
    and `tell` asks for it.
    """
    token, as_json = PROGRAM.set(program), JSON.set("--json" in argv)
    argv = [word for word in argv if word != "--json"]
    try:
        if {"-h", "--help"} & set(argv):
            return _help(verb)
        if processes.launched() > 1 and program.split()[-1] not in SHARED:
            raise ValueError(
                f"this runs in one process: torchrun is for {' and '.join(SHARED)}"
            )
        with processes.joined():
            return verb(argv) or 0
    except BrokenPipeError:  # an OSError, but no error: the reader has seen enough
        raise
    except (ValueError, OSError) as error:
        complain(program, error)
        return 2
    finally:
        PROGRAM.reset(token)
        JSON.reset(as_json)


def complain(program: str, error: Exception) -> None:
    """`PROGRAM: error: MESSAGE` on stderr; the message names the thing and the fix."""
    number = getattr(error, "errno", None)
    message = str(error).removeprefix(f"[Errno {number}] ")
    if getattr(error, "filename", None):  # as Python says it: the name last, in quotes
        message = f"{error.strerror}: {error.filename}"
    print(f"{program}: error: {message}", file=sys.stderr)


def _help(verb: Verb) -> int:
    """The parser's help, and the examples."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        verb(["--help"])
    print(_without_none(shown.getvalue()))
    lines = examples(verb)
    if lines:
        print("\n".join(["", "examples:", *(f"  {line}" for line in lines)]))
    return 0


def _without_none(text: str) -> str:
    """tyro's help without its words for a setting that need not be given."""
    # What is left out is made up for by blanks, so that columns stay where they are.
    text = re.sub(r"\{None\}\|(\S+)", r"\1       ", text)
    text = re.sub(r"\{None,([^}]*\})", r"{\1     ", text)
    text = re.sub(r"\s*\(default:\s*(None)?\s*\)", "", text)
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())


def examples(verb: Verb) -> list[str]:
    """Lines of a verb's docstring that can be typed as they stand."""
    lines = (inspect.getdoc(verb) or "").splitlines()
    return [line.strip() for line in lines if line.strip().startswith("sparsekit ")]


def usage(
    app: str, verbs: Verbs, folder: Path | None, names: Mapping[str, Callable]
) -> list[str]:
    """Lines: how to call the app, each verb with what it does, and what has a name."""
    lines = [f"usage: sparsekit {app} VERB [--help] ...", ""]
    for name, verb in verbs.items():
        lines.append(f"  {name:10}{(verb.__doc__ or '').strip().splitlines()[0]}")
    lines += ["", f"sparsekit {app} VERB --help: every flag, and examples"]
    if folder is None:
        return lines
    presets = sorted(path.stem for path in folder.glob("*.toml"))
    named = [f"{what}: {', '.join(each())}" for what, each in names.items()]
    return [*lines, "", *named, f"presets: {', '.join(presets)}"]


def required(value: Any, flag: str) -> Any:
    """What a flag must give; ValueError that names the flag if it is missing."""
    if value is None or value == ():
        raise ValueError(f"--{flag} is required")
    return value


def resumable(cls: type[C], argv: list[str], presets: Path) -> C:
    """Settings of a run; `--resume --out FOLDER` alone takes those of the folder.

    Raises FileNotFoundError if it has none, and nothing else says what to train.
    """
    config = parse(cls, argv, presets=presets)
    if config.resume and config.out is None:
        raise ValueError("--resume goes on in a folder: give --out")
    stored = None if config.out is None else config.out / "config.toml"
    given = {word.partition("=")[0] for word in argv if word.startswith("--")}
    if not config.resume or stored is None or "--config" in given:
        return config
    if stored.is_file():
        return parse(cls, ["--config", str(stored), *argv], presets=presets)
    if given <= {"--resume", "--out"}:
        raise FileNotFoundError(
            f"nothing to resume in {config.out}: it has no config.toml; a run that is "
            "to begin there needs its settings"
        )
    return config


def narrowed(config: VerbConfig, cls: type[C], **changes: Any) -> C:
    """The settings of `cls` among those of a verb, without the verb's folder.

    What the verb does not take has its default.
    """
    names = {f.name for f in fields(cls)} & {f.name for f in fields(config)}
    settings = {name: getattr(config, name) for name in names}
    return cls(**(settings | {"out": None, "resume": False} | changes))


def divided(
    given: Mapping[str, Any], known: Mapping[str, set[str]], what: str = "methods"
) -> dict[str, dict[str, Any]]:
    """{name: its own options} of options that were given to several methods.

    known: {name: its options}. FIELD goes to all that have it, NAME.FIELD to one.

    Raises ValueError for an option that none has.

    >>> divided({"lr": 1, "b.every": 2}, {"a": {"lr"}, "b": {"lr", "every"}})
    {'a': {'lr': 1}, 'b': {'lr': 1, 'every': 2}}
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in known}
    for key, value in given.items():
        prefix, _, option = key.rpartition(".")
        takers = [
            name for name in known if option in known[name] and prefix in ("", name)
        ]
        if not takers:
            raise ValueError(
                f"none of the {what} {', '.join(known)} has an option {key!r}"
            )
        for name in takers:
            found[name][option] = value
    return found


@dataclass(frozen=True)
class FinishedConfig(VerbConfig):
    """What looks at a finished run takes.

    Args:
        run: the run's folder.
    """

    run: Path | None = None


@dataclass(frozen=True)
class ReportConfig(VerbConfig):
    """Writes a comparison's figure, and its numbers as a table.

    Args:
        run: folder that `compare` wrote.
        formats: png, svg or pdf of the figure; csv: every value of every seed.
        out: folder for them; default: the comparison's.
    """

    run: Path | None = None
    formats: tuple[str, ...] = ("png", "svg")
    out: Path | None = None


def reporter(
    app: str, load: Callable[[Path], Any], draw: Callable[[Any, Path], None]
) -> Verb:
    """The verb report of an app; load and draw: of its comparisons."""

    def report_command(argv: list[str]) -> None:
        report(argv, load, draw)

    report_command.__doc__ = f"""Write the table and the figure of a comparison.

    sparsekit {app} report --run runs/compare
    """
    return report_command


def report(
    argv: list[str], load: Callable[[Path], Any], draw: Callable[[Any, Path], None]
) -> None:
    """Prints the table of a comparison and writes its figure, beside it or to --out."""
    config = parse(ReportConfig, argv)
    folder = required(config.run, "run")
    comparison = load(folder)
    paths = [(config.out or folder) / f"compare.{form}" for form in config.formats]
    for path in paths:
        if path.suffix == ".csv":
            atomic.write_text(path, tables.as_csv(comparison.measurements()))
        else:
            draw(comparison, path)
    files = [str(path) for path in paths]
    tell({"files": files}, comparison.table(), *files)


def measured(result: Any) -> dict[str, Any]:
    """Metrics and cost of a run, as result.json has them."""
    return {"metrics": plain(result.metrics), "cost": dict(result.cost)}


def cost_lines(cost: Mapping[str, float | None]) -> list[str]:
    """A line for each cost that was counted.

    >>> cost_lines({"train_seconds": 1.5, "params_active": 747, "train_flops": None})
    ['train_seconds     1.50', 'params_active     747']
    """
    counted = {name: value for name, value in cost.items() if value is not None}
    return [
        f"{name:18}{value:,.{0 if isinstance(value, int) or value >= 1000 else 2}f}"
        for name, value in counted.items()
    ]


def plain(metrics: Mapping[str, Interval]) -> dict[str, Any]:
    """Metrics as JSON has them."""
    return {name: interval.plain() for name, interval in metrics.items()}
