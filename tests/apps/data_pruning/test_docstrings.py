"""The examples in docstrings print what they say."""

import doctest
import importlib

import pytest

MODULES = (
    "config",
    "cost",
    "data",
    "metrics",
    "models",
    "scoring",
    "strategy",
    "train",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(f"apps.data_pruning.{name}")
    failed, attempted = doctest.testmod(module)
    assert failed == 0
    assert attempted > 0
