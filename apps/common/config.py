"""Settings of a run: a dataclass, a TOML file and flags, one on top of the other.

    @dataclass(frozen=True)
    class Config(RunConfig):
        lr: float = 0.01
        options: dict[str, int | float | bool | str] = field(default_factory=dict)

    config = parse(Config, ["--config", "mlp.toml", "--profile", "smoke", "--lr", "1"])

Later wins: defaults of the dataclass, top level of the file, its `[profiles.NAME]`,
flags. A nested dataclass is a table in the file and `--model.dim 64` as a flag. Values
of a dict are flags too: `--options every=100 end=75%` or `--options every 100 end 75%`
changes these keys and keeps the file's others; `--options every=` removes a key.
"""

import contextlib
import io
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import (
    MISSING,
    dataclass,
    field,
    fields,
    is_dataclass,
    make_dataclass,
    replace,
)
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from apps.common.toml import convert, deep_merge, read_toml, scalar, spelled
from sparsekit import atomic
from sparsekit.spelling import choice, meant

Profile = Literal["smoke", "laptop", "full"]
Value = str | int | float | bool  # of an option
C = TypeVar("C", bound="RunConfig")

# What the help calls the program: "sparsekit classify train".
PROGRAM: ContextVar[str] = ContextVar("PROGRAM", default="sparsekit")


@dataclass(frozen=True)
class RunConfig:
    """What every run takes.

    Args:
        profile: scale of the run: smoke for tests, laptop, or full.
        seed: of everything that is random.
        out: folder for the results; without it nothing is written.
        resume: go on with the interrupted run in `out`.
    """

    profile: Profile = field(default="laptop", kw_only=True)
    seed: int = field(default=0, kw_only=True)
    out: Path | None = field(default=None, kw_only=True)
    resume: bool = field(default=False, kw_only=True)


def parse(cls: type[C], argv: Sequence[str], *, presets: Path | None = None) -> C:
    """The settings from flags and, with `--config FILE`, from a TOML file.

    presets: a folder; `--config NAME` then also takes its NAME.toml. `--help` prints
    all flags with defaults and exits.

    Raises ValueError or FileNotFoundError for an unknown key or flag, a wrong type, an
    unreadable file: named, with the valid ones; OSError if nothing can be written to
    `out`.
    """
    name, rest = _take(list(argv), "--config")
    default = _defaults(cls)
    if name is not None:
        path = _config_file(name, presets)
        profile, _ = _take(rest, "--profile")
        table = read_toml(path)
        default = _from_file(cls, default, table, path, profile)
    rest = _take_dicts(cls, default, rest)
    config = _from_flags(cls, default, rest, presets)
    if config.seed < 0:
        raise ValueError(f"seed must be at least 0, got {config.seed}")
    if config.out is not None:
        atomic.require_writable(config.out)
    return config


def read_preset(
    cls: type[C], presets: Path, name: str, profile: str, **changes: Any
) -> C:
    """A preset's settings in a profile, with some fields changed.

    Raises FileNotFoundError for an unknown preset, TypeError for an unknown field.
    """
    argv = ["--config", name, "--profile", profile]
    return replace(parse(cls, argv, presets=presets), **changes)


def to_toml(config: RunConfig) -> str:
    """The settings as text that `parse(..., ["--config", FILE])` reads back.

    Without `out` and `resume`, which belong to one call, and without what is None. A
    function is written by its name. Raises ValueError for a None that is not the
    default: TOML has no word for it.
    """
    import tomli_w  # here, as tyro below: training from Python needs neither

    table = _table(config)
    for name in ("out", "resume"):
        table.pop(name, None)
    return tomli_w.dumps(table)


def settings(config: RunConfig) -> dict[str, Any]:
    """What decides the outcome of a run, as plain values: all but the RunConfig's
    profile, out and resume."""
    shown = {f.name: _plain(getattr(config, f.name)) for f in fields(config)}
    return {k: v for k, v in shown.items() if k not in ("profile", "out", "resume")}


def refuse_other_settings(
    config: RunConfig, before: Mapping[str, Any], folder: Path
) -> None:
    """ValueError if a folder's run had other settings than `config`."""
    now = settings(config)
    changed = sorted(key for key in now if now[key] != before.get(key))
    if changed:
        name = changed[0]
        raise ValueError(
            f"{folder} was trained with {name} = {before.get(name)!r}, not "
            f"{now[name]!r}: resume with the same settings, or give another --out"
        )


def _table(config: Any) -> dict[str, Any]:
    values = {f.name: _plain(getattr(config, f.name)) for f in fields(config)}
    for f in fields(config):
        if values[f.name] is None and f.default is not None:
            raise ValueError(
                f"{f.name} is None, which TOML cannot say; its default is not"
            )
    return {name: value for name, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _table(value)
    if isinstance(value, Mapping):
        plain = {str(k): _plain(v) for k, v in value.items()}
        return {k: v for k, v in plain.items() if v is not None}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    return getattr(value, "__name__", repr(value))


def _take(argv: list[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of a flag (the last, if repeated) and the other arguments."""
    value, rest, words = None, [], iter(argv)
    for word in words:
        if word == flag:
            value = next(words, None)
            if value is None or value.startswith("--"):
                raise ValueError(f"{flag} needs a value")
        elif word.startswith(flag + "="):
            value = word.removeprefix(flag + "=")
        else:
            rest.append(word)
    return value, rest


def _config_file(name: str, presets: Path | None) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    known = sorted(p.stem for p in presets.glob("*.toml")) if presets else []
    if presets and name in known:
        return presets / f"{name}.toml"
    text = f"no such config file: {name}"
    if known:
        text = choice(text, path.stem, known, "presets:")
    raise FileNotFoundError(text)


def _defaults(cls: type) -> dict[str, Any]:
    """Default of every field; a nested dataclass as a dict of its own."""
    values: dict[str, Any] = {}
    for f in fields(cls):
        if f.default is not MISSING:
            values[f.name] = f.default
        elif f.default_factory is not MISSING:
            values[f.name] = f.default_factory()
    return values


def _from_file(
    cls: type, default: dict[str, Any], table: dict[str, Any], path: Path,
    profile: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Defaults overlaid by the file's top level and its profile."""
    profiles = table.pop("profiles", {})
    convert_table(cls, table, str(path))
    known = get_args(Profile)
    if not isinstance(profiles, dict):
        raise ValueError(f"{path}: profiles must be tables, [profiles.smoke]")
    for name, overlay in profiles.items():
        if name not in known or not isinstance(overlay, dict):
            raise ValueError(
                f"{path}: [profiles.{name}] is not known; use "
                f"{', '.join(f'[profiles.{p}]' for p in known)}"
            )
        # All of them: a mistake should not wait for the day its profile is run.
        convert_table(cls, overlay, f"{path} [profiles.{name}]")
    chosen = profile or table.get("profile") or default["profile"]
    merged = deep_merge(table, profiles.get(chosen, {}))
    return deep_merge(default, convert_table(cls, merged, str(path)))


def convert_table(cls: type, table: dict[str, Any], where: str) -> dict[str, Any]:
    """Values of a TOML table in the types of a dataclass's fields.

    Nested dataclasses stay dicts. Raises ValueError that names file, key and valid
    keys or type.
    """
    hints = get_type_hints(cls)
    names = [f.name for f in fields(cls)]
    values = {}
    for key, value in table.items():
        if key not in names:
            refused = f"{where}: unknown key {key!r}"
            raise ValueError(choice(refused, key, names, "valid:"))
        if is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise ValueError(f"{where}: {key} must be a table, got {value!r}")
            values[key] = convert_table(hints[key], value, f"{where} [{key}]")
            continue
        try:
            values[key] = convert(value, hints[key])
        except ValueError as error:
            shown = reprlib.repr(value)  # a file may nest tables 10,000 deep
            near = _near(value, hints[key])
            raise ValueError(
                f"{where}: {key} must be {error}, got {shown}{near}"
            ) from None
    return values


def _near(value: Any, hint: Any) -> str:
    """What was meant by a word that is none of those that a type allows."""
    words = [w for kind in (hint, *get_args(hint)) for w in get_args(kind)]
    known = [word for word in words if isinstance(word, str)]
    near = meant(value, known) if isinstance(value, str) else None
    return "" if near is None else f"; did you mean {near!r}?"


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
                inner = _defaults(hints[f.name])
                value = _unvalidated(hints[f.name], deep_merge(inner, value))
        else:
            value = tyro.MISSING  # required: a flag must give it
        object.__setattr__(instance, f.name, value)
    return instance


def _dict_fields(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and value types of the dict fields, nested ones included."""
    for name, hint in get_type_hints(cls).items():
        if is_dataclass(hint):
            yield from _dict_fields(hint, f"{prefix}{name}.")
        elif get_origin(hint) is dict:
            yield prefix + name, get_args(hint)[1]


def _take_dicts(
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


def _from_flags(
    cls: type[C], default: dict[str, Any], argv: list[str], presets: Path | None
) -> C:
    """The instance, by tyro. `--config` and `--json` are there for the help only."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def _(info: Any) -> Any:
        if get_origin(info.type) is not dict:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs="*",
            metavar="[KEY=VALUE ...]",
            instance_from_str=lambda words: words,  # `_take_dicts` left none
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
            ("settings", Annotated[cls, tyro.conf.arg(name="")]),
            ("config_file", Annotated[str | None, config_flag], field(default=None)),
            ("as_json", switch, field(default=False)),
        ],
    )
    description = (cls.__doc__ or "").partition("Args:")[0].strip()
    start = whole(_unvalidated(cls, default), None, False)
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
        flags = ["--config", "--json", *_flags(cls)]
        word = unknown[0].partition("=")[0]
        refused = f"unknown argument {unknown[0]!r}"
        raise ValueError(choice(refused, word, flags, "valid:"))
    return parsed.settings


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
    hints = _flags(cls)
    malformed = re.match(r"Error parsing (?P<flag>--\S+):.*?'(?P<got>[^']*)'$", text)
    other = re.match(r"invalid choice '(?P<got>.*?)' for .*?'(?P<flag>--\S+)'", text)
    found = malformed or other
    if found is None or found["flag"] not in hints:
        return text
    flag, got = found["flag"], found["got"]
    kind = spelled(hints[flag])
    return f"{flag} must be {kind}, got {got!r}{_near(got, hints[flag])}"


def _flags(cls: type, prefix: str = "") -> dict[str, Any]:
    """{flag: type} of every field of a dataclass."""
    found = {}
    for name, hint in get_type_hints(cls).items():
        if is_dataclass(hint):
            found |= _flags(hint, f"{prefix}{name}.")
        else:
            found[f"--{prefix}{name}".replace("_", "-")] = hint
    return found
