"""Edges that mutation testing found unwatched; see tests/mutation."""

import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparsekit.execution import calls, channels, export, model_file
from sparsekit.execution.calls import average_pool, max_pool
from sparsekit.execution.model_file import MOST_SIDE, DamagedFile


def node_of(function: Callable[[Tensor], Tensor]) -> fx.Node:
    """The one call that a function of one tensor makes."""
    graph = fx.symbolic_trace(function).graph
    (found,) = [n for n in graph.nodes if n.op not in ("placeholder", "output")]
    return found


GLOBAL_MEANS = {
    "pool to 1": (lambda x: F.adaptive_avg_pool2d(x, 1), True),
    "pool to (1, 1)": (lambda x: F.adaptive_avg_pool2d(x, (1, 1)), True),
    "pool to [1, 1]": (lambda x: F.adaptive_avg_pool2d(x, [1, 1]), True),
    "pool to 2": (lambda x: F.adaptive_avg_pool2d(x, 2), False),
    "mean over both": (lambda x: torch.mean(x, (2, 3)), True),
    "mean from the end": (lambda x: x.mean([-1, -2]), True),
    "mean by name": (lambda x: x.mean(dim=(2, 3), keepdim=True), True),
    "mean over rows": (lambda x: x.mean(2), False),
    "mean over images": (lambda x: x.mean((0, 2, 3)), False),
    "mean of all": (lambda x: x.mean(), False),
    "mean in another type": (lambda x: x.mean((2, 3), dtype=torch.float64), False),
    "largest": (lambda x: torch.amax(x, (2, 3)), False),
}


@pytest.mark.parametrize("name", GLOBAL_MEANS)
def test_global_means(name: str) -> None:
    function, expected = GLOBAL_MEANS[name]
    assert calls.is_global_mean(node_of(function), None) is expected


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: F.adaptive_avg_pool2d(x, 1), True),
        (lambda x: x.mean((2, 3)), False),
        (lambda x: x.mean((2, 3), True), True),
        (lambda x: x.mean((2, 3), keepdim=True), True),
        (lambda x: x.mean((2, 3), False), False),
    ],
)
def test_pixels_that_a_mean_keeps(function, expected: bool) -> None:
    assert calls.keeps_pixels(node_of(function)) is expected


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: F.max_pool2d(x, 2), (max_pool, 2, 2, 0)),
        (lambda x: F.max_pool2d(x, 3, 2, 1), (max_pool, 3, 2, 1)),
        (lambda x: F.max_pool2d(x, (3, 3), stride=(1, 1)), (max_pool, 3, 1, 0)),
        (lambda x: F.max_pool2d(x, 2, dilation=2), None),
        (lambda x: F.max_pool2d(x, 2, ceil_mode=True), None),
        (lambda x: F.max_pool2d(x, (2, 3)), None),
        (lambda x: F.avg_pool2d(x, 2), (average_pool, 2, 2)),
        (lambda x: F.avg_pool2d(x, 3, 2), (average_pool, 3, 2)),
        (lambda x: F.avg_pool2d(x, 2, padding=0), (average_pool, 2, 2)),
        (lambda x: F.avg_pool2d(x, 2, padding=1), None),
        (lambda x: F.avg_pool2d(x, 2, ceil_mode=True), None),
        (lambda x: F.relu(x), None),
    ],
)
def test_windows(function, expected: tuple | None) -> None:
    assert calls.window(node_of(function), None) == expected


def test_windows_of_modules() -> None:
    class Model(nn.Module):
        def __init__(self, pool: nn.Module):
            super().__init__()
            self.pool = pool

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(x)

    for pool, expected in (
        (nn.MaxPool2d(3, 2, 1), (max_pool, 3, 2, 1)),
        (nn.AvgPool2d(2), (average_pool, 2, 2)),
        (nn.AvgPool2d(2, padding=1), None),
        (nn.MaxPool2d(2, dilation=2), None),
    ):
        graph = fx.Tracer().trace(Model(pool))
        (node,) = [n for n in graph.nodes if n.op == "call_module"]
        assert calls.window(node, pool) == expected


IN_PLACE = {
    "relu_": (lambda x: torch.relu_(x), True),
    "method relu_": (lambda x: x.relu_(), True),
    "flag": (lambda x: F.relu(x, inplace=True), True),
    "no flag": (lambda x: F.relu(x, inplace=False), False),
    "relu": (lambda x: torch.relu(x), False),
    "method relu": (lambda x: x.relu(), False),
    "add": (lambda x: x + 1, False),
    "dunder": (lambda x: x.__add__(1), False),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_changes_in_place(name: str) -> None:
    function, expected = IN_PLACE[name]
    assert calls.in_place(node_of(function), {}) is expected
    assert channels.in_place(node_of(function), None) is expected


@pytest.mark.parametrize("name", ["iadd", "isub", "imul", "itruediv", "setitem"])
def test_operators_that_change_their_first_argument(name: str) -> None:
    graph = fx.Graph()
    node = graph.call_function(getattr(operator, name), (graph.placeholder("x"), 1))
    assert calls.in_place(node, {}) is True
    assert channels.in_place(node, None) is True


def test_modules_that_change_their_input() -> None:
    node = node_of(lambda x: F.relu(x))
    assert channels.in_place(node, nn.ReLU(inplace=True)) is True
    assert channels.in_place(node, nn.ReLU()) is False
    assert channels.in_place(node, nn.Linear(2, 2)) is False


def test_channels_that_do_not_divide() -> None:
    units, constant = torch.arange(3), torch.full((3,), torch.nan)
    for spread, n, fits in (
        ("", 3, True), ("", 6, False), ("", 4, False),
        ("repeat", 6, True), ("repeat", 4, False), ("repeat", 3, True),
    ):  # fmt: skip
        value = channels.Value(units, constant, True, spread).of_size(n)
        assert (value is not None) is fits, (spread, n)
        if value is not None:
            assert len(value.units) == n


# ---- hostile graphs ------------------------------------------------------------------


def pooled(kernel=(2, 2), padding=(0, 0), stride=(1, 1), size=(8, 9)):
    entry = {"kernel": list(kernel), "padding": list(padding), "stride": list(stride)}
    return model_file._max_pool("p", entry, [(3, *size)])


def test_padding_up_to_half_of_a_window() -> None:
    assert pooled((2, 4), (1, 2), (1, 2)) == (3, 9, 5)
    for padding in ((2, 0), (0, 3)):
        with pytest.raises(DamagedFile, match="over half of the kernel"):
            pooled((2, 4), padding)


@pytest.mark.parametrize("place", range(4))
def test_sides_up_to_the_largest(place: int) -> None:
    """Kernel and stride, each side by itself."""
    for side, fits in ((MOST_SIDE, True), (MOST_SIDE + 1, False)):
        numbers = [1, 1, 1, 1]
        numbers[place] = side
        arguments = (tuple(numbers[:2]), (0, 0), tuple(numbers[2:]))
        if fits:
            assert pooled(*arguments, size=(MOST_SIDE, MOST_SIDE))[0] == 3
        else:
            with pytest.raises(DamagedFile, match=f"is over {MOST_SIDE}"):
                pooled(*arguments, size=(2 * MOST_SIDE, 2 * MOST_SIDE))


@pytest.mark.parametrize("kernel", [(9, 1), (1, 10)])
def test_a_window_is_not_larger_than_the_image(kernel: tuple[int, int]) -> None:
    assert pooled((8, 9)) == (3, 1, 1)
    with pytest.raises(DamagedFile, match="is larger than"):
        pooled(kernel)


class Scaled(nn.Module):
    """x + 2 x, which is no plain addition."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.a(x), self.b(x), alpha=2)


def test_an_addition_with_options_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="an addition has two tensors and no options"):
        export.save(Scaled().eval(), torch.randn(2, 4), tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
