"""The examples in docstrings print what they say."""

import doctest
import importlib

import pytest

MODULES = ("budget", "config", "metrics", "models", "train")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(f"apps.classify.{name}")
    failed, attempted = doctest.testmod(module)
    assert failed == 0
    assert attempted > 0
