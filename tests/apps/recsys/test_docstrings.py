"""The examples in docstrings print what they say."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name",
    [
        "config", "forgetting.downdate", "forgetting.effects",
        "forgetting.membership", "interactions", "metrics", "models.factors",
        "models.lightgcn", "models.network", "ragged", "sampling", "scoring",
        "splits", "topk", "topk_torch", "train",
    ],
)  # fmt: skip
def test_examples(name: str) -> None:
    module = importlib.import_module(f"apps.recsys.{name}")
    failed, attempted = doctest.testmod(module)
    assert failed == 0
    assert attempted > 0
