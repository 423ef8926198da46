"""The examples in docstrings: which modules have some, and whether they hold."""

import doctest
import importlib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def modules_with_examples(package: str) -> list[str]:
    """Names of all modules below a package whose source has a `>>>`."""
    paths = sorted((ROOT / package).rglob("*.py"))
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in paths
        if ">>> " in path.read_text("utf-8") and path.name != "__main__.py"
    ]


def assert_examples_hold(name: str) -> None:
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert failed == 0
    assert attempted > 0
