"""Classes found by file name: a package with one file for each, nothing registered."""

import importlib
import inspect
import pkgutil
from dataclasses import is_dataclass
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def classes_in(package: ModuleType, base: type[T]) -> dict[str, type[T]]:
    """{file name: the subclass of `base` that it defines}, sorted."""
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    modules = {name: f"{package.__name__}.{name}" for name in names}
    return {
        name: class_in(importlib.import_module(module), base)
        for name, module in modules.items()
    }


def class_in(module: ModuleType, base: type[T]) -> type[T]:
    """The one dataclass of a module that subclasses `base`; what it imports is not its.

    Raises ValueError if there is none, or several.
    """
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and is_dataclass(value)
        and issubclass(value, base)
    ]
    if len(found) != 1:
        raise ValueError(
            f"{module.__name__} must define exactly one dataclass that subclasses "
            f"{base.__module__}.{base.__name__}, found {[c.__name__ for c in found]}"
        )
    return found[0]
