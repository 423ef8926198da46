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

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

from apps.common.flags import (
    defaults,
    from_flags,
    meant_of,
    refuse_unused,
    take,
    take_dicts,
)
from apps.common.toml import convert, deep_merge, read_toml
from sparsekit import atomic
from sparsekit.spelling import choice

Profile = Literal["smoke", "laptop", "full"]
Value = str | int | float | bool  # of an option
LARGEST_SEED = 2**63  # torch's generators take a long
C = TypeVar("C", bound="VerbConfig")


@dataclass(frozen=True)
class VerbConfig:
    """What a verb takes: each field is a flag, and a key of `--config FILE`.

    unused: {field: what to do instead} of fields that a verb inherits and has no use
    for. They stay keys of a file, which may serve several verbs; as flags they are not
    offered, and refused.
    """

    unused: ClassVar[Mapping[str, str]] = {}


@dataclass(frozen=True)
class PresetConfig(VerbConfig):
    """What a verb takes whose settings come at several scales.

    Args:
        profile: part of `config` that holds: smoke for tests, laptop, or full.
    """

    profile: Profile = field(default="laptop", kw_only=True)


@dataclass(frozen=True)
class RunConfig(PresetConfig):
    """What every run takes.

    Args:
        seed: of everything that is random.
        out: folder for the results; without it nothing is written.
        resume: go on with the interrupted run in `out`.
    """

    seed: int = field(default=0, kw_only=True)
    out: Path | None = field(default=None, kw_only=True)
    resume: bool = field(default=False, kw_only=True)


def parse(
    cls: type[C],
    argv: Sequence[str],
    *,
    presets: Path | None = None,
    beside: type | None = None,
) -> C:
    """The settings from flags and, with `--config FILE`, from TOML files.

    Of several files, the later wins. presets: a folder; `--config NAME` then also takes
    its NAME.toml. beside: another class, whose keys a file may hold too, so that one
    file serves several verbs; they are checked and left out. `--help` prints all flags
    with defaults and exits.

    Raises ValueError or FileNotFoundError for an unknown key or flag, one that the verb
    has no use for, a wrong type, an unreadable file: named, with the valid ones;
    OSError if nothing can be written to `out`.
    """
    names, rest = take(list(argv), "--config")
    refuse_unused(cls, rest)
    default = defaults(cls)
    profiles, _ = take(rest, "--profile")
    for name in names:
        path = _config_file(name, presets)
        profile = profiles[-1] if profiles else None
        table = read_toml(path)
        if beside is not None:
            table = _own_keys(cls, beside, table, path)
        default = _from_file(cls, default, table, path, profile)
    rest = take_dicts(cls, default, rest)
    config = from_flags(cls, default, rest, presets)
    if profiles and not names:
        raise ValueError("--profile chooses a part of a settings file: give --config")
    seed, out = getattr(config, "seed", 0), getattr(config, "out", None)
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if seed >= LARGEST_SEED:
        raise ValueError(f"seed must be below 2^63, got {seed}")
    if out is not None:
        atomic.require_writable(out)
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


def _from_file(
    cls: type, default: dict[str, Any], table: dict[str, Any], path: Path,
    profile: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Defaults overlaid by the file's top level and its profile."""
    has_profiles = "profile" in default
    profiles = table.pop("profiles", {}) if has_profiles else {}
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
    chosen = profile or table.get("profile") or default.get("profile")
    merged = deep_merge(table, profiles.get(chosen, {}))
    return deep_merge(default, convert_table(cls, merged, str(path)))


def _own_keys(
    cls: type, beside: type, table: dict[str, Any], path: Path
) -> dict[str, Any]:
    """The table, and its profiles, without the keys that only `beside` has."""
    others = {f.name for f in fields(beside)} - {f.name for f in fields(cls)}
    theirs = {key: table[key] for key in table if key in others}
    convert_table(beside, theirs, str(path))
    own = {key: value for key, value in table.items() if key not in others}
    overlays = own.get("profiles")
    if isinstance(overlays, dict):
        own["profiles"] = {
            name: _own_keys(cls, beside, overlay, path)
            if isinstance(overlay, dict)
            else overlay
            for name, overlay in overlays.items()
        }
    return own


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
            near = meant_of(value, hints[key])
            raise ValueError(
                f"{where}: {key} must be {error}, got {shown}{near}"
            ) from None
    return values
