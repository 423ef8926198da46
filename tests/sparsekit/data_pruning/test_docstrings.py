"""The examples in the docstrings print what they say."""

import doctest
import importlib

import pytest

MODULES = {
    "beta": 2,
    "dataset": 1,
    "duplicates": 1,
    "dynamics": 1,
    "embeddings": 3,
    "gme": 2,
    "graph": 2,
    "infobatch": 1,
    "per_sample": 1,
    "products": 1,
    "pruner": 1,
    "scores": 6,
    "selection": 6,
}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"sparsekit.data_pruning.{name}")
    found = [t for t in doctest.DocTestFinder().find(module) if t.examples]
    assert len(found) >= MODULES[name]
    assert doctest.testmod(module).failed == 0
