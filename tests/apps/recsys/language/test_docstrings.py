"""The examples in docstrings print what they say."""

import doctest
import importlib

import pytest

MODULES = ("answers", "attributes", "catalogue", "choosers", "cost", "edges",
           "interface", "pace", "profiles", "pruning", "titles")  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(f"apps.recsys.language.{name}")
    failed, attempted = doctest.testmod(module)
    assert failed == 0
    assert attempted > 0
