import json

import pytest
import torch
from torch import nn

from sparsekit.execution import benchmark, convert


@pytest.fixture
def pair():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(19, 13), nn.ReLU(), nn.Linear(13, 3)).eval()
    dense[0].weight.data.mul_(torch.rand(13, 19) < 0.2)
    return dense, convert(dense, "values", where="0")


def test_engines_side_by_side(pair):
    table = benchmark(*pair, torch.randn(5, 19), rounds=2, engines=["onnxruntime"])
    assert [row.engine for row in table.rows] == ["dense", "onnxruntime", "sparse"]
    assert table["sparse"].error < 1e-5
    assert table.fastest_dense.speedup == pytest.approx(1)
    assert table["sparse"].disk_bytes > 0
    assert json.loads(table.to_json())["what"] == "inference"
    assert "speed-up: over" in str(table)
    with pytest.raises(KeyError, match="measured"):
        table["tvm"]


def test_a_training_step_has_a_masked_rival_and_changes_nothing(pair):
    dense, sparse = pair
    before = [p.clone() for m in pair for p in m.parameters()]
    table = benchmark(
        dense, sparse, torch.randn(5, 19), training=True, rounds=2, engines=[]
    )
    assert [row.engine for row in table.rows] == ["dense", "masked", "sparse"]
    after = [p for m in pair for p in m.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert table["sparse"].milliseconds > 0


def test_what_cannot_run_is_named(pair):
    table = benchmark(
        *pair, torch.randn(5, 19), rounds=2, engines=["dense, channels last"]
    )
    assert table["dense, channels last"].milliseconds is None
    assert "not available: for images only" in str(table)


def test_another_function_is_no_rival(pair):
    dense, sparse = pair
    dense[0].weight.data.add_(1.0)
    with pytest.raises(ValueError, match="differ by"):
        benchmark(dense, sparse, torch.randn(5, 19), rounds=2, engines=[])
