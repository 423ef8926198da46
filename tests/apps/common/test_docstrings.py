"""The examples in docstrings print what they say."""

import doctest
import importlib

import pytest

MODULES = {
    "statistics": 4, "claims": 1, "classifiers": 1, "options": 1, "roc": 4,
    "tables": 2, "toml": 4, "verdicts": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(f"apps.common.{name}")
    found = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    assert len(found) >= MODULES[name]
    assert doctest.testmod(module).failed == 0
