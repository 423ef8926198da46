"""Traced steps, computed one after the other by torch, give what the network gives."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekit.execution.conv import SparseConv2d
from sparsekit.execution.linear import SparseLinear
from sparsekit.execution.tracing import Layer, trace


def computed(steps: list[Layer], x: Tensor) -> Tensor:
    """By the definition of each step, in float64."""
    results = {"input": x.double()}
    for step in steps:
        entry = step.entry
        inputs = [results[name] for name in entry["inputs"]]
        first = inputs[0]
        match entry["op"]:
            case "conv":
                top, left, bottom, right = entry["padding"]
                first = F.pad(first, (left, right, top, bottom))
                stride, groups = tuple(entry["stride"]), entry["groups"]
                y = F.conv2d(first, step.weight, step.bias, stride, groups=groups)
            case "linear":
                y = F.linear(first, step.weight, step.bias)
            case "add":
                y = inputs[0] + inputs[1]
            case "clip":
                y = first.clamp(entry["low"], entry["high"])
            case "average":
                y = first.mean((2, 3), keepdim=True)
            case "average_pool":
                y = F.avg_pool2d(first, entry["kernel"], entry["stride"])
            case "max_pool":
                options = entry["stride"], entry["padding"]
                y = F.max_pool2d(first, entry["kernel"], *options)
            case "flatten":
                y = first.flatten(1)
        results[step.name] = y
    return y


class Of(nn.Module):
    """A network whose forward pass is a function of it and the input."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **modules):
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, and batch norms that have seen data."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=draws)
            elif tensor.is_floating_point():
                tensor.normal_(generator=draws)
    return model.eval()


def conv(*args, **kwargs) -> nn.Conv2d:
    return nn.Conv2d(4, *args, **kwargs)


IMAGES, ROWS = (4, 7, 8), (6,)
KNOWN: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {  # and its steps
    "same": (conv(3, (3, 4), padding="same"), IMAGES, "conv"),
    "same, even": (conv(3, (2, 4), padding="same"), IMAGES, "conv"),
    "valid": (conv(3, 3, padding="valid", stride=(1, 2)), IMAGES, "conv"),
    "padded": (conv(3, (3, 5), padding=(1, 2), bias=False), IMAGES, "conv"),
    "depthwise": (conv(4, 3, groups=4), IMAGES, "conv"),
    "padded before": (
        nn.Sequential(nn.ZeroPad2d((0, 1, 2, 1)), conv(3, 3, padding=1)), IMAGES, "conv"
    ),
    "padded twice": (
        nn.Sequential(nn.ZeroPad2d((0, 1, 0, 0)), nn.ZeroPad2d((1, 1, 0, 2)),
                      conv(2, 3)),
        IMAGES, "conv",
    ),
    "F.pad": (Of(lambda m, x: m.c(F.pad(x, (1, 0))), c=conv(2, 3)), IMAGES, "conv"),
    "F.pad of 0": (
        Of(lambda m, x: m.c(F.pad(x, (0, 2, 1, 1), "constant", 0.0)), c=conv(2, 3)),
        IMAGES, "conv",
    ),
    "norm behind": (nn.Sequential(conv(3, 3), nn.BatchNorm2d(3)), IMAGES, "conv"),
    "norm behind, no bias": (
        nn.Sequential(conv(3, 3, bias=False), nn.BatchNorm2d(3)), IMAGES, "conv"
    ),
    "norm without weights": (
        nn.Sequential(conv(3, 3), nn.BatchNorm2d(3, affine=False)), IMAGES, "conv"
    ),
    "two norms": (
        nn.Sequential(conv(3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)), IMAGES, "conv"
    ),
    "norm in front": (nn.Sequential(nn.BatchNorm2d(4)), IMAGES, "conv"),
    "norm of a sum": (
        Of(lambda m, x: m.n(m.c(x) + x), c=conv(4, 1), n=nn.BatchNorm2d(4)),
        IMAGES, "conv add conv",
    ),
    "norm of what others read": (
        Of(lambda m, x: (lambda y: m.n(y) + y)(m.c(x)),
           c=conv(3, 1), n=nn.BatchNorm2d(3)),
        IMAGES, "conv conv add",
    ),
    "norm of an earlier step": (
        Of(lambda m, x: (lambda y, z: m.n(y) + z)(m.c(x), m.d(x)),
           c=conv(3, 1), d=conv(3, 1), n=nn.BatchNorm2d(3)),
        IMAGES, "conv conv conv add",
    ),
    "norm behind relu": (
        nn.Sequential(conv(3, 1), nn.ReLU(), nn.BatchNorm2d(3)),
        IMAGES, "conv clip conv",
    ),
    "rows": (nn.Linear(6, 3), ROWS, "linear"),
    "rows, no bias, norm": (
        nn.Sequential(nn.Linear(6, 3, bias=False), nn.BatchNorm1d(3)), ROWS, "linear"
    ),
    "relu6": (nn.Sequential(nn.ReLU6()), ROWS, "clip"),
    "hardtanh": (nn.Sequential(nn.Hardtanh(-0.5, 0.75)), ROWS, "clip"),
    "F.relu": (Of(lambda m, x: F.relu(x)), ROWS, "clip"),
    "F.relu6": (Of(lambda m, x: F.relu6(x)), ROWS, "clip"),
    "relu method": (Of(lambda m, x: x.relu()), ROWS, "clip"),
    "nothing between": (
        nn.Sequential(nn.Identity(), nn.ReLU(), nn.Dropout(), nn.Dropout2d()), IMAGES,
        "clip",
    ),
    "sum": (Of(lambda m, x: x + F.relu(x)), ROWS, "clip add"),
    "torch.add": (Of(lambda m, x: torch.add(x, F.relu(x))), ROWS, "clip add"),
    "add method": (Of(lambda m, x: x.add(F.relu(x))), ROWS, "clip add"),
    "maximum": (nn.MaxPool2d(3, 2, 1), IMAGES, "max_pool"),
    "maximum of pairs": (nn.MaxPool2d((2, 3), (1, 2), (0, 1)), IMAGES, "max_pool"),
    "maximum, dilation 1": (nn.MaxPool2d(2, dilation=(1, 1)), IMAGES, "max_pool"),
    "mean": (nn.AvgPool2d(2), IMAGES, "average_pool"),
    "mean of pairs": (nn.AvgPool2d((2, 3), 1), IMAGES, "average_pool"),
    "flatten": (nn.Sequential(nn.ReLU(), nn.Flatten()), IMAGES, "clip flatten"),
    "view": (Of(lambda m, x: F.relu(x).view(x.size(0), -1)), IMAGES, "clip flatten"),
    "rows flattened": (nn.Sequential(nn.Flatten(), nn.ReLU()), ROWS, "clip"),
    "adaptive": (nn.Sequential(nn.AdaptiveAvgPool2d(1)), IMAGES, "average"),
    "F.adaptive": (Of(lambda m, x: F.adaptive_avg_pool2d(x, 1)), IMAGES, "average"),
    "mean of pixels": (Of(lambda m, x: x.mean((2, 3), True)), IMAGES, "average"),
    "mean by name": (
        Of(lambda m, x: torch.mean(x, dim=(-1, -2), keepdim=True)), IMAGES, "average"
    ),
    "mean to rows": (Of(lambda m, x: x.mean([3, 2])), IMAGES, "average flatten"),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_steps_compute_what_the_network_computes(name: str) -> None:
    model, shape, ops = KNOWN[name]
    model = settled(model)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    steps = trace(model, x)
    assert " ".join(step.entry["op"] for step in steps) == ops
    assert len({step.name for step in steps}) == len(steps)
    with torch.no_grad():
        expected = model.double()(x.double())
        torch.testing.assert_close(computed(steps, x), expected, rtol=1e-5, atol=1e-5)
    model.float()


def test_masks_are_zeros_also_behind_a_norm() -> None:
    model = settled(nn.Sequential(conv(3, 3), nn.BatchNorm2d(3), nn.Flatten()))
    x = torch.randn(2, *IMAGES)
    mask = torch.rand(3, 4, 3, 3) < 0.3
    steps = trace(model, x, {"0.weight": mask})
    assert torch.equal(steps[0].weight != 0, mask)
    with torch.no_grad():
        model[0].weight.mul_(mask)
        expected = model.double()(x.double())
        torch.testing.assert_close(computed(steps, x), expected, rtol=1e-5, atol=1e-5)


def test_one_layer_by_itself_has_a_mask_too() -> None:
    layer = settled(nn.Linear(6, 3))
    mask = torch.rand(3, 6) < 0.5
    (step,) = trace(layer, torch.randn(2, 6), {"weight": mask})
    assert torch.equal(step.weight, layer.weight.double() * mask)
    assert torch.equal(step.bias, layer.bias.double())
    sparse = SparseLinear.from_dense(layer, mask)
    (again,) = trace(sparse, torch.randn(2, 6))
    assert torch.equal(again.weight, step.weight)
    assert not step.weight.requires_grad


def test_sparse_layers_are_steps() -> None:
    dense = settled(nn.Conv2d(4, 3, 3, padding=1))
    mask = torch.rand(3, 4, 3, 3) < 0.3
    model = nn.Sequential(SparseConv2d.from_dense(dense, mask), nn.ReLU()).eval()
    steps = trace(model, torch.randn(2, *IMAGES))
    assert torch.equal(steps[0].weight, dense.weight.double() * mask)
    assert steps[0].entry["padding"] == [1, 1, 1, 1]


def test_the_model_is_as_before() -> None:
    model = settled(nn.Sequential(conv(3, 3), nn.BatchNorm2d(3)))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    steps = trace(
        model, torch.randn(2, *IMAGES), {"0.weight": torch.ones(3, 4, 3, 3) > 2}
    )
    steps[0].weight.fill_(7)
    steps[0].bias.fill_(7)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


REFUSED: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "dilation": (conv(3, 3, dilation=2), IMAGES, "dilation is 1"),
    "dilation across": (conv(3, 3, dilation=(1, 2)), IMAGES, "dilation is 1"),
    "groups": (conv(4, 3, groups=2), IMAGES, "groups are 1 or one a channel"),
    "more filters": (conv(8, 3, groups=4), IMAGES, "groups are 1 or one a channel"),
    "circular": (
        conv(3, 3, padding=1, padding_mode="circular"), IMAGES, "zeros, not circular"
    ),
    "rows of rows": (nn.Linear(8, 3), IMAGES, r"takes \[N, features\]"),
    "no statistics": (
        nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False)), IMAGES,
        "keeps no statistics",
    ),
    "norm of rows": (nn.BatchNorm1d(6), ROWS, "of features follows a linear layer"),
    "a number": (Of(lambda m, x: x + 1), ROWS, "is no tensor"),
    "an option of add": (
        Of(lambda m, x: torch.add(x, x, alpha=2)), ROWS, "two tensors and no options"
    ),
    "broadcast": (
        Of(lambda m, x: x + x.mean((2, 3), True)), IMAGES, "addition has equal shapes"
    ),
    "part of the dimensions": (nn.Sequential(nn.Flatten(2)), IMAGES, "no flattening"),
    "the batch too": (
        Of(lambda m, x: torch.flatten(x)), IMAGES, "is no flattening"
    ),
    "half": (Of(lambda m, x: x.view(-1, 112)), IMAGES, "no flattening"),
    "four pixels": (nn.AdaptiveAvgPool2d(2), IMAGES, "that of all pixels"),
    "mean of rows": (Of(lambda m, x: x.mean(1)), ROWS, "that of all pixels"),
    "mean of channels": (
        Of(lambda m, x: x.mean((1, 2))), (7, 7, 7), "over dimensions 2 and 3"
    ),
    "ceil": (nn.MaxPool2d(2, ceil_mode=True), IMAGES, "no ceil_mode"),
    "ceil of a mean": (nn.AvgPool2d(2, ceil_mode=True), IMAGES, "no ceil_mode"),
    "dilated maximum": (nn.MaxPool2d(2, dilation=2), IMAGES, "no dilation"),
    "padded mean": (nn.AvgPool2d(2, padding=1), IMAGES, "no padding and no divisor"),
    "divisor": (nn.AvgPool2d(2, divisor_override=3), IMAGES, "no padding and no div"),
    "negative": (
        nn.Sequential(nn.ZeroPad2d((0, -1, 0, 0)), conv(3, 3)), IMAGES, "zeros around"
    ),
    "channels": (
        Of(lambda m, x: m.c(F.pad(x, (0, 0, 0, 0, 1, 0))), c=nn.Conv2d(5, 3, 3)),
        IMAGES,
        "is zeros around the images",
    ),
    "mirrored": (
        Of(lambda m, x: m.c(F.pad(x, (1, 1, 1, 1), "reflect")), c=conv(3, 3)), IMAGES,
        "is zeros around the images",
    ),
    "ones": (
        Of(lambda m, x: m.c(F.pad(x, (1, 1), value=1.0)), c=conv(3, 3)), IMAGES,
        "is zeros around the images",
    ),
    "padded and pooled": (
        nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(2)), IMAGES, "before a conv"
    ),
    "padded at the end": (nn.Sequential(conv(3, 3), nn.ZeroPad2d(1)), IMAGES, "before"),
    "module": (nn.Sequential(nn.GELU()), ROWS, r"'0' \(_0\): GELU has no step"),
    "function": (Of(lambda m, x: torch.sin(x)), ROWS, "no step; use a module"),
    "method": (Of(lambda m, x: x.exp()), ROWS, "no step; use a module"),
    "two results": (Of(lambda m, x: (F.relu(x), x)), ROWS, "one tensor as its result"),
    "an earlier result": (
        Of(lambda m, x: (F.relu(x), F.relu6(x))[0]), ROWS, "that of the last step"
    ),
    "nothing": (nn.Sequential(nn.Identity()), ROWS, "that of the last step"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    model, shape, why = REFUSED[name]
    with pytest.raises(ValueError, match=why):
        trace(settled(model), torch.randn(2, *shape))


def test_masks_that_fit_nothing() -> None:
    x = torch.randn(2, 6)
    masks = {"1.weight": torch.ones(3, 6) > 0}
    model = nn.Sequential(nn.Linear(6, 3)).eval()
    with pytest.raises(ValueError, match=r"no weight in the model: \['1\.weight'\]"):
        trace(model, x, masks)
    with pytest.raises(ValueError, match="it has a mask, but is no layer"):
        trace(nn.Sequential(nn.Linear(6, 3), nn.ReLU()).eval(), x, masks)
    norms = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)).eval()
    with pytest.raises(ValueError, match="it has a mask, but is no layer"):
        trace(norms, x, {"1.weight": torch.ones(3) > 0})


def test_a_mask_changes_no_weight_of_a_model_in_float64() -> None:
    """There a layer's weight is not a copy."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.Flatten(), nn.Linear(12, 3))
    model[2].double()
    model[1].register_forward_hook(lambda module, args, y: y.double())
    before = model[2].weight.detach().clone()
    masks = {"2.weight": torch.rand(3, 12) < 0.5}
    steps = trace(model.eval(), torch.randn(2, 3, 2, 2), masks)
    assert torch.equal(steps[-1].weight, before * masks["2.weight"])
    assert torch.equal(model[2].weight, before)


def test_steps_hold_no_graph() -> None:
    for step in trace(settled(nn.Sequential(conv(3, 3))), torch.randn(2, *IMAGES)):
        assert not step.weight.requires_grad
        assert not step.bias.requires_grad
        assert step.weight.dtype == step.bias.dtype == torch.float64


def test_a_network_of_two_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"placeholder 'y' \(y\): .* has one input"):
        trace(Two().eval(), torch.randn(2, 6))


def test_what_is_refused_is_called_by_its_kind() -> None:
    for call, named in (
        (nn.Sequential(nn.GELU()), "cannot export module '0' "),
        (Of(lambda m, x: torch.sin(x)), "cannot export call function '<built-in"),
        (Of(lambda m, x: x.exp()), "cannot export call method 'exp' "),
    ):
        with pytest.raises(ValueError, match=named):
            trace(settled(call), torch.randn(2, 6))


def test_bounds_of_activations() -> None:
    for module, low, high in (
        (nn.ReLU(), 0.0, None), (nn.ReLU6(), 0.0, 6.0), (nn.Hardtanh(-2, 3), -2.0, 3.0),
        (Of(lambda m, x: F.relu6(x)), 0.0, 6.0), (Of(lambda m, x: x.relu()), 0.0, None),
    ):  # fmt: skip
        (step,) = trace(nn.Sequential(module).eval(), torch.randn(2, 6))
        assert (step.entry["low"], step.entry["high"]) == (low, high)
