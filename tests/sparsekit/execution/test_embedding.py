"""Sparse tables against torch's embedding of the masked dense one."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsekit.execution.embedding import SparseEmbedding

ROWS, DIM = 101, 13


def subject(density=0.3, padding_idx=None, kind=torch.float32):
    """A dense table, a mask with budgets that differ by row, and the sparse table."""
    torch.manual_seed(0)
    dense = nn.Embedding(ROWS, DIM, padding_idx, dtype=kind)
    budget = 2 * density * torch.linspace(0, 1, ROWS)[:, None]
    mask = torch.rand(ROWS, DIM) < budget
    return dense, mask, SparseEmbedding.from_dense(dense, mask)


def assert_like_dense(layer, indices):
    weight = layer.to_dense().requires_grad_()
    answer = F.embedding(indices, weight, layer.padding_idx)
    y = layer(indices)
    assert torch.equal(y, answer)
    grad = torch.randn_like(y)
    layer.zero_grad()
    y.backward(grad)
    answer.backward(grad)
    expected = weight.grad[layer.mask()]
    torch.testing.assert_close(layer.values.grad, expected)


@pytest.mark.parametrize("density", [0, 0.3, 1])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_like_dense(density, kind):
    _, _, layer = subject(density, kind=kind)
    assert_like_dense(layer, torch.randint(0, ROWS, (7, 5)))  # rows recur
    assert_like_dense(layer, torch.randint(0, ROWS, (7,), dtype=torch.int32))
    assert_like_dense(layer, torch.randint(0, ROWS, (20, 4))[::3, 1:3])
    assert_like_dense(layer, torch.empty(0, 3, dtype=torch.int64))
    assert_like_dense(layer, torch.tensor(ROWS - 1))


@pytest.mark.parametrize("padding_idx", [70, -2])
def test_padding_gets_no_gradient(padding_idx):
    _, _, layer = subject(padding_idx=padding_idx)
    assert_like_dense(layer, torch.arange(ROWS).repeat(2))
    row = layer.scatter(layer.values.grad)[padding_idx]
    assert not row.any()


def test_half_precision():
    _, _, layer = subject()
    layer = layer.bfloat16()
    indices = torch.arange(ROWS)
    y = layer(indices)
    assert torch.equal(y, layer.to_dense())
    y.float().sum().backward()
    assert torch.equal(layer.values.grad, torch.ones_like(layer.values))


def test_scores_of_all_rows():
    _, mask, layer = subject()
    x = torch.randn(5, DIM, requires_grad=True)
    expected = x @ layer.to_dense().T
    y = layer.scores(x)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    x2, weight = x.detach().requires_grad_(), layer.to_dense().requires_grad_()
    (x2 @ weight.T).square().sum().backward()
    torch.testing.assert_close(x.grad, x2.grad)
    torch.testing.assert_close(layer.values.grad, weight.grad[mask])
    layer.move(mask.roll(1, 0))  # its index follows
    torch.testing.assert_close(layer.scores(x), x @ layer.to_dense().T)
    assert_like_dense(layer, torch.arange(ROWS))


@pytest.mark.parametrize("bad", [-1, ROWS])
def test_an_index_outside_the_table(bad):
    _, _, layer = subject()
    with pytest.raises(IndexError, match=f"index {bad} at position 1 .* 101 rows"):
        layer(torch.tensor([3, bad]))


def test_errors():
    dense, mask, layer = subject()
    with pytest.raises(ValueError, match="must be int64 or int32, got"):
        layer(torch.zeros(3))
    with pytest.raises(ValueError, match="its indices on meta"):
        layer(torch.zeros(3, dtype=torch.int64, device="meta"))
    with pytest.raises(ValueError, match="padding_idx must be in"):
        SparseEmbedding(dense.weight, mask, ROWS)
    with pytest.raises(ValueError, match="max_norm is set"):
        SparseEmbedding.from_dense(nn.Embedding(3, 4, max_norm=1.0))


def test_dense_gradient():
    _, _, layer = subject(padding_idx=4)
    indices = torch.tensor([3, 4, 3])
    layer.watch_dense_gradient()
    layer(indices).sum().backward()
    expected = torch.zeros(ROWS, DIM)
    expected[3] = 2
    assert torch.equal(layer.take_dense_gradient(), expected)


def test_moves_copies_and_files():
    dense, mask, layer = subject(padding_idx=4)
    module = layer.to_module()
    assert torch.equal(module.weight, dense.weight * mask)
    assert module.padding_idx == 4
    twin = copy.deepcopy(layer)
    layer.move(mask.roll(5, 0))
    assert_like_dense(layer, torch.arange(ROWS))
    other = SparseEmbedding.from_dense(dense, mask.roll(1, 1) & (torch.rand(13) < 0.5))
    other.load_state_dict(twin.state_dict())
    assert torch.equal(other(torch.arange(ROWS)), twin(torch.arange(ROWS)))


def test_compile_and_export():
    _, _, layer = subject()
    indices = torch.randint(0, ROWS, (7, 5))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(indices), layer(indices))
    compiled(indices).square().sum().backward()
    grad, layer.values.grad = layer.values.grad, None
    layer(indices).square().sum().backward()
    assert torch.equal(layer.values.grad, grad)
    program = torch.export.export(layer, (indices,))
    assert torch.equal(program.module()(indices), layer(indices))


def test_memory_does_not_grow_with_the_table():
    """A step on 10^7 entries of which 10^5 exist allocates 3 % of it."""
    rows, dim = 20_000, 500
    mask = torch.zeros(rows, dim, dtype=torch.bool)
    mask[:, :5] = True
    layer = SparseEmbedding(nn.Parameter(torch.randn(rows, dim)), mask)
    indices = torch.arange(64)
    with torch.profiler.profile(profile_memory=True) as profile:
        layer(indices).sum().backward()
    allocated = sum(max(0, e.self_cpu_memory_usage) for e in profile.events())
    assert 4 * layer.nnz <= allocated < 4 * (2 * layer.nnz + 4 * 64 * dim)


def test_tables_are_matrices_on_the_cpu():
    for weight in (torch.zeros(3), torch.zeros(3, 4, 5)):
        with pytest.raises(ValueError, match=r"a table \(rows, dim\) on the CPU, got"):
            SparseEmbedding(weight, weight == 0)
    weight = torch.zeros(3, 4, device="meta")
    with pytest.raises(ValueError, match=r"got \(3, 4\) on meta"):
        SparseEmbedding(weight, weight == 0)


@pytest.mark.parametrize(
    ("padding_idx", "row"), [(None, None), (0, 0), (-3, 0), (2, 2), (-1, 2)]
)
def test_the_padding_row(padding_idx, row):
    weight = torch.ones(3, 4)
    layer = SparseEmbedding(weight, weight > 0, padding_idx)
    assert layer.padding_idx == layer.to_module().padding_idx == row
    told = "SparseEmbedding(3 x 4, nnz=12 (100.00%)"
    assert repr(layer) == (f"{told})" if row is None else f"{told}, padding_idx={row})")
    layer.values.requires_grad_()
    layer(torch.arange(3).repeat(2)).sum().backward()
    expected = torch.full((3, 4), 2.0)
    if row is not None:
        expected[row] = 0
    assert torch.equal(layer.scatter(layer.values.grad), expected)
    for outside in (3, -4):
        with pytest.raises(ValueError, match=rf"in \[-3, 3\): {outside}"):
            SparseEmbedding(weight, weight > 0, outside)


@pytest.mark.parametrize("option", ["max_norm", "scale_grad_by_freq", "sparse"])
def test_options_without_a_sparse_form_are_named(option):
    with pytest.raises(ValueError, match=f"{option} is set; keep it dense"):
        SparseEmbedding.from_dense(nn.Embedding(3, 4, **{option: True}))


def test_an_index_for_scores_is_made_when_it_is_needed_and_once():
    *_, layer = subject()
    assert "starts" not in dict(layer.named_buffers())
    x = torch.randn(5, DIM)
    layer.scores(x)
    held = layer.starts
    layer.scores(x)
    assert layer.starts is held
    assert "starts" not in layer.state_dict()


def test_gradients_of_half_numbers_are_summed_in_float32():
    """256 and 255 ones: in bfloat16 the sum would stay 256."""
    weight = torch.zeros(2, 3)
    layer = SparseEmbedding(nn.Parameter(weight), weight == 0).bfloat16()
    indices = torch.zeros(512, dtype=torch.int64)
    layer(indices).sum().backward()
    assert layer.values.grad.tolist() == [512.0] * 3 + [0.0] * 3
    assert layer.values.grad.dtype == torch.bfloat16


def test_frozen_tables_and_the_dense_gradient_of_any_layout():
    _, _, layer = subject()
    layer.values.requires_grad_(False)
    layer.watch_dense_gradient()
    indices = torch.tensor([[3, 4], [3, 5]])
    grad = torch.randn(DIM, 2, 2).permute(1, 2, 0)  # not in a row
    layer(indices).backward(grad)
    assert layer.values.grad is None
    expected = torch.zeros(ROWS, DIM).index_add_(
        0, indices.flatten(), grad.flatten(0, 1)
    )
    torch.testing.assert_close(layer.take_dense_gradient(), expected)
    layer.values.requires_grad_(True)
    layer(indices).backward(grad)
    torch.testing.assert_close(layer.values.grad, expected[layer.mask()])
