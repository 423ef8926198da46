"""The examples in docstrings print what they say."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name", ["interactions", "metrics", "ragged", "scoring", "splits", "topk"]
)
def test_examples(name: str) -> None:
    module = importlib.import_module(f"apps.recsys.{name}")
    failed, attempted = doctest.testmod(module)
    assert failed == 0
    assert attempted > 0
