"""Column-shared N:M against the dense layer with the same weights."""

import copy

import pytest
import torch
from torch import nn

from sparsekit.execution.shared_columns import SharedColumnsLinear

TILE, OUT, IN = 67, 201, 20  # three tiles of a prime number of outputs


def dense_layer(bias=True):
    torch.manual_seed(0)
    return nn.Linear(IN, OUT, bias, dtype=torch.float64)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tile", [None, TILE])
@pytest.mark.parametrize("shape", [(11,), (1,), (0,), (3, 5), ()])
def test_equals_dense(shape, tile, bias):
    sparse = SharedColumnsLinear.from_dense(dense_layer(bias), 2, 4, tile)
    x = torch.randn(*shape, IN, dtype=torch.float64)
    torch.testing.assert_close(sparse(x), sparse.to_module()(x))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 5), (5, 5)])
def test_chooses_by_the_sum_of_the_tile(n, m):
    module = dense_layer()
    weight = module.weight.detach()
    sparse = SharedColumnsLinear.from_dense(module, n, m, TILE)
    for t in range(3):
        sums = weight[t * TILE : (t + 1) * TILE].abs().sum(0).tolist()
        best = []
        for group in range(0, IN, m):
            order = sorted(range(group, group + m), key=lambda c: -sums[c])
            best += sorted(order[:n])
        assert sparse.columns[t].tolist() == best
    assert torch.equal(sparse.to_dense(), weight * sparse.mask())
    assert sparse.mask().sum() * m == OUT * IN * n


def test_gradients_equal_those_of_dense():
    sparse = SharedColumnsLinear.from_dense(dense_layer(), 2, 4, TILE)
    dense = sparse.to_module()
    x = torch.randn(11, IN, dtype=torch.float64)
    inputs = []
    for module in (sparse, dense):
        inputs.append(x.clone().requires_grad_())
        module(inputs[-1]).square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(sparse.bias.grad, dense.bias.grad)
    expected = dense.weight.grad * sparse.mask()
    torch.testing.assert_close(sparse._scatter(sparse.weight.grad), expected)


def test_takes_a_mask_that_is_shared():
    module = dense_layer()
    mask = SharedColumnsLinear.from_dense(module, 1, 4, TILE).mask()
    nn.init.zeros_(module.weight)  # the structure is the mask's
    again = SharedColumnsLinear.from_dense(module, 1, 4, TILE, mask)
    assert torch.equal(again.mask(), mask)


def test_a_mask_that_is_not_names_the_row():
    module = dense_layer()
    mask = SharedColumnsLinear.from_dense(module, 1, 4, TILE).mask()
    other = mask.clone()
    other[TILE + 3] = mask[TILE + 3].roll(1)
    with pytest.raises(ValueError, match="rows 67 and 70 of the mask differ"):
        SharedColumnsLinear.from_dense(module, 1, 4, TILE, other)
    with pytest.raises(ValueError, match=r"row 0 of the mask has 1 of .* needs 2"):
        SharedColumnsLinear.from_dense(module, 2, 4, TILE, mask)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((2, 3), "divisible by 3, got 20"),
        ((5, 4), "keeps more than it has"),
        ((2, 4, 64), "divides the 201 outputs"),
        ((2, 4, 3), "at least 64, got 3"),
    ],
)
def test_bad_arguments(values, message):
    with pytest.raises(ValueError, match=message):
        SharedColumnsLinear.from_dense(dense_layer(), *values)


def test_bad_shapes():
    sparse = SharedColumnsLinear.from_dense(dense_layer(), 2, 4)
    with pytest.raises(ValueError, match="20 input features are needed"):
        sparse(torch.randn(3, 21, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"must be in \[0, 20\)"):
        SharedColumnsLinear(sparse.weight, sparse.columns + 9, IN, None)
    with pytest.raises(ValueError, match="do not fit"):
        SharedColumnsLinear(sparse.weight, sparse.columns[:, 1:], IN, None)
    with pytest.raises(ValueError, match="bias must be"):
        SharedColumnsLinear(sparse.weight, sparse.columns, IN, torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_saves_and_exports_in_other_dtypes(dtype):
    sparse = SharedColumnsLinear.from_dense(dense_layer(), 2, 4, TILE).to(dtype)
    other = copy.deepcopy(sparse)
    with torch.no_grad():
        other.weight.zero_()
        other.columns.zero_()
    other.load_state_dict(sparse.state_dict())
    x = torch.randn(11, IN, dtype=dtype)
    assert torch.equal(other(x), sparse(x))
    exported = torch.export.export(sparse, (x,)).module()
    torch.testing.assert_close(exported(x), sparse(x))


@pytest.mark.parametrize("trains", [True, False])
def test_frozen_and_modes_stay(trains):
    module = dense_layer().requires_grad_(trains).train(trains)
    sparse = SharedColumnsLinear.from_dense(module, 2, 4)
    assert sparse.training is sparse.to_module().training is trains
    assert sparse.weight.requires_grad is sparse.bias.requires_grad is trains


def test_says_what_it_is_and_holds_its_own_tensors():
    sparse = SharedColumnsLinear.from_dense(dense_layer(), 2, 4, TILE)
    assert repr(sparse) == (
        "SharedColumnsLinear(20, 201, 10 columns for each of 3 x 67 outputs, bias=True)"
    )
    assert "bias=False" in repr(
        SharedColumnsLinear.from_dense(dense_layer(False), 1, 4)
    )
    weight, columns, bias = torch.randn(2, 3, 2), torch.tensor([[0, 3], [1, 2]]), None
    columns = columns.int()
    bias = torch.randn(6)
    sparse = SharedColumnsLinear(weight, columns, 4, bias)
    dense = sparse.to_dense()
    for mine in (weight, columns, bias):
        mine.zero_()
    assert torch.equal(sparse.to_dense(), dense)
    assert sparse.bias.count_nonzero() == 6
    assert sparse.columns.dtype == torch.int32
    assert not dense.requires_grad
    module = dense_layer()
    made = SharedColumnsLinear.from_dense(module, 2, 4)
    kept = made.to_dense()
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    assert torch.equal(made.to_dense(), kept)
    assert made.bias.count_nonzero() == OUT


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([[0, -1], [1, 2]], r"columns must be in \[0, 4\)"),
        ([[0, 4], [1, 2]], r"columns must be in \[0, 4\)"),
        ([[0, 1]], "do not fit"),
        ([0, 1], "do not fit"),
    ],
)
def test_columns_that_do_not_fit(columns, message):
    with pytest.raises(ValueError, match=message):
        SharedColumnsLinear(torch.zeros(2, 3, 2), torch.tensor(columns), 4, None)
    with pytest.raises(ValueError, match="do not fit"):
        SharedColumnsLinear(torch.zeros(2, 3, 0), torch.zeros(2, 0).int(), 4, None)


def test_the_smallest_tile():
    module = nn.Linear(4, 128)
    assert len(SharedColumnsLinear.from_dense(module, 1, 4, 64).columns) == 2
    assert len(SharedColumnsLinear.from_dense(module, 1, 4, 128).columns) == 1
    assert len(SharedColumnsLinear.from_dense(nn.Linear(4, 2), 1, 4).columns) == 1
    with pytest.raises(ValueError, match="at least 64, got 32"):
        SharedColumnsLinear.from_dense(module, 1, 4, 32)
    with pytest.raises(ValueError, match="at least 64, got 0"):
        SharedColumnsLinear.from_dense(module, 1, 4, 0)


def test_a_stack_of_tiles_transposes_nothing():
    sparse = SharedColumnsLinear.from_dense(dense_layer(), 2, 4, TILE)
    assert sparse(torch.randn(5, IN, dtype=torch.float64)).t().is_contiguous()


def test_the_group_of_a_mask_that_does_not_fit_is_named():
    module = dense_layer()
    mask = SharedColumnsLinear.from_dense(module, 1, 4, TILE).mask()
    mask[2 * TILE :, 8:12] = False
    message = "row 134 of the mask has 0 of the 4 inputs from 8: .* needs 1"
    with pytest.raises(ValueError, match=message):
        SharedColumnsLinear.from_dense(module, 1, 4, TILE, mask)


def test_sums_of_half_numbers_are_exact():
    """67 numbers of 1/256 and one of 256: in bfloat16 their sum would stay 256."""
    module = nn.Linear(2, 129, bias=False).bfloat16()
    with torch.no_grad():
        module.weight.fill_(2.0)
        module.weight[0] = torch.tensor([256.0, 257.0])  # 257 is 256 in bfloat16
        module.weight[1:, 0] = 2.015625
    assert SharedColumnsLinear.from_dense(module, 1, 2).columns.tolist() == [[0]]
