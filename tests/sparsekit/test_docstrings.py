"""The examples in the docstrings print what they say."""

import doctest
import importlib

import pytest

MODULES = {
    "masks": 5,
    "patterns": 5,
    "scores": 5,
    "allocation": 6,
    "schedules": 5,
    "packing": 6,
    "accounting": 5,
    "flops": 1,
    "report": 3,
    "method": 1,
    "sparsifier": 1,
    "testing": 1,
    "execution.blocks": 1,
    "execution.compact": 2,
    "execution.shared_columns": 1,
}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"sparsekit.{name}")
    found = [t for t in doctest.DocTestFinder().find(module) if t.examples]
    assert len(found) >= max(1, MODULES[name] - 1)
    assert doctest.testmod(module).failed == 0
