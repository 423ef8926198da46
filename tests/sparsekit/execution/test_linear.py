"""Sparse linear layers against the masked dense one in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from sparsekit.execution import linear as ops
from sparsekit.execution.kernels import samples
from sparsekit.execution.linear import SparseLinear

INPUTS, OUTPUTS = 1031, 607  # primes, and more than one group of rows and columns


def subject(density=0.11, inputs=INPUTS, outputs=OUTPUTS, bias=True, seed=0):
    """A dense layer, a mask and the sparse layer."""
    torch.manual_seed(seed)
    dense = nn.Linear(inputs, outputs, bias=bias)
    mask = torch.rand(dense.weight.shape) < density
    return dense, mask, SparseLinear.from_dense(dense, mask)


def assert_near(got, answer, tolerance=1e-6):
    assert got.shape == answer.shape
    error = (got.double() - answer).norm()
    assert error <= tolerance * answer.norm() + 1e-12, (error, answer.norm())


def assert_like_dense(layer, x, tolerance=1e-6):
    x = x.detach().requires_grad_()
    y = layer(x)
    grad = torch.randn(y.shape).to(y.dtype)
    layer.zero_grad()
    y.backward(grad)

    weight = layer.to_dense().double().requires_grad_()
    bias = None if layer.bias is None else layer.bias.detach().double()
    bias = None if bias is None else bias.requires_grad_()
    exact = x.detach().double().requires_grad_()
    answer = F.linear(exact, weight, bias)
    answer.backward(grad.double())
    assert_near(y.detach(), answer.detach(), tolerance)
    assert_near(x.grad, exact.grad, tolerance)
    assert_near(layer.values.grad, weight.grad[layer.mask()], tolerance)
    if bias is not None:
        assert_near(layer.bias.grad, bias.grad, tolerance)


@pytest.mark.parametrize("batch", [0, 1, 2, 7, 16, 33, 128, 300])
def test_batches(batch):
    _, _, layer = subject()
    assert_like_dense(layer, torch.randn(batch, INPUTS))


@pytest.mark.parametrize("density", [0, 0.001, 0.5, 0.97, 1])
def test_densities(density):
    """Blocks from one to dozens, cells that are full, and none at all."""
    _, _, layer = subject(density)
    assert_like_dense(layer, torch.randn(16, INPUTS))
    _, _, layer = subject(density, inputs=7, outputs=3, bias=False)
    assert_like_dense(layer, torch.randn(16, 7))


def test_layouts_of_the_input():
    _, _, layer = subject()
    wide = torch.randn(37, 2 * INPUTS)
    for x in (
        wide[:, ::2],  # neither samples nor features side by side
        torch.randn(INPUTS, 16).t(),  # feature-major, read in place
        torch.randn(INPUTS, 33).t(),  # feature-major, packed
        torch.randn(INPUTS, 40).t()[5:21],  # a slice that is not aligned
        torch.randn(INPUTS).expand(16, INPUTS),
        torch.randn(3, 5, INPUTS),
        torch.randn(5, 3, INPUTS).transpose(0, 1),
        torch.randn(INPUTS),
        torch.randn(0, 3, INPUTS),
    ):
        assert_like_dense(layer, x)


def test_gradient_of_a_sum():
    """Its strides are 0."""
    _, _, layer = subject()
    x = torch.randn(16, INPUTS, requires_grad=True)
    layer(x).sum().backward()
    assert_near(x.grad, layer.to_dense().double().sum(0).expand(16, -1))


def test_output_is_feature_major():
    _, _, layer = subject()
    _, _, second = subject(inputs=OUTPUTS, outputs=5)
    y = second(torch.relu(layer(torch.randn(48, INPUTS))))
    assert y.stride() == (1, 48)
    assert layer(torch.randn(4, 12, INPUTS)).stride() == (12, 1, 48)


def test_empty_rows_and_columns_and_one_value():
    dense = nn.Linear(INPUTS, OUTPUTS)
    mask = torch.zeros(OUTPUTS, INPUTS, dtype=torch.bool)
    mask[3::7, 5::11] = True
    assert_like_dense(SparseLinear.from_dense(dense, mask), torch.randn(16, INPUTS))
    mask.zero_()
    mask[606, 1030] = True
    layer = SparseLinear.from_dense(dense, mask)
    assert layer.nnz == 1
    assert_like_dense(layer, torch.randn(16, INPUTS))
    assert_like_dense(layer, torch.randn(1, INPUTS))


def test_a_value_of_zero_is_alive():
    dense, mask, _ = subject()
    nn.init.zeros_(dense.weight)
    layer = SparseLinear.from_dense(dense, mask)
    assert layer.nnz == int(mask.sum())
    assert_like_dense(layer, torch.randn(16, INPUTS))


@pytest.mark.parametrize("vectors", samples.SIZES)
def test_every_size_of_tile(vectors):
    _, _, layer = subject(0.3, inputs=41, outputs=23)
    assert_like_dense(layer, torch.randn(16 * vectors - 1, 41))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("density", "fewer"), [(0.3, False), (0.3, True), (1, True)])
def test_connections_that_move_before_the_backward_pass_are_refused(
    density, fewer, kind
):
    dense, mask, _ = subject(density, inputs=41, outputs=23)
    layer = SparseLinear.from_dense(dense.to(kind), mask)
    losses = [
        layer(torch.randn(16, 41, dtype=kind, requires_grad=need)).sum()
        for need in (False, True)
    ]
    new = mask.flatten().roll(1).view(mask.shape)
    if fewer:
        new &= torch.arange(23).view(-1, 1) > 3
    layer.move(new)
    for loss in losses:
        with pytest.raises(RuntimeError, match=r"went forward|modified by an inplace"):
            loss.backward()
    assert_like_dense(layer, torch.randn(16, 41).to(kind), 1e-2)


def test_gradcheck_in_float64():
    _, mask, _ = subject(0.4, inputs=11, outputs=7)
    layer = SparseLinear.from_dense(nn.Linear(11, 7).double(), mask)
    x = torch.randn(5, 11, dtype=torch.float64, requires_grad=True)

    def call(x, values, bias):
        swapped = {"values": values, "bias": bias}
        return torch.func.functional_call(layer, swapped, (x,))

    assert torch.autograd.gradcheck(call, (x, layer.values, layer.bias))
    assert_like_dense(layer, x, 1e-14)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_storage_only(kind):
    layer = subject()[2].to(kind)
    assert layer.values.dtype == kind
    x = torch.randn(16, INPUTS)
    answer = F.linear(x.double(), layer.to_dense().double(), layer.bias.double())
    assert_near(layer(x), answer)
    answer = F.linear(x.to(kind).double(), layer.to_dense().double())
    y = layer(x.to(kind))
    assert y.dtype == kind
    assert_near(y, answer + layer.bias.double(), 5e-3)


def test_autocast():
    _, _, layer = subject()
    x = torch.randn(16, INPUTS).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    answer = F.linear(x.double(), layer.to_dense().double(), layer.bias.double())
    assert_near(y, answer)


def test_errors():
    _, mask, layer = subject()
    with pytest.raises(ValueError, match="takes 1031 features, got"):
        layer(torch.randn(16, 1030))
    with pytest.raises(ValueError, match=r"convert the input with x.to\(torch.float32"):
        layer(torch.randn(16, INPUTS).double())
    with pytest.raises(ValueError, match="its input on meta"):
        layer(torch.randn(16, INPUTS, device="meta"))
    with pytest.raises(ValueError, match="must be \\(out, in\\)"):
        SparseLinear(torch.zeros(2, 3, 4), torch.ones(2, 3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask must be bool"):
        SparseLinear(torch.zeros(2, 3), mask)


def test_dense_gradient():
    _, mask, layer = subject()
    x, grad = torch.randn(16, INPUTS), torch.randn(16, OUTPUTS)
    layer.watch_dense_gradient()
    layer(x).backward(grad)
    assert_near(layer.take_dense_gradient(), grad.t().double() @ x.double())
    assert layer.probe is None
    assert_near(layer.values.grad, (grad.t().double() @ x.double())[mask])


def test_moves():
    """Same number of values: in place; another: the same Parameter."""
    _, mask, layer = subject()
    x = torch.randn(16, INPUTS)
    parameter, place = layer.values, layer.values.data_ptr()
    assert_like_dense(layer, x)
    layer.move(mask.flatten().roll(17).view_as(mask))
    assert layer.values.data_ptr() == place
    assert_like_dense(layer, x)
    for density in (0.3, 1, 0.02):
        layer.move(torch.rand(mask.shape) < density)
        assert layer.values is parameter
        assert_like_dense(layer, x)


def test_there_and_back():
    dense, mask, layer = subject()
    module = layer.to_module()
    assert torch.equal(module.weight, dense.weight * mask)
    assert torch.equal(module.bias, dense.bias)
    assert torch.equal(SparseLinear.from_dense(module).values, layer.values)


def test_copies_and_files(tmp_path):
    _, _, layer = subject()
    x = torch.randn(16, INPUTS)
    y = layer(x)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), y)
    assert twin.values is not layer.values
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    _, _, other = subject(0.05, seed=1)  # another structure, another number
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    assert torch.equal(other(x), y)
    assert_like_dense(other, x)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
        lambda p: torch.optim.Adam(p, 0.01, foreach=True),
        lambda p: torch.optim.Adam(p, 0.01, fused=True),
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    ],
)
def test_optimizers_do_what_they_do_to_a_masked_layer(make):
    dense, mask, layer = subject(0.3, inputs=41, outputs=23)
    with torch.no_grad():
        dense.weight.mul_(mask)
    x, target = torch.randn(16, 41), torch.randn(16, 23)
    mine, theirs = make(layer.parameters()), make(dense.parameters())
    for _ in range(5):
        for model, optimizer in ((layer, mine), (dense, theirs)):
            optimizer.zero_grad()
            F.mse_loss(model(x), target).backward()
            if model is dense:
                dense.weight.grad.mul_(mask)
            optimizer.step()
            if model is dense:
                dense.weight.data.mul_(mask)
    assert_near(layer.values, dense.weight[mask].double(), 2e-6)


def test_state_of_training_takes_24_bytes_a_value():
    """And a little for rows, columns and blocks: measured from what there is."""
    dense, _, layer = subject(0.1, inputs=2053, outputs=2039, bias=False)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.randn(16, 2053)).sum().backward()
    optimizer.step()
    state = [t for t in optimizer.state[layer.values].values() if t.dim()]
    tensors = [*layer.parameters(), *layer.buffers(), *state]
    assert {t.dtype for t in tensors} == {torch.float32, torch.int32}
    per_value = sum(t.nbytes for t in tensors) / layer.nnz
    assert per_value < 24.5
    assert per_value * layer.nnz < 0.21 * 12 * dense.weight.numel()


def test_compile_and_export():
    _, mask, layer = subject()
    model = nn.Sequential(layer, nn.ReLU(), subject(inputs=OUTPUTS, outputs=5)[2])
    x = torch.randn(16, INPUTS)
    expected = model(x)
    program = torch.export.export(model, (x,))
    assert torch.equal(program.module()(x), expected)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), expected)
    compiled(x).square().sum().backward()
    grad = layer.values.grad.clone()
    layer.values.grad = None
    model(x).square().sum().backward()
    assert torch.equal(layer.values.grad, grad)
    layer.move(mask.flatten().roll(17).view_as(mask))
    assert torch.equal(compiled(x), model(x))


def test_operations_keep_their_contracts():
    """Fake kernels, strides and autograd registration, checked by torch itself."""
    _, _, layer = subject(0.3, inputs=41, outputs=23)
    structure = [
        layer.col, layer.starts, layer.transposed_starts, layer.transposed_col,
        layer.permutation,
    ]  # fmt: skip
    x = torch.randn(16, 41, requires_grad=True)
    args = x, layer.values, layer.bias, None, *structure
    torch.library.opcheck(ops._linear, args)
    torch.library.opcheck(ops._structure, (layer.crow, layer.col, 41))


def test_threads_do_not_change_a_bit():
    _, _, layer = subject()
    x = torch.randn(128, INPUTS)
    alone = layer(x)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(layer(x), alone)
        assert_like_dense(layer, x)
    finally:
        torch.set_num_threads(before)


def test_only_what_is_needed_gets_a_gradient():
    for density in (0.3, 1):
        _, _, layer = subject(density, inputs=41, outputs=23)
        for frozen in ("values", "bias", "x"):
            x = torch.randn(16, 41)
            leaves = {"values": layer.values, "bias": layer.bias, "x": x}
            for name, leaf in leaves.items():
                leaf.grad = None
                leaf.requires_grad_(name != frozen)
            layer(x).square().sum().backward()
            without = {name for name, leaf in leaves.items() if leaf.grad is None}
            assert without == {frozen}


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_no_samples_and_no_features(kind, bias):
    """The sum of nothing is the bias, and gradients of nothing are 0."""
    for shape in ((3, 0), (0, 3), (3, 4)):
        dense = nn.Linear(*reversed(shape), bias=bias, dtype=kind)
        mask = torch.zeros(shape, dtype=torch.bool)
        layer = SparseLinear.from_dense(dense, mask)
        for batch in (0, 2):
            x = torch.randn(batch, shape[1], dtype=kind, requires_grad=True)
            y = layer(x)
            expected = torch.zeros(batch, shape[0], dtype=kind)
            if bias:
                expected = expected + dense.bias
            assert torch.equal(y, expected)
            y.sum().backward()
            assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize(
    ("values", "given"), [("float32", "int64"), ("float64", "float32")]
)
def test_types_that_do_not_meet(values, given):
    layer = subject(inputs=41, outputs=23)[2].to(getattr(torch, values))
    x = torch.ones(2, 41, dtype=getattr(torch, given))
    with pytest.raises(
        ValueError, match=rf"values of torch.{values}, got torch.{given}"
    ):
        layer(x)


def test_autocast_takes_the_type_of_the_values():
    x = torch.randn(16, 41)
    for kind in (torch.float64, torch.float32, torch.bfloat16):
        layer = subject(0.3, inputs=41, outputs=23)[2].to(kind)
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x.half())
        assert y.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
        with (
            torch.autocast("cpu", torch.bfloat16),
            pytest.raises(ValueError, match="got"),
        ):
            layer(x.long())


def test_weights_are_matrices_of_numbers():
    for weight in (torch.zeros(3), torch.zeros(3, 4).long()):
        with pytest.raises(ValueError, match="floating point, got"):
            SparseLinear(weight, weight == 0)
    with pytest.raises(ValueError, match=r"takes 41 features, got \(\)"):
        subject(inputs=41, outputs=23)[2](torch.tensor(1.0))
