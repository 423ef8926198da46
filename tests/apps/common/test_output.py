"""What a command prints."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.common.output import JSON, tell


@pytest.fixture
def for_a_program():
    token = JSON.set(True)
    yield
    JSON.reset(token)


def test_lines_for_people(capsys) -> None:
    tell({"a": math.nan}, "one\n", "two")
    assert capsys.readouterr().out == "one\ntwo\n"


def test_json_for_a_program(for_a_program, capsys) -> None:
    content = {
        "path": Path("a/b"), "numpy": np.float32(0.5), "n": np.int64(3),
        "tensor": torch.tensor(2.5), "none": None, "rows": ({"x": 1},),
    }  # fmt: skip
    tell(content, "one")
    assert json.loads(capsys.readouterr().out) == {
        "path": "a/b", "numpy": 0.5, "n": 3, "tensor": 2.5, "none": None,
        "rows": [{"x": 1}],
    }  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("nan")])
def test_what_json_has_no_word_for_is_refused(value, for_a_program, capsys) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        tell({"a": value})
    assert capsys.readouterr().out == ""
