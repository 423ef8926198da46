"""Reading TOML strictly: a value has the type that is asked for, or is an error."""

import re
import tomllib
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

LARGEST = 1_000_000  # bytes of a file of settings
DEEPEST = 64  # tables within tables: the parser's time grows with the square
# Begins at the beginning of a word and never goes back: linear in the file's length.
LONG_NAME = rb"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){%d}""" % DEEPEST


def read_toml(path: Path) -> dict[str, Any]:
    """A file's table; ValueError or FileNotFoundError that names the file.

    A file that would keep the parser busy for minutes is refused.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"more than {LARGEST:,} bytes")
        if re.search(LONG_NAME, content):
            raise ValueError(f"a name of more than {DEEPEST} parts")
        return tomllib.loads(content.decode("utf-8-sig"))  # some editors add a mark
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except (ValueError, RecursionError) as error:  # bytes, syntax, 5,000 digits
        raise ValueError(f"{path} is not valid TOML: {error}") from None


def scalar(text: str) -> Any:
    """A word of the command line as TOML would read it; else the text itself.

    >>> scalar("20"), scalar("0.5"), scalar("true"), scalar("75%")
    (20, 0.5, True, '75%')
    """
    try:
        value = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    found = value["value"]
    plain = len(value) == 1 and isinstance(found, bool | int | float)
    return found if plain else text


def deep_merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` overlaid by `above`, table by table.

    >>> deep_merge({"a": {"x": 1, "y": 2}}, {"a": {"x": 3}})
    {'a': {'x': 3, 'y': 2}}
    """
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if is_dataclass(old):
            old = vars(old)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            merged[key] = deep_merge(old, value)
        else:
            merged[key] = value
    return merged


def convert(value: Any, hint: Any) -> Any:
    """A TOML value in the type of a dataclass's field.

    An integer passes as a float, a list as a tuple, text as a path; nothing else is
    changed. Raises ValueError whose text names the type: "an integer".

    >>> convert([1, 2], tuple[float, ...])
    (1.0, 2.0)
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, hint)
    if origin is Literal:
        if value in arguments and type(value) in map(type, arguments):
            return value
    elif origin in (tuple, list):
        return _convert_list(value, hint)
    elif origin is dict or hint is dict:
        if isinstance(value, Mapping):
            inner = arguments[1] if arguments else Any
            return {key: _within(key, v, inner) for key, v in value.items()}
    elif hint is Path:
        if isinstance(value, str) and value:
            return Path(value)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            with suppress(OverflowError):  # an integer of 400 digits
                return float(value)
    elif type(value) is hint:
        return value
    raise ValueError(spelled(hint))


def spelled(hint: Any) -> str:
    """A type in words.

    >>> spelled(tuple[int, ...]), spelled(str | None)
    ('a list of integers', 'text')
    """
    origin, arguments = get_origin(hint), get_args(hint)
    words = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    if hint in words:
        return words[hint]
    if hint is Path:
        return "a path (text)"
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin in (Union, types.UnionType):
        kept = [a for a in arguments if a is not type(None)]
        return " or ".join(map(spelled, kept))
    if origin in (tuple, list) and (origin is list or arguments[1:] == (Ellipsis,)):
        plural = {int: "integers", float: "numbers", str: "texts"}
        inner = plural.get(arguments[0]) or f"values, each {spelled(arguments[0])}"
        return f"a list of {inner}"
    if origin is tuple:
        return f"a list of {len(arguments)}: " + ", ".join(map(spelled, arguments))
    if origin is dict:
        return "a table of values, each " + spelled(arguments[1])
    return getattr(hint, "__name__", str(hint))


def _convert_union(value: Any, hint: Any) -> Any:
    # The value's own type first: 1 stays an integer in `float | int`.
    options = sorted(get_args(hint), key=lambda option: option is not type(value))
    for option in options:
        if option is type(None):
            continue
        try:
            return convert(value, option)
        except ValueError:
            continue
    raise ValueError(spelled(hint))


def _convert_list(value: Any, hint: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if not isinstance(value, list | tuple):
        raise ValueError(spelled(hint))
    if origin is tuple and arguments[1:] != (Ellipsis,):
        if len(value) != len(arguments):
            raise ValueError(spelled(hint))
        kinds = arguments
    else:
        kinds = (arguments[0],) * len(value)
    try:
        items = [convert(v, kind) for v, kind in zip(value, kinds, strict=True)]
    except ValueError:
        raise ValueError(spelled(hint)) from None
    return origin(items)


def _within(key: str, value: Any, hint: Any) -> Any:
    try:
        return convert(value, hint)
    except ValueError as error:
        raise ValueError(f"a table whose {key} is {error}") from None
