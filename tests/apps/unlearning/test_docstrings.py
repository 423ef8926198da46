"""The examples in docstrings print what they say."""

import doctest
import importlib

import pytest

MODULES = (
    "attacks.confusion",
    "attacks.forgetting_score",
    "attacks.lira",
    "attacks.relearn",
    "attacks.rmia",
    "attacks.scores",
    "attacks.targets",
    "config",
    "data",
    "ensemble",
    "fitting",
    "forget",
    "gradients",
    "ledger_import",
    "masking",
    "metrics",
    "models",
    "receipt",
    "service_audit",
    "service_paths",
    "service_receipt",
    "signing",
    "unlearner",
    "unlearners.fisher",
    "unlearners.l1_sparse",
    "unlearners.scrub",
    "unlearning",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(f"apps.unlearning.{name}")
    failed, attempted = doctest.testmod(module)
    assert failed == 0
    assert attempted > 0
