"""Writes down what every public parameter is by default: `python -m` this module."""

import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import sparsekit

FILE = Path(__file__).with_name("defaults.json")
LEFT_OUT = (
    "sparsekit.__main__",  # which runs the command line
    "sparsekit.testing",
    "sparsekit.execution.kernels",
    "sparsekit.integrations",
)


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(sparsekit.__path__, "sparsekit."):
        if not found.name.startswith(LEFT_OUT):
            yield importlib.import_module(found.name)


def public() -> Iterator[tuple[str, Any]]:
    """Functions, classes and their methods, where they are defined."""
    for module in modules():
        for name, thing in vars(module).items():
            if (
                name.startswith("_")
                or getattr(thing, "__module__", "") != module.__name__
            ):
                continue
            if inspect.isfunction(thing) or inspect.isclass(thing):
                yield f"{module.__name__}.{name}", thing
            if inspect.isclass(thing):
                for method, function in vars(thing).items():
                    if inspect.isfunction(function) and not method.startswith("_"):
                        yield f"{module.__name__}.{name}.{method}", function


def defaults() -> dict[str, Any]:
    """{function.parameter: what it is if it is left out}: numbers, texts and truths."""
    found = {}
    for name, thing in public():
        try:
            signature = inspect.signature(thing)
        except (TypeError, ValueError):
            continue
        for parameter in signature.parameters.values():
            if isinstance(parameter.default, bool | int | float | str):
                found[f"{name}.{parameter.name}"] = parameter.default
    return found


if __name__ == "__main__":
    FILE.write_text(json.dumps(defaults(), indent=1, sort_keys=True) + "\n", "utf-8")
