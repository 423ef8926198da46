"""Index buffers that fit a weight, and those that are refused before they are read."""

import pytest
import torch
from torch import Tensor, nn

from sparsekit.execution.blocks import BlockLinear
from sparsekit.execution.embedding import SparseEmbedding
from sparsekit.execution.layer import require_structure
from sparsekit.execution.linear import SparseLinear

SHAPE = (3, 2, 2)  # three rows of four entries


def given(crow: list, col: list, n: int | None = None, dtype=torch.int32) -> tuple:
    values = torch.zeros(len(col) if n is None else n)
    return values, torch.tensor(crow, dtype=dtype), torch.tensor(col, dtype=dtype)


@pytest.mark.parametrize(
    ("crow", "col"),
    [
        ([0, 0, 0, 0], []),
        ([0, 1, 2, 3], [3, 3, 3]),  # a row begins where the last one ended, or before
        ([0, 2, 2, 4], [0, 3, 0, 1]),
        ([0, 0, 0, 4], [0, 1, 2, 3]),
        ([0, 4, 8, 12], [0, 1, 2, 3] * 3),
        ([0, 4, 4, 4], [0, 1, 2, 3]),
    ],
)
def test_structures_that_fit(crow: list, col: list) -> None:
    require_structure("w", SHAPE, *given(crow, col))
    require_structure("w", SHAPE, *given(crow, col, dtype=torch.int64))


@pytest.mark.parametrize(
    ("buffers", "problem"),
    [
        (given([0, 1, 2], [0, 0]), r"crow \(3,\) and col \(2,\) do not fit 3 rows"),
        (given([0, 1, 2, 2, 2], [0, 0]), "do not fit 3 rows"),
        (given([0, 1, 2, 2], [0, 0], n=3), r"values \(3,\).* do not fit 3 rows"),
        ((torch.zeros(2, 1), *given([0, 1, 2, 2], [0, 0])[1:]), "do not fit 3 rows"),
        (given([0, 1, 2, 2], [0, 0], dtype=torch.float32), "must be integers"),
        ((*given([0, 1, 2, 2], [0, 0])[:2], torch.zeros(2)), "must be integers"),
        ((torch.zeros(2), torch.zeros(4), given([0], [0, 0])[2]), "must be integers"),
        (given([1, 1, 2, 2], [0, 0]), "ascend from 0 to the number"),
        (given([0, 1, 2, 3], [0, 0]), "ascend from 0 to the number"),
        (given([0, 1, 1, 1], [0, 0]), "ascend from 0 to the number"),
        (given([0, 2, 1, 2], [0, 1]), "ascend from 0 to the number"),
        (given([0, 1, 2, 2], [-1, 0]), r"col must be in \[0, 4\)"),
        (given([0, 1, 2, 2], [0, -1]), r"col must be in \[0, 4\)"),
        (given([0, 1, 2, 2], [0, 4]), r"col must be in \[0, 4\)"),
        (given([0, 1, 2, 2], [4, 0]), r"col must be in \[0, 4\)"),
        (given([0, 2, 2, 2], [1, 1]), "col must ascend within a row"),
        (given([0, 2, 2, 2], [2, 1]), "col must ascend within a row"),
        (given([0, 1, 3, 3], [0, 3, 2]), "col must ascend within a row"),
        (given([0, 0, 0, 3], [0, 2, 2]), "col must ascend within a row"),
    ],
)
def test_structures_that_do_not(buffers: tuple, problem: str) -> None:
    message = rf"'w' holds no valid sparse weight of shape \(3, 2, 2\): .*{problem}"
    with pytest.raises(ValueError, match=message):
        require_structure("w", SHAPE, *buffers)


def mask(*shape: int, density: float = 0.3) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) < density


@pytest.mark.parametrize("missing", ["values", "crow", "col"])
def test_a_state_without_a_buffer_is_named_and_changes_nothing(missing: str) -> None:
    layer = SparseLinear.from_dense(nn.Linear(7, 5), mask(5, 7))
    other = SparseLinear.from_dense(nn.Linear(7, 5), mask(5, 7, density=0.8))
    state = other.state_dict()
    del state[missing]
    with pytest.raises(RuntimeError, match=f'Missing key.*"{missing}"|size mismatch'):
        layer.load_state_dict(state)


def test_layers_say_how_many_values_they_have() -> None:
    linear = SparseLinear.from_dense(nn.Linear(7, 5), mask(5, 7))
    n = int(mask(5, 7).sum())
    assert f"5 x 7, nnz={n} ({n / 35:.2%})" in repr(linear)
    table = nn.Embedding(9, 4, padding_idx=2)
    embedding = SparseEmbedding.from_dense(table, mask(9, 4))
    assert "9 x 4, nnz=" in repr(embedding)
    assert repr(embedding).endswith(", padding_idx=2)")
    without = SparseEmbedding.from_dense(nn.Embedding(9, 4), mask(9, 4))
    assert "padding_idx" not in repr(without)


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.double])
def test_tables_of_other_numbers(dtype: torch.dtype) -> None:
    table = nn.Embedding(9, 4).to(dtype)
    alive = mask(9, 4)
    layer = SparseEmbedding.from_dense(table, alive)
    indices = torch.tensor([[0, 8], [3, 3]])
    expected = table.weight.detach() * alive
    torch.testing.assert_close(layer(indices), expected[indices])
    layer(indices).sum().backward()
    counts = torch.zeros(9, dtype=dtype).index_add_(
        0, indices.flatten(), torch.ones(4, dtype=dtype)
    )
    grads = counts[:, None].expand(9, 4)[alive]
    torch.testing.assert_close(layer.values.grad, grads)


@pytest.mark.parametrize("index", [-1, 9, 1000])
def test_an_index_outside_is_named(index: int) -> None:
    layer = SparseEmbedding.from_dense(nn.Embedding(9, 4), mask(9, 4))
    with pytest.raises(IndexError, match=f"index {index} at position 1 is outside"):
        layer(torch.tensor([0, index, 2]))


def test_what_has_no_blocks() -> None:
    layer = nn.Linear(32, 24)
    for block in (0, -1):
        with pytest.raises(ValueError, match="block"):
            BlockLinear.from_dense(layer, block=block)
    ones = BlockLinear.from_dense(nn.Linear(4, 3), block=1, keep=0.5)
    x = torch.randn(5, 4)
    dense = ones.to_dense() if hasattr(ones, "to_dense") else None
    if dense is not None:
        torch.testing.assert_close(
            ones(x), nn.functional.linear(x, dense, ones.bias), rtol=1e-5, atol=1e-5
        )
