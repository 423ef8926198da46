"""Sparse convolutions against the masked dense one in float64."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparsekit.execution import conv as ops
from sparsekit.execution.blocked import from_blocked, to_blocked
from sparsekit.execution.conv import SparseConv2d
from sparsekit.execution.kernels import conv as kernels
from sparsekit.execution.kernels import tiles

INPUTS, OUTPUTS, HEIGHT, WIDTH = 5, 11, 7, 5  # primes: no mix-up can hide
KINDS = list(itertools.product((3, 1), (1, 2)))


def subject(side=3, stride=1, density=0.3, bias=True, seed=0):
    """A dense convolution, a mask and the sparse layer."""
    torch.manual_seed(seed)
    dense = nn.Conv2d(INPUTS, OUTPUTS, side, stride, side // 2, bias=bias)
    mask = torch.rand(dense.weight.shape) < density
    return dense, mask, SparseConv2d.from_dense(dense, mask)


def images(batch=17):
    return torch.randn(batch, INPUTS, HEIGHT, WIDTH)


def expected(layer, x, grad):
    """y and the gradients of x, dense weight and bias, in float64."""
    weight = layer.to_dense().double().requires_grad_()
    bias = layer.bias.detach().double().requires_grad_()
    x = x.detach().double().requires_grad_()
    y = F.conv2d(x, weight, bias, layer.stride, layer.dense_shape[2] // 2)
    y.backward(grad.double())
    return y.detach(), x.grad, weight.grad, bias.grad


def assert_near(got, answer):
    assert got.shape == answer.shape
    error = (got.double() - answer).norm()
    assert error <= 1e-6 * answer.norm() + 1e-12, (error, answer.norm())


def assert_like_dense(layer, x):
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    grad = torch.randn(y.shape)
    layer.zero_grad()
    y.backward(grad)
    answer = expected(layer, x, grad)
    assert_near(y.detach(), answer[0])
    assert_near(x.grad, answer[1])
    assert_near(layer.values.grad, answer[2][layer.mask()])
    assert_near(layer.bias.grad, answer[3])


@pytest.mark.parametrize(("side", "stride"), KINDS)
@pytest.mark.parametrize("density", [0, 0.03, 0.3, 1])
@pytest.mark.parametrize("batch", [1, 16, 33])
def test_outputs_and_gradients(side, stride, density, batch):
    """At density .03 some rows, at 0 all rows are empty."""
    *_, layer = subject(side, stride, density)
    assert_like_dense(layer, images(batch))


@pytest.mark.parametrize(("side", "stride"), KINDS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (6, 8)])
def test_small_and_even_images(side, stride, size):
    *_, layer = subject(side, stride)
    assert_like_dense(layer, torch.randn(3, INPUTS, *size))


@pytest.mark.parametrize(("side", "stride"), KINDS)
def test_many_channels_in_several_blocks(side, stride):
    torch.manual_seed(0)
    dense = nn.Conv2d(67, 71, side, stride, side // 2)
    layer = SparseConv2d.from_dense(dense, torch.rand(dense.weight.shape) < 0.2)
    assert layer.starts.shape[1] > 2
    assert layer.transposed_starts.shape[1] > 2
    assert_like_dense(layer, torch.randn(3, 67, HEIGHT, WIDTH))


@pytest.mark.parametrize(("side", "stride"), KINDS)
def test_narrow_registers(monkeypatch, side, stride):
    """The tiles of a machine with AVX2 or NEON."""
    monkeypatch.setattr(tiles, "VECTORS", 4)
    tiles.pieces.cache_clear()
    *_, layer = subject(side, stride)
    assert_like_dense(layer, images())
    tiles.pieces.cache_clear()


def test_no_images():
    *_, layer = subject()
    x = images(0).requires_grad_()
    layer(x).sum().backward()
    assert layer(x).shape == (0, OUTPUTS, HEIGHT, WIDTH)
    assert x.grad.shape == x.shape
    assert not layer.values.grad.any()


def test_strides_of_the_input_do_not_matter():
    *_, layer = subject()
    x = images()
    y = layer(x)
    assert torch.equal(layer(x.to(memory_format=torch.channels_last)), y)
    wide = torch.randn(17, INPUTS, HEIGHT, 2 * WIDTH)
    wide[..., ::2] = x
    assert torch.equal(layer(wide[..., ::2]), y)
    blocked = to_blocked(x)
    turned = blocked.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(from_blocked(layer(turned), 17), y)


@pytest.mark.parametrize(("side", "stride"), KINDS)
def test_blocked_tensors_keep_their_rules(side, stride):
    """Borders are zero; what lies in lanes without an image changes no gradient."""
    *_, layer = subject(side, stride)
    x = to_blocked(images())
    x[1, :, 1:-1, 1:-1, 1:] = 100.0  # image 16 is the only one in this chunk
    x.requires_grad_()
    y = layer(x)
    grad = torch.randn(17, *from_blocked(y, 17).shape[1:])
    y.backward(to_blocked(grad))
    answer = expected(layer, from_blocked(x, 17), grad)
    assert_near(from_blocked(y.detach(), 17), answer[0])
    assert_near(from_blocked(x.grad, 17), answer[1])
    assert_near(layer.values.grad, answer[2][layer.mask()])
    for tensor in (y.detach(), x.grad):
        inside = torch.zeros_like(tensor)
        inside[:, :, 1:-1, 1:-1] = tensor[:, :, 1:-1, 1:-1]
        assert torch.equal(tensor, inside)
    assert not x.grad[1, ..., 1:].any()


def test_threads_change_nothing():
    torch.manual_seed(0)
    dense = nn.Conv2d(16, 32, 3, padding=1)
    layer = SparseConv2d.from_dense(dense, torch.rand(dense.weight.shape) < 0.3)
    x = torch.randn(33, 16, 32, 32, requires_grad=True)
    results = []
    before = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            y = layer(x)
            grads = torch.autograd.grad(y, [x, layer.values], torch.ones_like(y))
            results.append((y, *grads))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(("side", "stride"), KINDS)
def test_dense_gradient(side, stride):
    *_, layer = subject(side, stride)
    x = images()
    assert layer.probe is None
    layer.watch_dense_gradient()
    y = layer(x)
    grad = torch.randn(y.shape)
    y.backward(grad)
    dense = layer.take_dense_gradient()
    assert_near(dense, expected(layer, x, grad)[2])
    assert layer.take_dense_gradient() is None


@pytest.mark.parametrize(("side", "stride"), KINDS)
def test_residual_and_clip_before_the_store(side, stride):
    """What inference fuses: y = clip(conv(x) + bias + residual)."""
    *_, layer = subject(side, stride)
    x = images()
    y = layer(x).detach()
    residual = torch.randn(y.shape)
    inside, add, out = to_blocked(x), to_blocked(residual), to_blocked(0 * y)
    weights = layer.values.data_ptr(), ops._rows(layer.col, layer.starts)
    bias = layer.bias.data_ptr()
    for place, low, high in ((add.data_ptr(), 0.0, 1.0), (0, -1.0, float("inf"))):
        kernels.forward(
            ops._images(inside), *weights, out.data_ptr(), side**2, stride, bias,
            residual=place, clip=(low, high),
        )  # fmt: skip
        expected = (y + residual if place else y).clip(low, high)
        torch.testing.assert_close(from_blocked(out, 17), expected)


# ---- structure -----------------------------------------------------------------------


@pytest.mark.parametrize(("side", "stride"), KINDS)
def test_from_dense_and_back(side, stride):
    dense, mask, layer = subject(side, stride)
    dense.weight.data *= mask
    back = layer.eval().to_module()
    assert (back.stride, back.padding) == (dense.stride, dense.padding)
    assert not back.training
    assert torch.equal(back.weight, dense.weight)
    assert torch.equal(back.bias, dense.bias)
    assert torch.equal(SparseConv2d.from_dense(dense).mask(), dense.weight != 0)
    with_strings = nn.Conv2d(2, 3, 3, padding="same", bias=False)
    assert SparseConv2d.from_dense(with_strings).to_module().bias is None


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"kernel_size": 5, "padding": 2}, "kernels are 3x3 or 1x1"),
        ({"kernel_size": 3}, "padding is 1 zeros, not \\(0, 0\\)"),
        ({"kernel_size": 1, "padding": 1}, "padding is 0"),
        ({"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}, "reflect"),
        ({"kernel_size": 3, "padding": 1, "stride": 3}, "stride is 1 or 2"),
        ({"kernel_size": 3, "padding": 1, "stride": (1, 2)}, "stride is 1 or 2"),
        ({"kernel_size": 3, "padding": 1, "groups": 2}, "groups 2"),
        ({"kernel_size": 3, "padding": "same", "dilation": 2}, "dilation"),
    ],
)
def test_unsupported(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        SparseConv2d.from_dense(nn.Conv2d(4, 6, **arguments))


def test_wrong_inputs_name_the_layer_and_the_fix():
    dense, mask, layer = subject()
    with pytest.raises(ValueError, match=r"SparseConv2d\(11 x 5.*takes 5 channels"):
        layer(torch.randn(2, 6, 7, 7))
    with pytest.raises(ValueError, match="takes images"):
        layer(torch.randn(5, 7, 7))
    with pytest.raises(ValueError, match="takes images"):
        layer(torch.randn(1, 5, 7, 7, 15))
    with pytest.raises(ValueError, match=r"got torch.float64.*\.float\(\)"):
        layer(torch.randn(2, 5, 7, 7).double())
    with pytest.raises(ValueError, match=r"on meta.*\.cpu\(\)"):
        layer(torch.randn(2, 5, 7, 7, device="meta"))
    with pytest.raises(ValueError, match="its values are"):
        copy.deepcopy(layer).double()(torch.randn(2, 5, 7, 7))
    with pytest.raises(ValueError, match=r"call \.float\(\)"):
        SparseConv2d.from_dense(dense.double(), mask)
    with pytest.raises(ValueError, match="3x3 and 1x1 kernels"):
        SparseConv2d(torch.ones(2, 2, 3, 1), torch.ones(2, 2, 3, 1) > 0)


@pytest.mark.parametrize(("side", "stride"), KINDS)
def test_move(side, stride):
    """To as many weights, to fewer, to none, to all of them."""
    dense, mask, layer = subject(side, stride)
    order = torch.randperm(mask.numel())
    for new in (
        mask.flatten()[order].view_as(mask),
        torch.rand(mask.shape) < 0.1,
        torch.zeros_like(mask),
        torch.ones_like(mask),
    ):
        before = layer.to_dense()
        layer.move(new)
        assert torch.equal(layer.to_dense(), before * new)
        assert torch.equal(layer.mask(), new)
        with torch.no_grad():
            layer.values.copy_(dense.weight[new])
        assert_like_dense(layer, images())


def test_another_number_of_weights_while_an_old_loss_lives():
    """Losses are often kept; the new gradient has the new length all the same."""
    *_, mask, layer = subject()
    losses = [layer(images()).sum()]
    layer.move(torch.rand(mask.shape) < 0.5)
    assert_like_dense(layer, images())
    *_, other = subject(density=0.7)
    losses.append(layer(images()).sum())
    layer.load_state_dict(other.state_dict())
    assert_like_dense(layer, images())
    assert all(loss.isfinite() for loss in losses)


def test_training_state_is_small():
    """24 bytes a weight with Adam's moments, and what little finds the rows."""
    torch.manual_seed(0)
    dense = nn.Conv2d(256, 256, 3, padding=1, bias=False)
    for density in (0.25, 0.05):
        layer = SparseConv2d.from_dense(dense, torch.rand(dense.weight.shape) < density)
        tensors = [*layer.parameters(), *layer.buffers()]
        stored = sum(t.numel() * t.element_size() for t in tensors)
        assert stored + 8 * layer.nnz <= 25 * layer.nnz
        assert stored + 8 * layer.nnz <= 2.1 * density * 12 * dense.weight.numel()


# ---- beside the rest of torch --------------------------------------------------------


def test_deepcopy_and_state_dict(tmp_path):
    *_, layer = subject()
    *_, other = subject(density=0.6, seed=1)
    x = images()
    twin = copy.deepcopy(layer)
    assert set(layer.state_dict()) == {"values", "crow", "col", "bias"}
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    answer = layer(x)
    assert torch.equal(twin(x), answer)
    assert torch.equal(other(x), answer)
    with torch.no_grad():
        twin.values.zero_()
    assert torch.equal(layer(x), answer)


def test_compile(tmp_path):
    """One graph, training, before and after connections moved."""
    *_, mask, layer = subject()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    fewer = torch.rand(mask.shape) < 0.1
    for new in (None, mask.flatten().roll(7).view_as(mask), fewer):
        if new is not None:
            layer.move(new)
        assert_like_dense(compiled, images())


def test_compile_before_the_structure_is_built():
    *_, layer = subject(density=1)
    assert_like_dense(
        torch.compile(layer, backend="aot_eager", fullgraph=True), images()
    )


def test_export():
    *_, layer = subject()
    x = images()
    program = torch.export.export(layer, (x,))
    assert torch.equal(program.module()(x), layer(x))


def test_both_ways_to_call_the_kernels_agree():
    """Plain calls go past torch's dispatcher; watched ones must not."""
    *_, layer = subject()
    x = images().requires_grad_()

    def gradients():
        y = layer(x)
        return [y, *torch.autograd.grad(y, [x, *layer.parameters()], y.detach())]

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function.name())
            return function(*args, **(kwargs or {}))

    seen = []
    with Names():
        watched = gradients()
    assert {
        "sparsekit::conv",
        "sparsekit::conv_input_gradient",
        "sparsekit::conv_weight_gradient",
    } <= set(seen)
    for one, other in zip(gradients(), watched, strict=True):
        assert torch.equal(one, other)


def test_second_derivatives_are_refused():
    *_, layer = subject()
    x = images().requires_grad_()
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        grad.sum().backward()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_training_like_masked_dense(optimizer):
    dense, mask, layer = subject(density=0.4)
    dense.weight.data *= mask
    target = torch.randn(13, OUTPUTS, HEIGHT, WIDTH)
    x = images(13)
    ours, theirs = (
        optimizer(m.parameters(), lr=0.01, weight_decay=0.1) for m in (layer, dense)
    )
    for _ in range(5):
        for module, steps in ((layer, ours), (dense, theirs)):
            steps.zero_grad()
            F.mse_loss(module(x), target).backward()
            steps.step()
            dense.weight.data *= mask
    torch.testing.assert_close(layer.to_dense(), dense.weight.data)
    torch.testing.assert_close(layer.bias, dense.bias)


@pytest.mark.parametrize(("side", "stride"), KINDS)
def test_operations_are_registered_rightly(side, stride):
    *_, layer = subject(side, stride)
    x = to_blocked(images()).requires_grad_()
    buffers = [
        layer.col, layer.starts, layer.transposed_col, layer.transposed_starts,
        layer.permutation,
    ]  # fmt: skip
    arguments = (x, layer.values, layer.bias, None, *buffers, side**2, stride)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(ops._conv, arguments, test_utils=tests)
    structure = (layer.crow, layer.col, side**2, INPUTS, stride)
    torch.library.opcheck(ops._structure, structure, test_utils=tests)
    grad = layer(x).detach()
    backward = (grad, layer.values.detach(), *buffers[2:], HEIGHT, WIDTH, side**2)
    torch.library.opcheck(ops._input_gradient, (*backward, stride), test_utils=tests)
    weight = (x.detach(), grad, *buffers[:2], side**2, stride)
    torch.library.opcheck(ops._weight_gradient, weight, test_utils=tests)
