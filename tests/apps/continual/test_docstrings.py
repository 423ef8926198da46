"""The examples in docstrings print what they say."""

import doctest
import importlib

import pytest

MODULES = (
    "buffer", "config", "fisher", "flops", "journal", "metrics", "models", "strategy",
    "streams", "strategies.agem", "strategies.lwf", "text", "training",
)  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(f"apps.continual.{name}")
    failed, attempted = doctest.testmod(module)
    assert failed == 0
    assert attempted > 0
