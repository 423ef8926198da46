"""Balanced blocks against the dense layer with the same weights."""

import copy

import pytest
import torch
from torch import nn

from sparsekit.execution import blocks
from sparsekit.execution.blocks import BlockLinear
from sparsekit.patterns import Block

B = 16  # block; 7 block rows, 5 block columns


def dense_layer(rows=7, columns=5, block=B, bias=True):
    torch.manual_seed(0)
    return nn.Linear(columns * block, rows * block, bias, dtype=torch.float64)


def pair(keep=0.4, **sizes):
    """A block layer and the dense one that computes the same."""
    sparse = BlockLinear.from_dense(dense_layer(**sizes), sizes.get("block", B), keep)
    return sparse, sparse.to_module()


def gradients(module, x, weight_gradient):
    x = x.clone().requires_grad_()
    module.zero_grad()
    module(x).square().sum().backward()
    return x.grad, weight_gradient(module)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gather_bytes", [2**28, 1], ids=["whole", "row by row"])
@pytest.mark.parametrize("shape", [(11,), (1,), (0,), (3, 5), ()])
def test_equals_dense(shape, gather_bytes, bias):
    sparse, dense = pair(bias=bias)
    sparse.gather_bytes = gather_bytes
    x = torch.randn(*shape, 5 * B, dtype=torch.float64)
    torch.testing.assert_close(sparse(x), dense(x))
    with torch.no_grad():
        torch.testing.assert_close(sparse(x), dense(x))
    torch.testing.assert_close(
        sparse(x.expand(2, *x.shape)), dense(x.expand(2, *x.shape))
    )


@pytest.mark.parametrize("gather_bytes", [2**28, 1], ids=["whole", "row by row"])
def test_gradients_equal_those_of_dense(gather_bytes):
    sparse, dense = pair()
    sparse.gather_bytes = gather_bytes
    x = torch.randn(11, 5 * B, dtype=torch.float64)
    got = gradients(sparse, x, lambda m: m._scatter(m.weight.grad))
    expected = gradients(dense, x, lambda m: m.weight.grad * sparse.mask())
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(sparse.bias.grad, dense.bias.grad)


def test_reads_inputs_of_any_strides():
    sparse, dense = pair()
    x = torch.randn(5 * B, 22, dtype=torch.float64).t()[::2]
    torch.testing.assert_close(sparse(x), dense(x))
    wide = torch.randn(7, 10 * B, dtype=torch.float64)[:, ::2]
    torch.testing.assert_close(sparse(wide), dense(wide))


def test_a_stack_transposes_nothing():
    sparse, _ = pair()
    y = sparse(torch.randn(11, 5 * B, dtype=torch.float64))
    assert y.t().is_contiguous()
    assert torch.relu(y + 1).t().is_contiguous()


def test_chooses_the_largest_blocks_of_every_row():
    module = dense_layer()
    sparse = BlockLinear.from_dense(module, B, keep=0.4)
    weight = module.weight.detach()
    for row in range(7):
        means = [
            float(weight[row * B : (row + 1) * B, c * B : (c + 1) * B].abs().mean())
            for c in range(5)
        ]
        best = sorted(sorted(range(5), key=lambda c: -means[c])[:2])
        assert sparse.columns[row].tolist() == best
    kept = sparse.mask()
    assert kept.sum() == 7 * 2 * B * B
    assert torch.equal(sparse.to_dense(), weight * kept)


def test_of_equal_blocks_the_first_stay():
    module = dense_layer(rows=2, columns=19)
    nn.init.ones_(module.weight)
    sparse = BlockLinear.from_dense(module, B, keep=0.3)  # int(0.3 * 19) would be 5
    assert sparse.columns.tolist() == [list(range(6))] * 2


@pytest.mark.parametrize("trains", [True, False])
def test_frozen_and_modes_stay(trains):
    module = dense_layer().requires_grad_(trains).train(trains)
    for made in (sparse := BlockLinear.from_dense(module, B, 0.4), sparse.to_module()):
        assert made.training is trains
    assert sparse.weight.requires_grad is trains
    assert sparse.bias.requires_grad is trains


def test_keep_one_is_the_dense_layer():
    module = dense_layer()
    sparse = BlockLinear.from_dense(module, B, keep=1.0)
    assert torch.equal(sparse.to_dense(), module.weight)
    back = sparse.to_module()
    assert torch.equal(back.weight, module.weight)
    assert torch.equal(back.bias, module.bias)


def test_takes_a_balanced_mask():
    module = dense_layer()
    mask = BlockLinear.from_dense(module, B, keep=0.6).mask()
    sparse = BlockLinear.from_dense(module, B, mask=mask)
    assert torch.equal(sparse.mask(), mask)
    assert torch.equal(sparse.to_dense(), module.weight * mask)


def test_structure_is_the_masks_not_that_of_zeros():
    module = dense_layer()
    mask = BlockLinear.from_dense(module, B, keep=0.6).mask()
    nn.init.zeros_(module.weight)
    assert torch.equal(BlockLinear.from_dense(module, B, mask=mask).mask(), mask)


def test_without_mask_the_zeros_decide():
    module = dense_layer()
    mask = BlockLinear.from_dense(module, B, keep=0.4).mask()
    with torch.no_grad():
        module.weight.mul_(mask)
        module.weight[0, mask[0].nonzero()[0]] = 0  # one weight of a block
    assert torch.equal(BlockLinear.from_dense(module, B).mask(), mask)


def test_a_mask_that_is_not_balanced_names_the_row():
    module = dense_layer()
    mask = BlockLinear.from_dense(module, B, keep=0.4).mask()
    mask[3 * B : 4 * B] = True
    with pytest.raises(ValueError, match=r"row 0 has 2, row 3 has 5 of 5"):
        BlockLinear.from_dense(module, B, mask=mask)


def test_a_mask_of_parts_of_blocks_names_the_block():
    module = dense_layer()
    mask = torch.ones(7 * B, 5 * B, dtype=torch.bool)
    mask[B, 2 * B] = False
    with pytest.raises(ValueError, match=r"255 of 256 weights of block \(1, 2\)"):
        BlockLinear.from_dense(module, B, mask=mask)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: BlockLinear.from_dense(m, 32, 0.5), "112 x 80 has no whole blocks"),
        (lambda m: BlockLinear.from_dense(m, 0, 0.5), "no whole blocks of 0"),
        (lambda m: BlockLinear.from_dense(m, B, 0.0), "got 0.0"),
        (lambda m: BlockLinear.from_dense(m, B, 1.5), "got 1.5"),
        (lambda m: BlockLinear.from_dense(m, B, 0.5, m.weight > 0), "not both"),
        (lambda m: BlockLinear.from_dense(m, B, mask=m.weight > 99), "is its bias"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(dense_layer())


def test_bad_shapes():
    sparse, _ = pair()
    with pytest.raises(ValueError, match="80 input features are needed"):
        sparse(torch.randn(3, 81, dtype=torch.float64))
    weight, columns = sparse.weight, sparse.columns
    with pytest.raises(ValueError, match=r"must be in \[0, 5\)"):
        BlockLinear(weight, columns + 4, 5 * B, None)
    with pytest.raises(ValueError, match="do not fit"):
        BlockLinear(weight, columns[:, :1], 5 * B, None)
    with pytest.raises(ValueError, match="do not fit"):
        BlockLinear(weight, columns, 5 * B + 1, None)
    with pytest.raises(ValueError, match="bias must be"):
        BlockLinear(weight, columns, 5 * B, torch.zeros(3))


def test_unread_blocks_are_named_and_ignored():
    module = dense_layer()
    with torch.no_grad():
        module.weight.view(7, B, 5, B)[:, :, [1, 3]] = 0
    sparse = BlockLinear.from_dense(module, B)
    assert sparse.unread() == [1, 3]
    x = torch.randn(4, 5 * B, dtype=torch.float64)
    noisy = x.clone().view(4, 5, B)
    noisy[:, [1, 3]] += 1
    assert torch.equal(sparse(x), sparse(noisy.view(4, -1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    sparse, dense = pair()
    sparse, x = sparse.to(dtype), torch.randn(11, 5 * B).to(dtype)
    y = sparse(x)
    assert y.dtype == dtype
    exact = dense.double()(x.double())
    error = (y.double() - exact).abs().max() / exact.abs().max()
    assert error < 4 * torch.finfo(dtype).eps * 5 * B**0.5


def test_trains_like_masked_dense_under_adam():
    sparse, dense = pair()
    mask = sparse.mask()
    optimizers = [torch.optim.Adam(m.parameters(), 0.01) for m in (sparse, dense)]
    for _ in range(5):
        x = torch.randn(11, 5 * B, dtype=torch.float64)
        for module, optimizer in zip((sparse, dense), optimizers, strict=True):
            optimizer.zero_grad()
            module(x).tanh().square().sum().backward()
            if module is dense:
                dense.weight.grad.mul_(mask)
            optimizer.step()
    torch.testing.assert_close(sparse.to_dense(), dense.weight.detach())
    assert sum(p.numel() for p in sparse.parameters()) == 7 * B * (2 * B + 1)


def test_copies_saves_and_exports():
    sparse, _ = pair()
    other, _ = pair(keep=0.4)
    with torch.no_grad():
        other.weight.zero_()
        other.columns.copy_(4 - other.columns.flip(1))
    x = torch.randn(11, 5 * B, dtype=torch.float64)
    other.load_state_dict(sparse.state_dict())
    assert torch.equal(other(x), sparse(x))
    assert torch.equal(copy.deepcopy(sparse)(x), sparse(x))
    exported = torch.export.export(sparse, (x,)).module()
    torch.testing.assert_close(exported(x), sparse(x))


def test_a_mask_of_the_pattern_fits_if_balanced():
    module = dense_layer()
    with torch.no_grad():  # the same two columns are large in every row
        module.weight.view(7, B, 5, B)[:, :, [0, 4]] += 10
    pattern = Block(B, B)
    n = pattern.count(module.weight.shape, 0.6)
    mask = pattern.mask(module.weight.detach(), n)
    sparse = BlockLinear.from_dense(module, B, mask=mask)
    assert sparse.columns.tolist() == [[0, 4]] * 7


def test_inputs_are_gathered_in_parts_of_the_budget(monkeypatch):
    sparse, dense = pair()
    sizes = []
    gather = blocks._gather

    def noted(weight, columns, inputs):
        sizes.append(columns.numel() * B * inputs.nbytes // len(inputs))
        return gather(weight, columns, inputs)

    monkeypatch.setattr(blocks, "_gather", noted)
    three = 3 * 2 * B * 11 * 8
    monkeypatch.setitem(blocks.GATHER_BYTES, "cpu", three)
    x = torch.randn(11, 5 * B, dtype=torch.float64)
    torch.testing.assert_close(sparse(x), dense(x))
    assert sizes == [three, three, three // 3]  # 7 block rows


def test_exports_for_any_batch():
    sparse, _ = pair()
    x = torch.randn(11, 5 * B, dtype=torch.float64)
    shapes = ({0: torch.export.Dim("batch", min=1, max=2**20)},)
    exported = torch.export.export(sparse, (x,), dynamic_shapes=shapes).module()
    for n in (1, 3, 50):
        y = torch.randn(n, 5 * B, dtype=torch.float64)
        torch.testing.assert_close(exported(y), sparse(y))


def test_compiles_without_a_break():
    sparse, dense = pair()
    x = torch.randn(11, 5 * B, dtype=torch.float64)
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager")
    got = gradients(compiled, x, lambda m: sparse._scatter(sparse.weight.grad))
    expected = gradients(dense, x, lambda m: m.weight.grad * sparse.mask())
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("op", ["product", "input_gradient", "weight_gradient"])
def test_operations_are_registered_right(op):
    sparse, _ = pair()
    weight, columns = sparse.weight, sparse.columns
    x = torch.randn(5 * B, 11, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(7 * B, 11, dtype=torch.float64)
    arguments = {
        "product": (weight, columns, x, 1),
        "input_gradient": (weight.detach(), columns, gradient, 5 * B, 1),
        "weight_gradient": (weight.detach(), columns, x.detach(), gradient, 1),
    }
    torch.library.opcheck(getattr(blocks, op), arguments[op])


def test_gradients_are_those_of_finite_differences():
    sparse, _ = pair(rows=2, columns=3)
    x = torch.randn(3, 3 * B, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda w, x: blocks.product(w, sparse.columns, x.t().contiguous(), 1),
        (sparse.weight.detach().requires_grad_(), x),
        fast_mode=True,
    )


def test_works_under_autocast():
    sparse, dense = pair()
    sparse, dense, x = sparse.float(), dense.float(), torch.randn(11, 5 * B)
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = sparse(x), dense(x)
    assert got.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)
    got.sum().backward()
    assert sparse.weight.grad.dtype == torch.float32


def test_frozen_weights_get_no_gradient():
    sparse, dense = pair()
    sparse.weight.requires_grad_(False)
    x = torch.randn(11, 5 * B, dtype=torch.float64, requires_grad=True)
    sparse(x).sum().backward()
    assert sparse.weight.grad is None
    expected = torch.autograd.grad(dense(x).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)


def test_says_what_it_is():
    sparse, _ = pair()
    assert repr(sparse) == "BlockLinear(80, 112, block=16, 2 of 5 in a row, bias=True)"
    assert "bias=False" in repr(pair(bias=False)[0])
    assert (sparse.block, sparse.k, sparse.gather_bytes) == (16, 2, None)
    assert sparse.columns.dtype == torch.int32
    assert BlockLinear.from_dense(nn.Linear(128, 64), keep=0.5).block == 64


def test_holds_its_own_tensors():
    weight, columns = torch.randn(2, 3, 6), torch.tensor([[0, 2], [1, 2]]).int()
    bias = torch.randn(6)
    sparse = BlockLinear(weight, columns, 9, bias)
    dense = sparse.to_dense()
    for mine in (weight, columns, bias):
        mine.zero_()
    assert torch.equal(sparse.to_dense(), dense)
    assert sparse.bias.count_nonzero() == 6
    turned = torch.randn(6, 3, 2).permute(2, 1, 0)  # rows of it are no neighbours
    assert BlockLinear(turned, sparse.columns, 9, None).weight.is_contiguous()
    module = dense_layer()
    made = BlockLinear.from_dense(module, B, 0.4)
    kept = made.to_dense(), made.bias.detach().clone()
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    assert torch.equal(made.to_dense(), kept[0])
    assert torch.equal(made.bias, kept[1])
    assert not made.to_dense().requires_grad
    assert made.weight.is_leaf


def test_blocks_of_one_weight():
    module = dense_layer(rows=3, columns=4, block=1)
    sparse = BlockLinear.from_dense(module, 1, keep=0.5)
    assert sparse.mask().sum(1).tolist() == [2, 2, 2]
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(sparse(x), sparse.to_module()(x))


@pytest.mark.parametrize(
    ("weight", "columns", "inputs", "message"),
    [
        ((2, 3, 6), [[0, 1], [-1, 2]], 9, r"columns must be in \[0, 3\)"),
        ((2, 3, 6), [[0, 1], [1, 3]], 9, r"columns must be in \[0, 3\)"),
        ((2, 3, 6), [0, 1], 9, "do not fit: .2, 3, 6. and .2,."),
        ((2, 3, 6), [[0, 1]], 9, "9 inputs, 2 block rows of 3"),
        ((2, 3, 6), [[0, 1], [1, 2]], 8, "8 inputs, 2 block rows of 3"),
        ((2, 3, 0), [[], []], 9, r"columns \(2, 0\) do not fit"),
        ((2, 3, 7), [[0, 1], [1, 2]], 9, "weight .O, b, k . b. and columns"),
    ],
)
def test_indices_and_sizes_that_do_not_fit(weight, columns, inputs, message):
    columns = torch.tensor(columns, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        BlockLinear(torch.zeros(weight), columns, inputs, None)


def test_every_column_of_blocks_can_be_read():
    columns = torch.tensor([[0], [2]])
    sparse = BlockLinear(torch.ones(2, 3, 3), columns, 9, None)
    assert sparse.to_dense()[3:].sum(0).tolist() == [0.0] * 6 + [3.0] * 3
    assert sparse.unread() == [1]


def test_the_row_that_differs_and_the_empty_rows_are_named():
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:, :2] = True
    mask[2, 4] = True
    with pytest.raises(
        ValueError, match=r"row 0 has 1, row 1 has 2 of 3 \(blocks of 2\)"
    ):
        BlockLinear.from_dense(nn.Linear(6, 4), 2, mask=mask)


def gathered(sparse, batch, monkeypatch):
    """How many block rows are gathered at a time."""
    rows, gather = [], blocks._gather

    def noted(weight, columns, inputs):
        rows.append(len(columns))
        return gather(weight, columns, inputs)

    monkeypatch.setattr(blocks, "_gather", noted)
    with torch.no_grad():
        sparse(torch.zeros(batch, sparse.in_features))
    monkeypatch.setattr(blocks, "_gather", gather)
    return rows


def test_four_mebibytes_are_gathered_at_a_time(monkeypatch):
    sparse = BlockLinear(torch.zeros(7, 1, 2), torch.zeros(7, 2).int(), 2, None)
    batch = 2**22 // (2 * 4 * 3)  # a third of it a row, rounded down
    assert gathered(sparse, batch, monkeypatch) == [3, 3, 1]
    assert gathered(sparse, batch + 1, monkeypatch) == [2, 2, 2, 1]
    assert gathered(sparse, 1, monkeypatch) == [7]
    sparse.gather_bytes = 1  # a row at least
    assert gathered(sparse, 3, monkeypatch) == [1] * 7
    sparse.gather_bytes = 2 * 4 * 3 * 2
    assert gathered(sparse, 3, monkeypatch) == [2, 2, 2, 1]


def test_only_what_is_needed_gets_a_gradient():
    sparse, _ = pair()
    x = torch.randn(3, 5 * B, dtype=torch.float64)
    sparse(x).sum().backward()
    assert x.grad is None
    assert sparse.weight.grad is not None
    assert sparse.columns.grad is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_equals_dense_on_a_gpu():
    sparse, dense = pair()
    x = torch.randn(11, 5 * B, dtype=torch.float64)
    torch.testing.assert_close(sparse.cuda()(x.cuda()).cpu(), dense(x))
