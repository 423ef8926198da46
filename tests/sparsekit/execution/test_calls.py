"""What a call is said to do is what it does to a tensor."""

import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparsekit.execution import blocked
from sparsekit.execution.calls import in_place, is_global_mean, keeps_pixels, window

Call = Callable[[Tensor], Tensor] | nn.Module


def traced(call: Call) -> tuple[fx.Node, nn.Module | None, fx.GraphModule]:
    """The last call of a graph, and its module."""
    graph = fx.symbolic_trace(
        nn.Sequential(call) if isinstance(call, nn.Module) else call
    )
    node = [n for n in graph.graph.nodes if n.op != "output"][-1]
    module = call if node.op == "call_module" else None
    return node, module, graph


def images(height: int = 9, width: int = 9) -> Tensor:
    return torch.randn(3, 2, height, width, generator=torch.Generator().manual_seed(0))


MEANS: dict[str, Call] = {
    "a module": nn.AdaptiveAvgPool2d(1),
    "a module of pairs": nn.AdaptiveAvgPool2d((1, 1)),
    "a module of four pixels": nn.AdaptiveAvgPool2d(2),
    "a module of a row": nn.AdaptiveAvgPool2d((1, 2)),
    "a function": lambda x: F.adaptive_avg_pool2d(x, 1),
    "a function of a pair": lambda x: F.adaptive_avg_pool2d(x, (1, 1)),
    "a function of a list": lambda x: F.adaptive_avg_pool2d(x, [1, 1]),
    "a function of four": lambda x: F.adaptive_avg_pool2d(x, (2, 2)),
    "a method": lambda x: x.mean((2, 3)),
    "a method of a list": lambda x: x.mean([3, 2]),
    "from behind": lambda x: x.mean((-1, -2)),
    "by name": lambda x: x.mean(dim=(2, -1)),
    "torch.mean": lambda x: torch.mean(x, (2, 3)),
    "with pixels": lambda x: x.mean((2, 3), True),
    "with pixels, by name": lambda x: torch.mean(x, dim=[2, 3], keepdim=True),
    "without pixels, by name": lambda x: torch.mean(x, dim=[2, 3], keepdim=False),
    "of everything": lambda x: x.mean(),
    "of channels": lambda x: x.mean((1, 2)),
    "of columns": lambda x: x.mean((3,)),
    "of one dimension": lambda x: x.mean(2),
    "of three": lambda x: x.mean((1, 2, 3)),
    "a sum": lambda x: x.sum((2, 3)),
    "a maximum": lambda x: x.amax((2, 3)),
    "another module": nn.AvgPool2d(9),
}
NOT_SAID = {"another module"}  # a mean, but of a window


@pytest.mark.parametrize("name", MEANS)
def test_global_means(name: str) -> None:
    call, x = MEANS[name], images()
    node, module, graph = traced(call)
    result, mean = graph(x), x.mean((2, 3))
    pixels = result.dim() == 4
    same = result.numel() == mean.numel() and torch.allclose(
        result.flatten(), mean.flatten()
    )
    assert is_global_mean(node, module) is (same and name not in NOT_SAID)
    if same:
        assert keeps_pixels(node) is pixels


def test_a_mean_in_another_type_is_no_global_mean() -> None:
    node, module, _ = traced(lambda x: x.mean((2, 3), dtype=torch.float64))
    assert is_global_mean(node, module) is False


WINDOWS: dict[str, tuple[Call, bool]] = {  # and whether it is a window as described
    "maximum": (nn.MaxPool2d(2), True),
    "maximum, padded": (nn.MaxPool2d(3, 2, 1), True),
    "maximum, step 1": (nn.MaxPool2d((3, 3), stride=1), True),
    "maximum, dilated": (nn.MaxPool2d(2, 1, dilation=2), False),
    "maximum, dilation 1 twice": (nn.MaxPool2d(2, 1, dilation=(1, 1)), True),
    "maximum, oblong": (nn.MaxPool2d((2, 3)), False),
    "maximum, oblong step": (nn.MaxPool2d(3, (1, 2)), False),
    "maximum, oblong padding": (nn.MaxPool2d(3, 2, (1, 0)), False),
    "maximum, past the end": (nn.MaxPool2d(2, ceil_mode=True), False),
    "mean": (nn.AvgPool2d(3), True),
    "mean, step 2": (nn.AvgPool2d(3, 2), True),
    "mean, padded": (nn.AvgPool2d(3, 2, 1), False),
    "mean, past the end": (nn.AvgPool2d(2, ceil_mode=True), False),
    "mean, pads not counted": (nn.AvgPool2d(3, 2, 0, count_include_pad=False), True),
    "mean, divided by 5": (nn.AvgPool2d(3, divisor_override=5), False),
    "F maximum": (lambda x: F.max_pool2d(x, 2), True),
    "F maximum, all by place": (lambda x: F.max_pool2d(x, 3, 2, 1), True),
    "F maximum, by name": (lambda x: F.max_pool2d(x, kernel_size=3, padding=1), True),
    "F maximum, dilated": (lambda x: F.max_pool2d(x, 2, 2, 0, 2), False),
    "torch maximum": (lambda x: torch.max_pool2d(x, (3, 3), (2, 2)), True),
    "F mean": (lambda x: F.avg_pool2d(x, 3, stride=2), True),
    "F mean, list": (lambda x: F.avg_pool2d(x, [2, 2]), True),
    "F mean, padded": (lambda x: F.avg_pool2d(x, 3, 2, 1), False),
    "F mean, divided by 5": (lambda x: F.avg_pool2d(x, 3, divisor_override=5), False),
    "F mean, past the end": (lambda x: F.avg_pool2d(x, 2, 2, 0, True), False),
    "F mean, all by place": (lambda x: F.avg_pool2d(x, 3, 2, 0, False, False), True),
    "F maximum, past the end": (lambda x: F.max_pool2d(x, 2, 1, 0, 1, True), False),
    "no window": (lambda x: F.relu(x), False),
    "a module that is none": (nn.ReLU(), False),
    "adaptive": (nn.AdaptiveMaxPool2d(3), False),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name: str) -> None:
    call, described = WINDOWS[name]
    node, module, graph = traced(call)
    found = window(node, module)
    assert (found is not None) is described
    if found is not None:
        function, *options = found
        x = images()
        ours = blocked.from_blocked(function(blocked.to_blocked(x), *options), len(x))
        torch.testing.assert_close(ours, graph(x))


CHANGES: dict[str, Call] = {
    "relu": lambda x: F.relu(x),
    "relu_": lambda x: F.relu_(x),
    "relu, inplace": lambda x: F.relu(x, inplace=True),
    "relu, not inplace": lambda x: F.relu(x, inplace=False),
    "method": lambda x: x.relu(),
    "method_": lambda x: x.mul_(2.0),
    "plus": lambda x: x + 1,
    "minus": lambda x: operator.neg(x),
    "module": nn.ReLU(),
    "module, inplace": nn.ReLU(inplace=True),
    "module without the word": nn.Softmax(1),
    "dunder": lambda x: x.__neg__(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_in_place(name: str) -> None:
    call, x = CHANGES[name], images()
    node, module, graph = traced(call)
    before = x.clone()
    graph(x)
    modules = {str(node.target): module} if module is not None else {}
    assert in_place(node, modules) is not torch.equal(x, before)


def test_what_has_no_first_tensor_changes_none() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    for node in (
        x,
        graph.call_function(torch.zeros, (2,)),
        graph.get_attr("weight"),
        graph.output(x),
    ):
        assert in_place(node, {}) is False
    item = graph.call_function(operator.setitem, (x, 0, 1.0))
    assert in_place(item, {}) is True
