"""Which steps of a network run as one, told step by step."""

import math

import pytest

from sparsekit.execution.fusion import Fused, fuse, is_pointwise, last_uses
from sparsekit.execution.model_file import Network, Step

INFINITE = (-math.inf, math.inf)


def step(name, op, *inputs, **options):
    return Step(name, op, inputs, (4, 7, 7), options=options)


def conv(name, source, side=3, groups=1, **options):
    padding = [side // 2] * 4
    given = {"kernel": (side, side), "stride": [1, 1], "padding": padding}
    return step(name, "conv", source, **{**given, "groups": groups, **options})


def clip(name, source, low=0.0, high=None):
    return step(name, "clip", source, low=low, high=high)


def add(name, a, b):
    return step(name, "add", a, b)


def fused(*steps, output=None):
    return fuse(Network((4, 7, 7), output or steps[-1].name, steps))


def told(steps):
    """(what is computed, its name, what is added, bounds, expansion), each."""
    return [
        (s.step.name, s.name, s.residual, s.clip, s.expands and s.expands.name)
        for s in steps
    ]


@pytest.mark.parametrize("layer", [conv("a", "input"), step("a", "linear", "input")])
def test_a_layer_takes_the_addition_and_the_clip_behind_it(layer):
    found = fused(conv("x", "input"), layer, add("b", "a", "x"), clip("c", "b", 0, 6))
    assert told(found) == [
        ("x", "x", None, INFINITE, None),
        ("a", "c", "x", (0.0, 6.0), None),
    ]
    assert [s.inputs for s in found] == [("input",), ("input", "x")]


@pytest.mark.parametrize(
    ("low", "high", "bounds"),
    [
        (None, None, INFINITE), (0, None, (0.0, math.inf)),
        (None, 6, (-math.inf, 6.0)), (-1, 1, (-1.0, 1.0)),
    ],
)  # fmt: skip
def test_bounds_that_are_not_given_are_infinite(low, high, bounds):
    assert fused(conv("a", "input"), clip("b", "a", low, high))[0].clip == bounds
    (alone,) = fused(clip("b", "input", low, high))
    assert (alone.clip, alone.step.op, alone.residual) == (bounds, "clip", None)


def test_the_later_of_two_layers_takes_the_addition():
    """So that what it adds is there when it runs."""
    first, second = conv("a", "input"), conv("b", "input")
    for pair in (("a", "b"), ("b", "a")):
        found = fused(first, second, add("c", *pair))
        taker, other = pair
        assert told(found)[-1] == (taker, "c", other, INFINITE, None)
        assert [s.name for s in found] == [other, "c"]


def test_what_others_read_too_is_not_drawn_in():
    found = fused(conv("a", "input"), clip("b", "a"), add("c", "a", "b"))
    assert told(found) == [
        ("a", "a", None, INFINITE, None),
        ("b", "b", None, (0.0, math.inf), None),
        ("c", "c", None, INFINITE, None),
    ]
    # the network's output is read, too
    found = fused(conv("a", "input"), clip("b", "a"), output="a")
    assert [s.name for s in found] == ["a", "b"]


def test_a_result_added_to_itself_stays():
    found = fused(conv("a", "input"), add("b", "a", "a"))
    assert [s.name for s in found] == ["a", "b"]
    assert found[0].residual is None


def test_after_a_clip_nothing_is_drawn_in():
    """clip(x) + y is not clip(x + y), and two clips are not the second."""
    x = conv("x", "input")
    found = fused(x, conv("a", "input"), clip("b", "a"), add("c", "b", "input"))
    assert [s.name for s in found] == ["x", "b", "c"]
    found = fused(conv("a", "input"), clip("b", "a", 0, 6), clip("c", "b", 1, 2))
    assert [(s.name, s.clip) for s in found] == [("b", (0.0, 6.0)), ("c", (1.0, 2.0))]


def test_a_layer_adds_once():
    found = fused(conv("a", "input"), add("b", "a", "input"), add("c", "b", "input"))
    assert [(s.name, s.residual) for s in found] == [("b", "input"), ("c", None)]
    # but a second layer may take the second sum
    found = fused(
        conv("a", "input"), add("b", "a", "input"), conv("d", "input"),
        add("c", "b", "d"),
    )  # fmt: skip
    assert [(s.name, s.residual) for s in found] == [("b", "input"), ("c", "b")]


@pytest.mark.parametrize("op", ["average", "flatten", "max_pool", "add"])
def test_only_layers_draw_in(op):
    inputs = ("input", "input") if op == "add" else ("input",)
    before = step("a", op, *inputs)
    assert [s.name for s in fused(before, clip("b", "a"))] == ["a", "b"]
    assert [s.name for s in fused(before, add("b", "a", "input"))] == ["a", "b"]


DEEP = {"groups": 4}


def test_an_expansion_is_drawn_into_the_depthwise_convolution():
    found = fused(conv("a", "input", 1), clip("b", "a"), conv("c", "b", groups=4))
    assert told(found) == [("c", "c", None, INFINITE, "b")]
    assert found[0].expands.clip == (0.0, math.inf)
    assert found[0].inputs == ("input",)
    found = fused(
        conv("a", "input", 1), conv("c", "a", groups=4), add("d", "c", "input")
    )
    assert found[0].inputs == ("input", "input")
    assert told(found) == [("c", "d", "input", INFINITE, "a")]


@pytest.mark.parametrize(
    "steps",
    [
        (conv("a", "input", 3), conv("c", "a", **DEEP)),
        (conv("a", "input", 1, stride=[2, 2]), conv("c", "a", **DEEP)),
        (conv("a", "input", 1, stride=[1, 2]), conv("c", "a", **DEEP)),
        (conv("a", "input", 1, padding=[0, 0, 0, 1]), conv("c", "a", **DEEP)),
        (conv("a", "input", 1, groups=4), conv("c", "a", **DEEP)),
        (conv("a", "input", 1), conv("c", "a", groups=1)),
        (conv("a", "input", 1), conv("c", "a", 1, groups=1)),
        (conv("a", "input", 1), step("c", "average", "a")),
        (step("a", "max_pool", "input"), conv("c", "a", **DEEP)),
    ],
)
def test_other_pairs_run_one_by_one(steps):
    found = fused(*steps)
    assert told(found) == [
        ("a", "a", None, INFINITE, None),
        ("c", "c", None, INFINITE, None),
    ]


def test_an_expansion_that_adds_or_is_read_elsewhere_runs_by_itself():
    added = fused(
        conv("a", "input", 1), add("b", "a", "input"), conv("c", "b", groups=4)
    )
    assert [(s.name, s.expands) for s in added] == [("b", None), ("c", None)]
    twice = fused(
        conv("a", "input", 1), conv("c", "a", groups=4), conv("d", "a", groups=4),
        add("e", "c", "d"),
    )  # fmt: skip
    assert all(s.expands is None for s in twice)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"side": 1}, True),
        ({"side": 3}, False),
        ({"side": 1, "kernel": (1, 3)}, False),
        ({"side": 1, "stride": [2, 1]}, False),
        ({"side": 1, "stride": [1, 2]}, False),
        *(({"side": 1, "padding": [int(i == j) for j in range(4)]}, False)
          for i in range(4)),
        ({"side": 1, "groups": 2}, False),
    ],
)  # fmt: skip
def test_pointwise(options, expected):
    assert is_pointwise(conv("a", "input", **options)) is expected


def test_only_convolutions_are_pointwise():
    assert is_pointwise(step("a", "linear", "input")) is False


def test_a_result_is_free_after_the_last_step_that_reads_it():
    found = fused(
        conv("a", "input"), conv("b", "a"), conv("c", "a"), add("d", "c", "b"),
        step("e", "flatten", "d"),
    )  # fmt: skip
    assert [s.name for s in found] == ["a", "b", "d", "e"]
    assert last_uses(found) == [["input"], [], ["a", "b"], ["d"]]


def test_what_is_fused_says_so_by_default():
    plain = Fused(conv("a", "input"), "a")
    assert (plain.residual, plain.clip, plain.expands) == (None, INFINITE, None)
