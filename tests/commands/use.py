"""Which settings a command makes no use of, found by watching it run.

A use is a read: of the settings that the command line made, or of a training's that
were copied from them. Copies, checks of ranges and records of what was asked are none.
"""

import argparse
import re
import sys
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import tyro

from apps.common import config, verbs
from apps.common.config import RunConfig, VerbConfig

# Functions that read every setting, or read it to refuse a value.
COPIES = {
    "narrowed", "settings", "_table", "replace", "asdict", "_asdict_inner", "parse",
    "from_flags", "check", "__post_init__", "at_least", "positive", "in_unit_interval",
    "__eq__", "__repr__", "__hash__", "refuse_other_settings", "parse_args", "_shown",
}  # fmt: skip
# `profile` is used in reading a file and refused without one; `json` is the command
# line's, and has its own column.
ELSEWHERE = {"profile", "json"}
PARSERS = (argparse.__file__, str(Path(tyro.__file__).parent))
OF_A_CALL = {"seed", "out", "resume"}


class Watch:
    """Notes what is read of the first settings that are made, and of copies of them."""

    def __init__(self) -> None:
        self.offered: set[str] | None = None
        self.own: type | None = None
        self.read, self.read_of_copies, self.copied = set(), set(), set()

    def start(self) -> None:
        VerbConfig.__getattribute__ = self._reader(object.__getattribute__)
        argparse.Namespace.__getattribute__ = self._reader(object.__getattribute__)
        plain, parsed = verbs.narrowed, config.from_flags

        def from_flags(cls: type, *arguments: Any) -> Any:
            if self.own is None:
                self.own = cls
                self.offered = {f.name for f in fields(cls)} - set(cls.unused)
            return parsed(cls, *arguments)

        config.from_flags = from_flags

        def narrowed(given: Any, cls: type, **changes: Any) -> Any:
            names = {f.name for f in fields(cls)} & {f.name for f in fields(given)}
            self.copied |= names - set(changes) - {"out", "resume"}
            return plain(given, cls, **changes)

        for module in list(sys.modules.values()):  # those that imported it by name
            if getattr(module, "narrowed", None) is plain:
                module.narrowed = narrowed

    def ignored(self) -> list[str]:
        """Names of the settings that the command offers and did not use."""
        used = self.read | (self.copied & self.read_of_copies)
        training = self._training()
        if training is not None:  # what one small run need not use, another does
            whole = self.own is training
            passed = {f.name for f in fields(training)} if whole else self.copied
            used |= (passed - OF_A_CALL) & names_in(training.__module__)
        return sorted((self.offered or set()) - used - ELSEWHERE)

    def _training(self) -> type | None:
        """The app's settings of a training, if the command's are of that kind."""
        for cls in self.own.__mro__ if self.own is not None else ():
            if cls.__name__ == "Config" and issubclass(cls, RunConfig):
                return cls
        return None

    def _reader(self, plain: Any) -> Any:
        def read(settings: Any, name: str) -> Any:
            value = plain(settings, name)
            if not name.startswith("_") and not _is_copy(sys._getframe(1)):
                self._note(settings, name)
            return value

        return read

    def _note(self, settings: Any, name: str) -> None:
        cls = object.__getattribute__(settings, "__class__")
        if self.own is None and cls is argparse.Namespace:
            self.own = cls
            self.offered = set(object.__getattribute__(settings, "__dict__"))
        (self.read if cls is self.own else self.read_of_copies).add(name)


def _is_copy(frame: FrameType) -> bool:
    """Whether a function that copies is at work, maybe in a comprehension of its."""
    for one in (frame, frame.f_back):
        if one is None or one.f_code.co_filename.startswith(PARSERS):
            return True
        if one.f_code.co_name in COPIES:
            return True
    return False


@cache
def names_in(module: str) -> set[str]:
    """Attributes that an app's code reads, its commands left out."""
    folder = Path(import_module(module.rpartition(".")[0]).__file__).parent
    files = [path for path in folder.rglob("*.py") if not path.stem.endswith("cli")]
    return {n for p in files for n in re.findall(r"\.(\w+)\b", p.read_text("utf-8"))}
