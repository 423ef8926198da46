"""Flags of a dataclass of settings: `--lr 1 --model.dim 64 --options every=100`.

The work is tyro's, but for two things. A dict takes words `key=value`, each of which
changes one key of the default; and the values of a file, which the flags complete, need
not be valid alone.
"""

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import (
    MISSING,
    dataclass,
    field,
    fields,
    is_dataclass,
    make_dataclass,
)
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from apps.common.toml import convert, deep_merge, scalar, spelled
from sparsekit.spelling import choice, meant

C = TypeVar("C")

# What the help calls the program: "sparsekit classify train".
PROGRAM: ContextVar[str] = ContextVar("PROGRAM", default="sparsekit")


def take(argv: list[str], flag: str) -> tuple[list[str], list[str]]:
    """The values of a flag, in order, and the other arguments."""
    values, rest, words = [], [], iter(argv)
    for word in words:
        if word == flag:
            value = next(words, None)
            if value is None or value.startswith("--"):
                raise ValueError(f"{flag} needs a value")
            values.append(value)
        elif word.startswith(flag + "="):
            values.append(word.removeprefix(flag + "="))
        else:
            rest.append(word)
    return values, rest


def defaults(cls: type) -> dict[str, Any]:
    """Default of every field; a nested dataclass as a dict of its own."""
    values: dict[str, Any] = {}
    for f in fields(cls):
        if f.default is not MISSING:
            values[f.name] = f.default
        elif f.default_factory is not MISSING:
            values[f.name] = f.default_factory()
    return values


def _dict_fields(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and value types of the dict fields, nested ones included."""
    for name, hint in get_type_hints(cls).items():
        if is_dataclass(hint):
            yield from _dict_fields(hint, f"{prefix}{name}.")
        elif get_origin(hint) is dict:
            yield prefix + name, get_args(hint)[1]


def take_dicts(
    cls: type, default: dict[str, Any], argv: list[str]
) -> list[str]:  # fmt: skip
    """Applies the flags of dict fields to `default`; returns the other arguments."""
    for name, hint in _dict_fields(cls):
        flags = {f"--{name}", f"--{name.replace('_', '-')}"}
        rest: list[str] = []
        given: list[str] = []
        inside = False
        for word in argv:
            if word.startswith("--") or word == "-h":
                flag, equals, value = word.partition("=")
                inside = flag in flags
                if not inside:
                    rest.append(word)
                elif equals:
                    given.append(value)
            else:
                (given if inside else rest).append(word)
        argv = rest
        if not given:
            continue
        *outer, last = name.split(".")
        table = default
        for part in outer:
            inner = table.get(part, {})
            # A default instance of a nested dataclass, as a dict from here on.
            table[part] = dict(inner) if isinstance(inner, dict) else vars(inner).copy()
            table = table[part]
        table[last] = _pairs(name, dict(table.get(last) or {}), given, hint)
    return argv


def _pairs(
    name: str, values: dict[str, Any], given: Sequence[str], hint: Any
) -> dict[str, Any]:
    """A dict changed by words `key=value` and `key value`."""
    words = iter(given)
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            following = next(words, None)
            if following is None:
                raise ValueError(f"--{name}: {word!r} has no value; write {word}=VALUE")
            text = following
        if not key:
            raise ValueError(f"--{name}: {word!r} has no key; write KEY=VALUE")
        if not text and equals:
            values.pop(key, None)
            continue
        try:
            values[key] = convert(scalar(text), hint)
        except ValueError as error:
            try:
                values[key] = convert(text, hint)
            except ValueError:
                raise ValueError(
                    f"--{name}: {key} must be {error}, got {text!r}"
                ) from None
    return values


def from_flags(
    cls: type[C], default: dict[str, Any], argv: list[str], presets: Path | None
) -> C:
    """The instance, by tyro. `--config` and `--json` are there for the help only."""
    import tyro

    offered = _offered(cls)
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def _(info: Any) -> Any:
        if get_origin(info.type) is not dict:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs="*",
            metavar="[KEY=VALUE ...]",
            instance_from_str=lambda words: words,  # `take_dicts` left none
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda value: [f"{k}={v}" for k, v in value.items()],
        )

    known = sorted(p.stem for p in presets.glob("*.toml")) if presets else []
    help_text = "settings in TOML" + (f", or one of {', '.join(known)}" * bool(known))
    config_flag = tyro.conf.arg(name="config", metavar="FILE", help=help_text)
    json_flag = tyro.conf.arg(name="json", help="JSON on stdout, for a program")
    switch = Annotated[bool, json_flag, tyro.conf.FlagCreatePairsOff]
    whole = make_dataclass(
        "Run",
        [
            ("settings", Annotated[offered, tyro.conf.arg(name="")]),
            ("config_file", Annotated[str | None, config_flag], field(default=None)),
            ("as_json", switch, field(default=False)),
        ],
    )
    description = (cls.__doc__ or "").partition("Args:")[0].strip()
    start = whole(_unvalidated(offered, default), None, False)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parsed, unknown = tyro.cli(
                whole,
                args=argv,
                prog=PROGRAM.get(),
                default=start,
                description=description,
                registry=registry,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise ValueError(_complaint(cls, printed.getvalue())) from None
    if unknown:
        flags = ["--config", "--json", *flags_of(cls)]
        word = unknown[0].partition("=")[0]
        refused = f"unknown argument {unknown[0]!r}"
        raise ValueError(choice(refused, word, flags, "valid:"))
    if offered is cls:
        return parsed.settings
    return cls(**{f.name: getattr(parsed.settings, f.name) for f in fields(cls)})


def refuse_unused(cls: type, argv: Sequence[str]) -> None:
    """ValueError for the flag of a field that the class has no use for."""
    for name, instead in _unused(cls).items():
        flag = name.replace("_", "-")
        for word in argv:
            given = word.partition("=")[0]
            if given.replace("_", "-") in (f"--{flag}", f"--no-{flag}"):
                raise ValueError(f"{given} has no use here: {instead}")


def _unused(cls: type) -> Mapping[str, str]:
    """What a verb's settings say of it; nested ones use all their fields."""
    return getattr(cls, "unused", {})


def _offered(cls: type) -> type:
    """The class as tyro shows it: without the flags of what it has no use for."""
    import tyro

    unused = _unused(cls)
    if not unused:
        return cls
    hints, values = get_type_hints(cls), defaults(cls)
    hidden = {name: Annotated[hints[name], tyro.conf.Suppress] for name in unused}
    own = {name: values[name] for name in hidden}
    body = {"__annotations__": hidden, "__doc__": cls.__doc__, **own}
    return dataclass(frozen=True)(type(cls.__name__, (cls,), body))


def _unvalidated(cls: type, values: Mapping[str, Any]) -> Any:
    """An instance whose `__post_init__` did not run.

    The file's values alone need not be valid: flags may complete them. The real
    instance is made once, from everything.
    """
    import tyro

    instance = object.__new__(cls)
    hints = get_type_hints(cls)
    for f in fields(cls):
        if f.name in values:
            value = values[f.name]
            if is_dataclass(hints[f.name]) and isinstance(value, dict):
                inner = defaults(hints[f.name])
                value = _unvalidated(hints[f.name], deep_merge(inner, value))
        else:
            value = tyro.MISSING  # required: a flag must give it
        object.__setattr__(instance, f.name, value)
    return instance


def _complaint(cls: type, box: str) -> str:
    """What is wrong, in a line, from the box that tyro draws around it.

    The message stands between the first two rules: the box's upper edge is one, where
    the terminal has characters for it.
    """
    blocks: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│| ")
        if text.startswith("╭") or (text and set(text) <= {*"─-╰╯"}):
            blocks.append([])
        elif text:
            blocks[-1].append(text)
    text = " ".join(next((block for block in blocks[1:] if block), blocks[0]))
    hints = flags_of(cls)
    malformed = re.match(r"Error parsing (?P<flag>--\S+):.*?'(?P<got>[^']*)'$", text)
    other = re.match(r"invalid choice '(?P<got>.*?)' for .*?'(?P<flag>--\S+)'", text)
    found = malformed or other
    if found is None or found["flag"] not in hints:
        return text
    flag, got = found["flag"], found["got"]
    kind = spelled(hints[flag])
    return f"{flag} must be {kind}, got {got!r}{meant_of(got, hints[flag])}"


def flags_of(cls: type, prefix: str = "") -> dict[str, Any]:
    """{flag: type} of every field of a dataclass."""
    found = {}
    hints = get_type_hints(cls)
    for name in (f.name for f in fields(cls) if f.name not in _unused(cls)):
        hint = hints[name]
        if is_dataclass(hint):
            found |= flags_of(hint, f"{prefix}{name}.")
        else:
            found[f"--{prefix}{name}".replace("_", "-")] = hint
    return found


def meant_of(value: Any, hint: Any) -> str:
    """What was meant by a word that is none of those that a type allows."""
    words = [w for kind in (hint, *get_args(hint)) for w in get_args(kind)]
    known = [word for word in words if isinstance(word, str)]
    near = meant(value, known) if isinstance(value, str) else None
    return "" if near is None else f"; did you mean {near!r}?"
