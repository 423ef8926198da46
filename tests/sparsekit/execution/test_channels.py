"""What is known of a tensor's channels is what they are, whatever the tensor is."""

import operator
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparsekit.execution import calls, channels
from sparsekit.execution.channels import NAN, Value

CONSTANTS = torch.tensor([NAN, 0.0, 1.5, -2.0, NAN, 3.0], dtype=torch.float64)
IMAGE = Value(torch.arange(6), CONSTANTS, image=True)
ROW = replace(IMAGE, image=False)


def like(value: Value, seed: int = 0) -> Tensor:
    """[4, 6, 5, 5] or [4, 6]: channels that vary, and constant ones."""
    draws = torch.Generator().manual_seed(seed)
    shape = (4, 6, 5, 5) if value.image else (4, 6)
    x = torch.randn(shape, generator=draws, dtype=torch.float64) + 0.5
    known = value.constant.view(1, 6, *[1] * (x.dim() - 2))
    return torch.where(known.isnan(), x, known)


def of(call: Callable[[Tensor], Tensor], value: Value) -> Value | None:
    node = [n for n in fx.symbolic_trace(call).graph.nodes if n.op != "output"][-1]
    return channels.of_function(node, value)


def require_true(found: Value, result: Tensor) -> None:
    """Each channel of a result has the constant that was foretold."""
    assert found.image is (result.dim() == 4)
    rows = result.transpose(0, 1).reshape(result.shape[1], -1)
    assert len(found.constant) == len(rows)
    for constant, row in zip(found.constant, rows, strict=True):
        if not constant.isnan():
            torch.testing.assert_close(row, constant.double().expand_as(row))


def constant_channels(result: Tensor) -> Tensor:
    rows = result.transpose(0, 1).reshape(result.shape[1], -1)
    return (rows == rows[:, :1]).all(1)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu method": lambda x: x.relu(),
    "relu6": F.relu6,
    "leaky": lambda x: F.leaky_relu(x, 0.3),
    "elu": lambda x: F.elu(x, alpha=0.5),
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "tanh method": lambda x: x.tanh(),
    "clamp": lambda x: torch.clamp(x, -1, 1),
    "clamp by name": lambda x: x.clamp(min=0.25),
    "minus": operator.neg,
    "absolute": lambda x: x.abs(),
    "softplus": F.softplus,
    "contiguous": lambda x: x.contiguous(),
    "no dropout": lambda x: F.dropout(x, 0.5, training=False),
}


@pytest.mark.parametrize("value", [IMAGE, ROW], ids=["images", "rows"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_one_tensor(name: str, value: Value) -> None:
    """Nothing that is constant is missed either."""
    function = FUNCTIONS[name]
    found, x = of(lambda x: function(x), value), like(value)
    result = function(x)
    require_true(found, result)
    was = constant_channels(x)
    assert torch.equal(~found.constant.isnan()[was], torch.ones(int(was.sum())).bool())
    assert torch.equal(found.units, value.units)
    assert found.spread == ""


POOLS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {  # and: beside zeros?
    "maximum": (lambda x: F.max_pool2d(x, 2), False),
    "maximum, padded": (lambda x: F.max_pool2d(x, 3, padding=1), False),
    "mean": (lambda x: F.avg_pool2d(x, 2), False),
    "mean, step": (lambda x: F.avg_pool2d(x, 2, 1), False),
    "mean, padded": (lambda x: F.avg_pool2d(x, 3, 1, 1), True),
    "mean, padded by name": (lambda x: F.avg_pool2d(x, 3, padding=1), True),
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x, 2), False),
    "larger": (lambda x: F.interpolate(x, scale_factor=2), False),
    "global": (lambda x: x.mean((2, 3), True), False),
    "global, from behind": (lambda x: x.mean((-1, -2), keepdim=True), False),
    "global row": (lambda x: torch.mean(x, [2, 3]), False),
}


@pytest.mark.parametrize("name", POOLS)
def test_pooling(name: str) -> None:
    function, beside_zeros = POOLS[name]
    found, result = of(function, IMAGE), function(like(IMAGE))
    require_true(found, result)
    kept = CONSTANTS == 0 if beside_zeros else ~CONSTANTS.isnan()
    assert torch.equal(~found.constant.isnan(), kept)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.dropout(x, 0.5),
        lambda x: F.dropout2d(x, 0.5, training=True),
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
        lambda x: x.mean((1, 2)),
        lambda x: x.mean((2,)),
        lambda x: x.mean(2),
        lambda x: x.sum((2, 3)),
        lambda x: torch.softmax(x, 1),
        lambda x: x.flatten(2),
        lambda x: x.flatten(),
        lambda x: x.view(-1, 6),
        lambda x: x.view(4, -1),
        lambda x: x.reshape(x.size(1), -1),
        lambda x: torch.flatten(x, 0),
    ],
)
def test_what_is_not_known(call: Callable[[Tensor], Tensor]) -> None:
    assert of(call, IMAGE) is None


def test_of_rows_no_pixels_are_pooled() -> None:
    for call in (lambda x: F.max_pool2d(x, 2), lambda x: x.mean((2, 3))):
        assert of(call, ROW) is None
    for module in (nn.MaxPool2d(2), nn.AvgPool2d(2)):
        assert channels.of_module(module, ROW) is None


MODULES: dict[str, nn.Module] = {
    "relu": nn.ReLU(),
    "hardswish": nn.Hardswish(),
    "softsign": nn.Softsign(),
    "identity": nn.Identity(),
    "dropout": nn.Dropout(0.5),
    "maximum": nn.MaxPool2d(2),
    "mean": nn.AvgPool2d(2),
    "mean, padded": nn.AvgPool2d(3, 1, 1),
    "mean, padded twice": nn.AvgPool2d(3, 1, (1, 0)),
    "mean, not padded": nn.AvgPool2d(3, 1, (0, 0)),
    "upsample": nn.Upsample(scale_factor=2),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    module = MODULES[name].eval()
    found, result = channels.of_module(module, IMAGE), module(like(IMAGE))
    require_true(found, result)
    padded = name in ("mean, padded", "mean, padded twice")
    kept = CONSTANTS == 0 if padded else ~CONSTANTS.isnan()
    assert torch.equal(~found.constant.isnan(), kept)


@pytest.mark.parametrize(
    "module",
    [
        nn.Softmax(1), nn.MaxPool2d(2, return_indices=True), nn.Flatten(0),
        nn.Flatten(1, 2), nn.PixelShuffle(2), nn.InstanceNorm2d(6),
    ],
)  # fmt: skip
def test_modules_that_are_not_known(module: nn.Module) -> None:
    assert channels.of_module(module, IMAGE) is None


FLATTENINGS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.flatten(1),
    lambda x: torch.flatten(x, start_dim=1),
    lambda x: x.view(x.size(0), -1),
    lambda x: x.reshape(x.shape[0], -1),
]


@pytest.mark.parametrize("index", range(len(FLATTENINGS)))
def test_flattened_images(index: int) -> None:
    """Each channel stands for its 25 pixels."""
    call = FLATTENINGS[index]
    whole = of(call, IMAGE).of_size(150)
    require_true(whole, call(like(IMAGE)))
    assert torch.equal(whole.units, torch.arange(150) // 25)
    assert int((~whole.constant.isnan()).sum()) == 4 * 25
    assert of(call, IMAGE).of_size(151) is None


def test_flattened_rows_of_tokens() -> None:
    """[N, T, 6] -> [N, 6 T]: all channels come again and again."""
    tokens = torch.stack([like(ROW, seed) for seed in range(3)], dim=1)
    whole = channels.of_module(nn.Flatten(), ROW).of_size(18)
    require_true(whole, tokens.flatten(1))
    assert torch.equal(whole.units, torch.arange(18) % 6)
    again = channels.of_module(nn.Flatten(), channels.of_module(nn.Flatten(), ROW))
    assert again.spread == "tile"


def test_channels_that_are_channels_do_not_change_their_number() -> None:
    assert torch.equal(IMAGE.of_size(6).units, IMAGE.units)
    assert IMAGE.of_size(12) is None
    assert IMAGE.of_size(3) is None


PAIRS: list[Callable[[Tensor, Tensor], Tensor]] = [
    operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub,
    torch.mul, torch.div, lambda x, y: x.add(y), lambda x, y: x.sub(y),
    lambda x, y: x.mul(y), lambda x, y: x.div(y),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(PAIRS)))
def test_pairs(index: int) -> None:
    function = PAIRS[index]
    graph = fx.symbolic_trace(lambda x, y: function(x, y)).graph
    node = [n for n in graph.nodes if n.op != "output"][-1]
    other = torch.tensor([2.0, NAN, 0.0, -2.0, 0.0, 4.0], dtype=torch.float64)
    b = replace(IMAGE, constant=other)
    x, y = like(IMAGE), like(b, seed=1)
    for right, result in ((b, function(x, y)), (2.5, function(x, torch.tensor(2.5)))):
        found = IMAGE.with_constant(channels.of_pair(node, IMAGE, right))
        require_true(found, result)
        known = constant_channels(x)
        if right is b:
            known = known & constant_channels(y)
            if "mul" in str(node.target):  # by zero
                known = constant_channels(result)
        finite = result.isfinite().all(0).all(1).all(1)
        assert not (known & finite & found.constant.isnan()).any()


TARGETS: list[tuple[object, tuple, dict]] = [
    ("relu_", (), {}), ("relu", (), {}), ("__neg__", (), {}),
    (F.relu, (True,), {}), (F.relu, (False,), {}), (F.relu, (), {"inplace": True}),
    (F.relu, (), {"inplace": False}), (F.relu, (), {}), (F.relu_, (), {}),
    (operator.iadd, (1,), {}), (operator.isub, (1,), {}), (operator.imul, (2,), {}),
    (operator.itruediv, (2,), {}), (operator.add, (1,), {}),
    (operator.setitem, (0, 1.0), {}),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(TARGETS)))
def test_changes_in_place(index: int) -> None:
    target, rest, keywords = TARGETS[index]
    graph = fx.Graph()
    call = graph.call_method if isinstance(target, str) else graph.call_function
    node = call(target, (graph.placeholder("x"), *rest), keywords)
    graph.output(node)
    x = like(IMAGE)
    before = x.clone()
    fx.GraphModule({}, graph)(x)
    changed = not torch.equal(x, before)
    assert channels.in_place(node, None) is changed
    if True not in rest:  # fx passes it by name
        assert calls.in_place(node, {}) is changed


@pytest.mark.parametrize("padding", [0, 1, (0, 1), "same", "valid"])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_who_pads_with_zeros(padding: object, kernel: int, mode: str) -> None:
    """An image of ones under a kernel of ones: zeros beside it show at its border."""
    conv = nn.Conv2d(1, 1, kernel, padding=padding, padding_mode=mode, bias=False)
    nn.init.ones_(conv.weight)
    with torch.no_grad():
        shows = bool((conv(torch.ones(1, 1, 5, 5)) < kernel**2).any())
    assert channels.pads_with_zeros(conv) is shows


def test_only_convolutions_pad() -> None:
    assert channels.pads_with_zeros(nn.Linear(2, 2)) is False


# ---- layers --------------------------------------------------------------------------


def sized(name: str) -> nn.Module:
    """A layer of which rows, columns and parameters are zero, in float64."""
    torch.manual_seed(len(name))
    module = (
        {
            "linear": lambda: nn.Linear(6, 8),
            "linear, no bias": lambda: nn.Linear(6, 8, bias=False),
            "point": lambda: nn.Conv2d(6, 8, 1),
            "padded": lambda: nn.Conv2d(6, 8, 3, padding=1),
            "not padded": lambda: nn.Conv2d(6, 8, 3, bias=False),
            "two groups": lambda: nn.Conv2d(6, 8, 1, groups=2),
            "three groups": lambda: nn.Conv2d(6, 9, 3, groups=3, bias=False),
            "depthwise": lambda: nn.Conv2d(6, 6, 3, groups=6),
            "depthwise, padded": lambda: nn.Conv2d(6, 12, 3, padding=1, groups=6),
            "norm": lambda: nn.BatchNorm2d(6),
            "norm of rows": lambda: nn.BatchNorm1d(6),
            "no statistics": lambda: nn.BatchNorm2d(6, track_running_stats=False),
            "not affine": lambda: nn.BatchNorm2d(6, affine=False),
            "neither": lambda: nn.BatchNorm1d(
                6, affine=False, track_running_stats=False
            ),
        }[name]()
        .double()
        .eval()
    )
    with torch.no_grad():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight[1] = 0
            module.weight[2:, ::2] = 0
        elif module.weight is not None:
            module.weight.normal_()[[0, 2]] = 0
            module.bias.normal_()
    return module


SIZED = (
    "linear", "linear, no bias", "point", "padded", "not padded", "two groups",
    "three groups", "depthwise", "depthwise, padded", "norm", "norm of rows",
    "no statistics", "not affine", "neither",
)  # fmt: skip


def noted(module: nn.Module, value: Value) -> channels.Layer:
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return channels.Layer("a", module, value.units)
    alive = module.weight.detach() != 0
    alive = alive.flatten(2).any(2) if alive.dim() > 2 else alive
    return channels.Layer("a", module, torch.arange(len(alive)), alive)


@pytest.mark.parametrize("name", SIZED)
def test_what_layers_make_of_constants(name: str) -> None:
    """Nothing that is no constant is called one, and no constant is missed."""
    module = sized(name)
    value = ROW if isinstance(module, nn.Linear | nn.BatchNorm1d) else IMAGE
    layer = noted(module, value)
    found = layer.call(value)
    results = [module(like(value, seed)) for seed in (1, 2)]
    same = constant_channels(torch.cat(results))
    known = ~found.isnan()
    assert not (known & ~same).any()
    rows = results[0].transpose(0, 1).reshape(len(found), -1)
    torch.testing.assert_close(rows[known, 0], found[known])
    if "padded" not in name or name == "not padded":
        assert torch.equal(known, same)
    else:  # constants other than 0 stand beside zeros
        zero = Value(value.units, torch.where(CONSTANTS == 0, 0.0, NAN), True)
        again = noted(module, zero).call(zero)
        assert torch.equal(known, ~again.isnan())
    assert layer.groups == getattr(module, "groups", 1)


def test_a_contribution_is_the_sum_of_what_is_known() -> None:
    for name in ("linear", "not padded", "two groups", "three groups"):
        module = sized(name)
        layer = noted(module, IMAGE)
        known = torch.tensor([0.0, 2.0, NAN, -1.0, 0.0, 3.0]).double()
        x = known.nan_to_num().view(1, 6, *[1] * (module.weight.dim() - 2))
        x = x.expand(1, 6, *module.weight.shape[2:])
        bias = 0 if module.bias is None else module.bias
        expected = module(x).flatten() - bias
        torch.testing.assert_close(layer.contribution(known), expected)
        nothing = layer.contribution(torch.full_like(known, NAN))
        assert torch.equal(nothing, torch.zeros(len(expected)).double())


def test_a_layer_called_twice_knows_what_both_calls_share() -> None:
    module = nn.Linear(6, 6).double()
    with torch.no_grad():
        module.weight.copy_(torch.eye(6))
        module.bias.zero_()
    layer = noted(module, ROW)
    other = replace(ROW, constant=torch.tensor([1, 0.0, 1.5, 2, NAN, NAN]).double())
    layer.call(ROW)
    assert torch.equal(layer.known().isnan(), CONSTANTS.isnan())
    second = layer.call(other)
    assert second.tolist()[:4] == [1.0, 0.0, 1.5, 2.0]
    both = torch.tensor([NAN, 0.0, 1.5, NAN, NAN, NAN]).double()
    torch.testing.assert_close(layer.known(), both, equal_nan=True)
    torch.testing.assert_close(layer.constant, both, equal_nan=True)
    assert layer.inputs == [ROW, other]


def test_infinite_constants_vary() -> None:
    constant = torch.tensor([1.0, torch.inf, -torch.inf, NAN, 0.0, 2.0]).double()
    found = IMAGE.with_constant(constant)
    expected = torch.tensor([1.0, NAN, NAN, NAN, 0.0, 2.0]).double()
    torch.testing.assert_close(found.constant, expected, equal_nan=True)
    assert (found.image, found.spread) == (True, "")
    assert torch.equal(found.units, IMAGE.units)


def test_exact_numbers_are_copies_without_a_graph() -> None:
    weight = nn.Parameter(torch.ones(3))
    found = channels.exact(weight)
    assert found.dtype == torch.float64
    assert not found.requires_grad


def exclusive(call: Callable[[Tensor], Tensor]) -> bool:
    graph = fx.symbolic_trace(call).graph
    (output,) = graph.find_nodes(op="output")
    return channels.is_exclusive(output.args[0], lambda node: None)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: F.relu(x), True), (lambda x: x + 1, True), (lambda x: x, True),
        (lambda x: F.max_pool2d(x, 2), True),
        (lambda x: x.view(4, -1) + 0 * x.sum(), True),
        (lambda x: F.relu_(x), True), (lambda x: x.contiguous(), True),
    ],
)  # fmt: skip
def test_who_owns_a_result(call: Callable[[Tensor], Tensor], expected: bool) -> None:
    assert exclusive(call) is expected


def test_a_view_of_what_others_read_is_not_its_own() -> None:
    for call in (
        lambda x: (x.view(4, -1), F.relu(x)), lambda x: (x.detach(), x + 1),
        lambda x: (F.relu_(x), x + 1), lambda x: (F.dropout(x, 0.0), x * 2),
    ):  # fmt: skip
        graph = fx.symbolic_trace(call).graph
        (output,) = graph.find_nodes(op="output")
        first, second = output.args[0]
        assert channels.is_exclusive(first, lambda node: None) is False
        assert channels.is_exclusive(second, lambda node: None) is True


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: x.size(0), True), (lambda x: x.shape[0], True),
        (lambda x: x.size(1), False), (lambda x: x.shape[1], False),
        (lambda x: x.size(), False), (lambda x: x[0], False), (lambda x: 4, False),
        (lambda x: x.size()[0], True), (lambda x: (x + 1)[0], False),
    ],
)  # fmt: skip
def test_numbers_of_images(call: Callable[[Tensor], Tensor], expected: bool) -> None:
    (output,) = fx.symbolic_trace(call).graph.find_nodes(op="output")
    assert channels.is_batch_size(output.args[0]) is expected
